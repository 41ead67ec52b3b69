"""The key of an endpoint: where it is read, and that it gets nowhere else."""

import os
import re
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from astra_trl.errors import InputError

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"

_SHORTEST_KEY = 8  # what is shorter, as "none" or "EMPTY", is no secret, and a word that a model may say
_BEARER = re.compile(r"\b(bearer|basic)(?:\s|\\[nrt])+[^\s\"',;]+", re.IGNORECASE)
_LONGEST_REASON = 300


class Key:
    """A key that shows itself to nobody who prints, logs or saves what holds it.

    Args:
        value (`str`, *optional*):
            Defaults to what the environment variable `OPENAI_API_KEY` holds.

    `sent()` is the key, or nothing; `hidden(text)` the text with three stars wherever the key stands in it.
    """

    def __init__(self, value: str | None = None) -> None:
        key = (os.environ.get(KEY_VARIABLE, "") if value is None else value).strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"{KEY_VARIABLE} holds what no key does: set it to the key alone")
        # As it is or as a part of an address, maybe broken over lines, as they are or as JSON writes them.
        written = {key, quote(key, safe="")} if len(key) >= _SHORTEST_KEY else set()
        broken = sorted(r"(?:\s|\\[nrt])*".join(map(re.escape, one)) for one in written)
        pattern = re.compile("|".join(broken) or r"(?!)")
        # Functions, and no attributes that `vars` would show.
        self.sent: Callable[[], str] = lambda: key
        self.hidden: Callable[[str], str] = lambda text: pattern.sub("***", text)

    def __bool__(self) -> bool:
        return bool(self.sent())

    def __repr__(self) -> str:
        return "Key(***)"

    def __reduce__(self) -> tuple[type["Key"], tuple[()]]:
        return Key, ()  # another process reads its own environment

    def reason(self, text: str) -> str:
        """What went wrong in one line of bounded length, without the key and what else a header would grant access by.

        The key goes first: what is cut or joined could hold a part of it.
        """
        return " ".join(_BEARER.sub(r"\1 ***", self.hidden(text)).split())[:_LONGEST_REASON]


def checked_base_url(url: str | None) -> str | None:
    """The address of an endpoint; `InputError`, which does not repeat it, where it holds credentials or is none."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("the base_url is no address: give one as http://localhost:8000/v1")
    key = os.environ.get(KEY_VARIABLE) or ""
    if parts.username or parts.password or parts.query or parts.fragment or (len(key) >= _SHORTEST_KEY and key in url):
        raise InputError(
            f"the base_url for {host} holds a user, a password or a query: give the address alone, and the key in "
            f"{KEY_VARIABLE}"
        )
    return url.rstrip("/")


def refuse_borrowed_address(url: str | None, flag: str) -> None:
    """`InputError` where the key would be sent to an address that no more than a run's folder names, which may be
    another's; not where it stays on this machine."""
    if url is None or urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1") or not Key():
        return
    if url != checked_base_url(os.environ.get(URL_VARIABLE) or None):
        raise InputError(
            f"the run's config.yaml would have {KEY_VARIABLE} sent to {url}: repeat --{flag} with that base_url if "
            f"you trust it, or unset {KEY_VARIABLE}"
        )
