"""API keys: read from the environment, redacted everywhere else."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from astra_trl.errors import InputError

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"

# Names of environment variables that hold secrets.
SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
MIN_KEY_LENGTH = 8  # a shorter value, e.g. "none" or "EMPTY", is not a secret but a word that a model can say
MAX_REASON_LENGTH = 300
_METHOD = re.compile(r"(/chat)?/(completions|responses|models|embeddings)/*$")
_KEY_LIKE = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}")
# Names of settings that hold credentials, at any depth; `pad_token`, `max_new_tokens` and `prompt_cache_key` do not.
_CREDENTIALS = re.compile(
    r"((hub|push_to_hub|(use_)?auth|access|api|bearer)[_-])?token|key"
    r"|(\w+[_-])*(api[_-]?key|secret|password|authorization)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer|basic)(?:\s|\\[nrt])+[^\s\"',;]+", re.IGNORECASE)


class Key:
    """An API key that is not printed, logged or saved with the objects that hold it.

    Args:
        value (`str`, *optional*):
            Defaults to the environment variable `OPENAI_API_KEY`.

    Attributes:
        reveal (`Callable[[], str]`): returns the key, or an empty text.
        redact (`Callable[[str], str]`): replaces the key in a text by three stars.
    """

    def __init__(self, value: str | None = None) -> None:
        key = (os.environ.get(KEY_VARIABLE, "") if value is None else value).strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"{KEY_VARIABLE} holds characters that no key has: set it to the key alone")
        # As it is or URL-encoded, and even if it is broken over lines, by line breaks or by their JSON escapes.
        forms = {key, quote(key, safe="")} if len(key) >= MIN_KEY_LENGTH else set()
        patterns = sorted(r"(?:\s|\\[nrt])*".join(map(re.escape, form)) for form in forms)
        pattern = re.compile("|".join(patterns) or r"(?!)")
        # Closures, because `vars` would show an attribute.
        self.reveal: Callable[[], str] = lambda: key
        self.redact: Callable[[str], str] = lambda text: pattern.sub("***", text)

    def __bool__(self) -> bool:
        return bool(self.reveal())

    def __repr__(self) -> str:
        return "Key(***)"

    def __reduce__(self) -> tuple[type["Key"], tuple[()]]:
        return Key, ()  # another process reads its own environment

    def redact_reason(self, text: str) -> str:
        """Return the reason of a failure in one line of bounded length, without the key and other credentials.

        The key goes first, because cutting or joining the text could leave a part of it.
        """
        return " ".join(_BEARER.sub(r"\1 ***", self.redact(text)).split())[:MAX_REASON_LENGTH]


def without_credentials(settings: Mapping[str, Any], names_are_given: bool = False) -> dict[str, Any]:
    """Return settings without tokens, keys and passwords at any depth.

    The user gives names to `scorers`: one of them may be called "password".
    """
    return {
        key: without_credentials(value, key == "scorers") if isinstance(value, Mapping) else _each_without(value)
        for key, value in settings.items()
        if names_are_given or not (isinstance(value, str) and _CREDENTIALS.fullmatch(str(key)))
    }


def _each_without(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [without_credentials(part) if isinstance(part, Mapping) else _each_without(part) for part in value]


def checked_base_url(url: str | None) -> str | None:
    """Return the address of an endpoint without spaces around it and a slash at its end.

    Raises `InputError`, which does not repeat the address, if it holds credentials or is not an address of an API.
    """
    if url is None:
        return None
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        parts, host = urlsplit(""), None
    if re.match(r"[\w.-]+(:\d+)?(/|$)", url):
        raise InputError("the base_url has no scheme: write http:// or https:// before it")
    is_broken = re.search(r"\s", url) or not url.isprintable() or parts.path.startswith("//")
    if parts.scheme not in ("http", "https") or not host or is_broken:
        raise InputError("the base_url is not an address: give one like http://localhost:8000/v1")
    if method := _METHOD.search(parts.path):
        raise InputError(f"the base_url for {host} ends in {method[0].rstrip('/')}: leave that part out")
    key = os.environ.get(KEY_VARIABLE) or ""
    has_key = (len(key) >= MIN_KEY_LENGTH and key in url) or _KEY_LIKE.search(url)
    if parts.username or parts.password or parts.query or parts.fragment or has_key:
        raise InputError(
            f"the base_url for {host} holds a user, a password or a query, or a key: give the address alone, and the "
            f"key in {KEY_VARIABLE}"
        )
    return url.rstrip("/")


def is_own_address(url: str | None) -> bool:
    """`True` if an address needs no consent: none, OpenAI's own, that of `OPENAI_BASE_URL`, or one on this machine."""
    if url is None or url.rstrip("/") == (os.environ.get(URL_VARIABLE) or "").rstrip("/"):
        return True
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return host in ("localhost", "127.0.0.1", "::1") or (parts.scheme == "https" and host == "api.openai.com")
