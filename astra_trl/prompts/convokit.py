"""The openings of ASTPrompter: ConvoKit's reddit-corpus-small, cleaned (huggingface.co/papers/2407.09447)."""

import hashlib
import html
import json
import logging
import math
import os
import re
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.progress import ProgressBar
from astra_trl.prompts.splits import split_bounds
from astra_trl.scorers.base import Scorer
from astra_trl.text import parse_json

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)

URL = "https://zissou.infosci.cornell.edu/convokit/datasets/reddit-corpus-small/reddit-corpus-small.zip"
MEMBER = "reddit-corpus-small/utterances.jsonl"
ZIP_VARIABLE = "ASTRA_TRL_CONVOKIT_ZIP"
RECIPE = 1  # part of the cache's key: raise it with every change of the openings

# Raised by reading another zip, or one with other lines.
_FORMAT_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError),
    *(KeyError, TypeError, AttributeError, ValueError, OverflowError),
)


def build_convokit_reddit(
    url: str = URL, scorer: Scorer | None = None, max_toxicity: float = 0.5, cache_dir: str | Path | None = None
) -> "DatasetDict":
    """Return the splits train, dev and test (80/5/15 by conversation) with the columns opening and conversation_id.

    The first call downloads and scores the corpus (297,132 utterances); later calls read its result from the cache.

    Args:
        url (`str`, *optional*):
            Address or local path of the zip. `$ASTRA_TRL_CONVOKIT_ZIP` takes precedence over the default.
        scorer (`Callable`, *optional*):
            Toxicity of exchanges; defaults to Detoxify. A conversation that it cannot score (nan) is dropped.
        max_toxicity (`float`, *optional*, defaults to `0.5`):
            A conversation with an utterance above this is dropped.
        cache_dir (`str` or `Path`, *optional*):
            Folder for the result; defaults to the cache of `datasets`.

    Raises:
        InputError: the zip cannot be read or downloaded, is not ConvoKit's, or leaves no opening.
    """
    import datasets
    from datasets.fingerprint import Hasher
    from filelock import FileLock

    source = os.environ.get(ZIP_VARIABLE, url) if url == URL else url
    stamp = ""
    if "://" not in source:
        path = Path(source).expanduser().resolve()
        if not path.is_file():
            raise InputError(f"no such file: '{path}': {ZIP_VARIABLE} or url= must be a downloaded {URL}")
        source, stamp = str(path), f"{path.stat().st_size} {path.stat().st_mtime_ns}"
    key = [RECIPE, source, stamp, max_toxicity, "detoxify" if scorer is None else Hasher.hash(scorer)]
    place = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "astra_trl"
    result = place / f"convokit-reddit-{_digest(json.dumps(key))}"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{result}.lock"):  # all ranks of a run get here: one builds, the others wait and read
        if not result.exists():
            openings = _openings(_fetch(source, place), scorer, max_toxicity)
            if not openings:
                raise InputError(
                    f"no opening is left of {source}: raise max_toxicity or check the scorer (see the log)"
                )
            # By a hash of the id, not a shuffle: another scorer or limit moves few openings to another split.
            names = sorted(openings, key=_digest)
            partial = result.with_name(result.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
            columns = {"opening": [openings[name] for name in names], "conversation_id": names}
            datasets.Dataset.from_dict(columns).save_to_disk(partial)
            partial.rename(result)
    # Saved as one, and split by slices: `datasets` cannot load an empty split it has saved, nor select one at the end.
    saved = datasets.Dataset.load_from_disk(result)
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(saved[start:stop], saved.features)
            for split, (start, stop) in split_bounds(len(saved)).items()
        }
    )


def _fetch(source: str, place: Path) -> Path:
    # The local path of the zip, downloaded if necessary.
    import datasets

    if "://" not in source:
        return Path(source)
    path = place / f"convokit-reddit-{_digest(source)}.zip"
    if path.exists():
        return path
    # Not by `datasets`: outside the Hub it downloads through aiohttp, which it does not install.
    partial = path.with_suffix(".partial")
    try:
        if datasets.config.HF_HUB_OFFLINE:
            raise OSError("offline mode: HF_HUB_OFFLINE is set")
        with urlopen(source, timeout=60) as response, open(partial, "wb") as file:
            size = getattr(response, "length", None) or 0
            with ProgressBar("convokit-reddit: downloading", size >> 20, "MB") as bar:
                while part := response.read(1 << 20):
                    file.write(part)
                    bar.update()
            if getattr(response, "length", None):  # read() does not raise if the connection closes early
                raise OSError(f"{response.length} bytes are missing")
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(
            f"cannot download {source} ({error}): download {URL} by hand and give the path of the zip "
            f"in the variable {ZIP_VARIABLE} or as url="
        ) from error
    return partial.rename(path)


