"""Sends a run's model to the Hub: staged, searched for secrets, into a private repo unless told otherwise."""

import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from astra_trl.errors import InputError
from astra_trl.hub.card import model_card
from astra_trl.hub.hiding import Secrets
from astra_trl.hub.settings import read_config
from astra_trl.hub.staging import run_of, stage_model, stage_transcripts
from astra_trl.hub.transcripts import transcripts_card
from astra_trl.text import visible

SILENCE_SECONDS = 60  # after which a connection is taken for dead; huggingface_hub itself would wait for ever
_HTTPError = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")  # of httpx, or of httpx2

_MENDS = {
    400: ("the Hub refuses what was sent", "see to the model card's metadata"),
    401: ("the Hub does not accept the token", "log in with `hf auth login`, or set HF_TOKEN"),
    403: ("the token may not write there", "log in with one that may (`hf auth login`), or choose another --repo_id"),
    404: ("the Hub knows no such repo or revision", "choose another --repo_id, or log in with `hf auth login`"),
    409: ("somebody else changed the repo meanwhile", "wait a moment"),
    413: ("the Hub finds it too large", "choose another --repo_id, or ask for more storage"),
    429: ("the Hub takes no more requests for now", "wait some minutes"),
}


def push(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    private: bool | None = True,
    push_transcripts: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Pushes the model of a run's folder, or of a checkpoint, with its tokenizer and card; returns the repo's address.

    Nothing else is sent, and the folder stays as it is.

    Args:
        folder (`str` or `Path`):
            A run's `output_dir` or one of its checkpoints.
        repo_id (`str`, *optional*):
            Defaults to the run's `hub_model_id`, or to the folder's name under the user's own.
        private (`bool`, *optional*, defaults to `True`):
            Whether the repo must be private. `False` makes a new repo public and leaves one that exists as it is.
        push_transcripts (`bool`, *optional*, defaults to `False`):
            Whether every exchange of the run goes into a data set beside it, `{repo_id}-transcripts`, always private.
        token (`str`, *optional*):
            Defaults to the one that `hf auth login` stored, or `HF_TOKEN`.
        revision (`str`, *optional*):
            Branch to push to; made where there is none. Defaults to `main`.
        commit_message (`str`, *optional*):
            Defaults to `"Push of astra-trl"`.

    Raises:
        InputError: there is no model, a file holds a secret, the repo is public and was to be private, or the Hub
            refused or could not be reached.
    """
    return Push(
        Path(folder),
        repo_id,
        private=private,
        push_transcripts=push_transcripts,
        token=token,
        revision=revision,
        commit_message=commit_message,
    ).send()


class Push:
    """A push whose files are staged: what happens to the folder from here on does not matter to it.

    Args:
        card (`Callable`, *optional*):
            Gives the model card for `repo_id` and `transcripts`; defaults to [`model_card`] of the folder.
        stage_in (`Path`, *optional*):
            Folder to stage in; one on the folder's own disk keeps weights that are deleted there meanwhile.
    """

    def __init__(
        self,
        folder: Path,
        repo_id: str | None = None,
        *,
        private: bool | None = True,
        push_transcripts: bool = False,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        card: Callable[..., str] | None = None,
        stage_in: Path | None = None,
    ) -> None:
        if not folder.is_dir():
            raise InputError(f"there is no folder '{folder}': give a run's output_dir")
        run = run_of(folder)
        self.folder, self.token, self.revision = folder, token, revision
        self.repo_id = repo_id or read_config(run).get("hub_model_id") or run.resolve().name
        self.private = private is not False
        self.commit_message = commit_message or "Push of astra-trl"
        self.card = card or _card_of(folder)
        secrets = Secrets(run, token or get_token())
        self._staging = tempfile.TemporaryDirectory(prefix=".pushing-", dir=stage_in)
        self.model, self.transcripts = (Path(self._staging.name) / name for name in ("model", "transcripts"))
        self.parts: list[str] = []
        with ExitStack() as failed:
            failed.enter_context(self._staging)
            self.model.mkdir()
            stage_model(folder, self.model)
            if push_transcripts:
                self.transcripts.mkdir()
                self.parts = stage_transcripts(run, self.transcripts, secrets)
            self._write_cards(self.repo_id)
            secrets.refuse(Path(self._staging.name))
            failed.pop_all()

    def send(self) -> str:
        """Uploads it and returns the repo's address; once."""
        failing = explained(
            f"cannot push to {visible(self.repo_id)}", f", then {again(self.folder)}; nothing of the run is lost"
        )
        with self._staging, failing, _impatient():
            api = HfApi(token=self.token)
            url, repo_id = make_repo(api, self.repo_id, self.private)
            if self.parts:
                _, transcripts = make_repo(api, f"{repo_id}-transcripts", private=True, repo_type="dataset")
            self._write_cards(repo_id)  # whose namespace is known now
            send = partial(api.upload_folder, commit_message=self.commit_message)
            if self.parts:
                send(repo_id=transcripts, folder_path=self.transcripts, repo_type="dataset")
            if self.revision is not None:
                api.create_branch(repo_id, branch=self.revision, exist_ok=True)
            send(repo_id=repo_id, folder_path=self.model, revision=self.revision)
        return url

    def _write_cards(self, repo_id: str) -> None:
        transcripts = f"{repo_id}-transcripts" if self.parts else None
        card = self.card(repo_id=repo_id, transcripts=transcripts)
        (self.model / "README.md").write_text(card, encoding="utf-8")
        if self.parts:
            text = transcripts_card(repo_id, self.parts)
            (self.transcripts / "README.md").write_text(text, encoding="utf-8")


def make_repo(api: HfApi, repo_id: str, private: bool, repo_type: str = "model") -> tuple[str, str]:
    """Address and full id of a repo, made where there is none. `InputError` where it is to be private and is not."""
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    # To a repo that exists, create_repo does nothing, whatever `private` says.
    if private and not api.repo_info(url.repo_id, repo_type=repo_type, timeout=SILENCE_SECONDS).private:
        mend = "choose another --repo_id (hub_model_id) or make that one private"
        if repo_type == "model":
            mend = "push with --public (hub_private_repo=False), or " + mend
        raise InputError(f"nothing was pushed, as the {repo_type} {url.repo_id} is there and public: {mend}")
    return str(url), url.repo_id


def again(folder: Path) -> str:
    """The command that pushes a folder."""
    return f"`astra-trl push {shlex.quote(str(folder))}`"


@contextmanager
def explained(failed: str, then: str) -> Iterator[None]:
    """Whatever goes wrong between here and the Hub becomes an `InputError` of one line: what failed, why, how to mend
    it and what to do then."""
    try:
        yield
    except InputError:
        raise
    # What huggingface_hub and hf_xet raise: errors of HTTP and of the connection, a failed upload as RuntimeError, an
    # answer that is none as ValueError.
    except (_HTTPError, OSError, RuntimeError, ValueError) as error:
        wrong, mend = _explanation(error)
        raise InputError(f"{failed}, {wrong}: {mend}{then}") from error


def _explanation(error: BaseException) -> tuple[str, str]:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (_HTTPError, OfflineModeIsEnabled)):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OfflineModeIsEnabled):
        return "as HF_HUB_OFFLINE keeps this process off the network", "unset it (and TRANSFORMERS_OFFLINE)"
    if isinstance(error, HFValidationError):
        return "which is no name for a repo", "choose another --repo_id"
    # hf_xet, which uploads in the Hub's own way, says the status in its text alone.
    of_xet = re.search(r"HTTP status \w+ error \((\d{3})", str(error))
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else int(of_xet[1]) if of_xet else None
    if status is not None:
        if status >= 500:
            wrong, mend = "the Hub has trouble of its own", "wait some minutes"
        else:
            wrong, mend = _MENDS.get(status, ("the Hub refuses", "see to what it says"))
        said = str(error) if status == 400 else getattr(cause, "server_message", None) or ""
        return f"{wrong} ({status}{_one_line(said, ': ')})", mend
    if cause is not None:
        return f"the connection failed{_one_line(str(cause), ' (', ')')}", "see to the network, or wait a moment"
    return f"the upload failed{_one_line(str(error), ' (', ')')}", "wait a moment"


def _one_line(text: str, before: str, after: str = "") -> str:
    text = " ".join(visible(text).split())
    return f"{before}{text[:300]}{after}" if text else ""


@contextmanager
def _impatient() -> Iterator[None]:
    client = get_session()
    before = client.timeout
    client.timeout = SILENCE_SECONDS
    try:
        yield
    finally:
        client.timeout = before


def _card_of(folder: Path) -> Callable[..., str]:
    # A trainer's card knows more than a folder without config.yaml.
    run, written = run_of(folder), folder / "README.md"
    if not (run / "config.yaml").exists() and written.exists():
        text = written.read_text(encoding="utf-8")
        if re.search(r"^- astra-trl$", text.partition("\n---\n")[0], re.MULTILINE):
            return lambda **_: Secrets(run).hide_paths(text)
    return partial(model_card, folder)