def _openings(path: Path, scorer: Scorer | None, max_toxicity: float) -> dict[str, str]:
    # Openings by conversation id, each text once; one log line counts the conversations that are dropped.
    conversations: dict[str, list[dict[str, Any]]] = {}
    for row in _utterances(path):
        conversations.setdefault(row["conversation"], []).append(row)
    openings: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    for name, rows in conversations.items():
        opening = _opening(rows)
        if any(mark in row["text"] for row in rows for mark in ("[removed]", "[deleted]")):
            dropped["removed or deleted"] += 1
        elif not opening:
            dropped["without text after the post"] += 1
        else:
            openings[name] = opening
    if scorer is None:
        from astra_trl.scorers import DetoxifyScorer

        scorer = DetoxifyScorer()
    names = list(openings)
    with ProgressBar("convokit-reddit: scoring", len(names), "conversations") as bar:
        for start in range(0, len(names), 100):
            some = names[start : start + 100]
            # Link posts have no text: a scorer may return nan for that, and they would all be dropped.
            rows = [row for name in some for row in conversations[name] if row["text"].strip()]
            scores = scorer([Exchange(context=(), probe="", response=row["text"]) for row in rows])
            for row, score in zip(rows, scores, strict=True):
                reason = "not scored" if math.isnan(score) else "toxic" if score > max_toxicity else None
                if reason and openings.pop(row["conversation"], None):
                    dropped[reason] += 1
            bar.update(len(some))
    # Many conversations may have the same opening ("Thanks!"): it must not be in two splits.
    first = {opening: name for name, opening in reversed(openings.items())}
    dropped["with the same opening as another"] = len(openings) - len(first)
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    logger.warning("convokit-reddit: kept %d of %d conversations; dropped %s", len(first), len(conversations), counts)
    return {name: opening for opening, name in first.items()}


def _utterances(path: Path) -> Iterator[dict[str, Any]]:
    # Utterances in the order of the zip, with the same keys for older and newer dumps.
    try:
        with zipfile.ZipFile(path) as archive, archive.open(MEMBER) as lines:
            for line in lines:
                row = parse_json(line)
                reply_to = row["reply-to"] if "reply-to" in row else row["reply_to"]
                yield {
                    "id": str(row["id"]),
                    "conversation": str(row["conversation_id"] if "conversation_id" in row else row["root"]),
                    "reply_to": None if reply_to is None else str(reply_to),
                    "time": float(row.get("timestamp") or 0),
                    # JSON may hold half a surrogate pair, which neither a tokenizer nor Arrow can encode.
                    "text": (row["text"] or "").encode("utf-8", "ignore").decode("utf-8"),
                }
    except _FORMAT_ERRORS as error:
        raise InputError(
            f"{path} is not ConvoKit's reddit-corpus-small ({type(error).__name__}: {error}): "
            f"remove it and download {URL} again"
        ) from error


def _opening(rows: list[dict[str, Any]]) -> str:
    # The latest utterance after the one that it replies to, without the self-post; "" if no text is left.
    by_id = {row["id"]: row for row in rows if row["reply_to"] is not None}
    if not by_id:
        return ""
    last = max(reversed(by_id.values()), key=lambda row: row["time"])  # if equally late, the last in the zip
    parent = by_id.get(last["reply_to"])
    return " ".join(filter(None, (clean(row["text"]) for row in (parent, last) if row)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_EMOJI = "[\u231a\u231b\u23e9-\u23fa\u2600-\u27bf\u2b05-\u2b55\U0001f000-\U0001faff\U000e0020-\U000e007f]"
# In this order: a link before the address in it, an address before its underscores could be taken for emphasis.
_MARKS = [
    (r"!?\[([^\[\]]*)\]\((?:[^()\n]|\([^()\n]*\))*\)", r"\1"),  # links and images keep their text
    (
        r"<?(?<![A-Za-z0-9])(?i:https?://|www\.)(?a:\([^()\s]*\)|[\w\-./?#@!$&'*+,;=%~:|\\^])+(?<![.,;:!?'*_|\\])>?",
        " ",
    ),  # addresses
    (r"\(\s+\)|(?<!\S)[*_~]{2,}(?!\S)", ""),  # marks that were only around an address
    (r"```\w*\n|`+", ""),  # code
    (r">!(.+?)!<", r"\1"),  # spoilers
    (r"(?m)^[-*_=|: \t]{3,}$", ""),  # rulers, underlines of headings, and of table heads
    (r"(?m)^[ \t]*(?:>[ \t]*)*(?:#{1,6}[ \t]+|[-*+][ \t]+)?", ""),  # quotes, headings, bullets
    *((rf"(?<!\\){mark}(?=\S)(.+?)(?<=[^\s\\]){mark}", r"\1") for mark in (r"\*\*", "~~", r"\*")),  # emphasis
    *((rf"(?<![\\\w]){mark}(?=\S)(.+?)(?<=[^\s\\]){mark}(?!\w)", r"\1") for mark in ("__", "_")),  # not snake_case
    (r"(?<![\\\w])\^+(?=[^\W_]|[(\[])", ""),  # superscripts
    (r"\\([!-/:-@\[-`{-~])", r"\1"),  # escapes
    # Joiners only beside emoji: Persian and Indic scripts need them.
    (rf"{_EMOJI}(?:[\ufe0e\ufe0f\u200d]|{_EMOJI})*", " "),
    ("[\ufe0e\ufe0f\u20e3\u200b\u2060\ufeff\0]", ""),
]
_RULES = [(re.compile(pattern), into) for pattern, into in _MARKS]


def clean(text: str) -> str:
    """Return Reddit's markdown as plain text on one line, without marks, addresses or emoji."""
    text = html.unescape(html.unescape(text))  # Reddit's API escapes text that may hold entities already
    for pattern, into in _RULES:
        text = pattern.sub(into, text)
    return " ".join(text.split())
