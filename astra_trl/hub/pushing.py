"""Push of a run's model to the Hub: staged, searched for secrets, into a private repository by default."""

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
from astra_trl.hub.redaction import Secrets
from astra_trl.hub.staging import MODEL_FILES, run_of, stage_model
from astra_trl.hub.transcripts import TRANSCRIPT_FILES, stage_transcripts, transcripts_card
from astra_trl.links import refuse_links
from astra_trl.results.reading import read_config
from astra_trl.text import visible

SILENCE_SECONDS = 60  # after which a connection counts as dead; huggingface_hub itself would wait for ever
_HTTPError = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")  # of httpx, or of httpx2

_CAUSES = {
    400: ("the Hub refuses the files", "check the model card's metadata"),
    401: ("the Hub does not accept the token", "log in with `hf auth login`, or set HF_TOKEN"),
    403: ("the token may not write there", "log in with another one (`hf auth login`), or choose another --repo_id"),
    404: ("the Hub knows no such repository or branch", "choose another --repo_id, or log in with `hf auth login`"),
    409: ("another push has just changed the repository", "wait a moment"),
    413: ("the model is too large for the repository", "choose another --repo_id, or ask for more storage"),
    429: ("the Hub accepts no more requests for now", "wait some minutes"),
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
    """Push the model of a run's folder, or of a checkpoint, with its tokenizer and card; return the address.

    Nothing else is uploaded, and the folder is not changed.

    Args:
        folder (`str` or `Path`):
            A run's `output_dir` or one of its checkpoints.
        repo_id (`str`, *optional*):
            Defaults to the folder's name in the user's namespace. If the run's `config.yaml` has a `hub_model_id`,
            it has to be repeated, as the folder may be another user's.
        private (`bool`, *optional*, defaults to `True`):
            Require a private repository. `False` makes a new one public and does not change an existing one.
        push_transcripts (`bool`, *optional*, defaults to `False`):
            Push every exchange of the run to the data set `{repo_id}-transcripts`, which is always private.
        token (`str`, *optional*):
            Defaults to `HF_TOKEN`, or to the token that `hf auth login` stored.
        revision (`str`, *optional*):
            Branch to push to, created if necessary. Defaults to `main`.
        commit_message (`str`, *optional*):
            Defaults to `"Push of astra-trl"`.

    Raises:
        InputError: the folder holds no model, a file holds a secret, the existing repository is public although
            `private` is set, or the Hub refused or could not be reached.
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
    """A push whose files are staged: later changes of the folder do not matter.

    Args:
        card (`Callable`, *optional*):
            Returns the model card for `repo_id` and `transcripts`; defaults to [`model_card`] of the folder.
        stage_in (`Path`, *optional*):
            Folder to stage in. On the disk of `folder`, it keeps weights that are deleted there before the upload.
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
            raise InputError(f"folder '{folder}' does not exist: give a run's output_dir")
        run = run_of(folder)
        refuse_links(run)
        self.folder, self.token, self.revision = folder, token, revision
        if repo_id is None and (theirs := read_config(run).get("hub_model_id")):
            raise InputError(
                f"the run's config.yaml names the repository {theirs}: if that is yours, repeat it: "
                f"--repo_id {shlex.quote(str(theirs))}"
            )
        self.repo_id = repo_id or run.resolve().name
        self.again = again(folder, repo_id)
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
        """Upload the staged files and return the repository's address. It can be called once."""
        failing = explained(
            f"cannot push to {visible(self.repo_id)}", f", then {self.again}; nothing of the run is lost"
        )
        with self._staging, failing, _timeout():
            api = HfApi(token=self.token)
            url, repo_id = make_repo(api, self.repo_id, self.private)
            if self.parts:
                _, transcripts = make_repo(api, f"{repo_id}-transcripts", private=True, repo_type="dataset")
            self._write_cards(repo_id)  # its namespace is known now
            send = partial(api.upload_folder, commit_message=self.commit_message)
            if self.parts:
                data = {"folder_path": self.transcripts, "allow_patterns": TRANSCRIPT_FILES}
                send(repo_id=transcripts, repo_type="dataset", **data)
            if self.revision is not None:
                api.create_branch(repo_id, branch=self.revision, exist_ok=True)
            send(repo_id=repo_id, folder_path=self.model, allow_patterns=MODEL_FILES, revision=self.revision)
        return url

    def _write_cards(self, repo_id: str) -> None:
        transcripts = f"{repo_id}-transcripts" if self.parts else None
        card = self.card(repo_id=repo_id, transcripts=transcripts)
        (self.model / "README.md").write_text(card, encoding="utf-8")
        if self.parts:
            text = transcripts_card(repo_id, self.parts)
            (self.transcripts / "README.md").write_text(text, encoding="utf-8")


def make_repo(api: HfApi, repo_id: str, private: bool, repo_type: str = "model") -> tuple[str, str]:
    """Return the address and full id of a repository, created if necessary. Raises `InputError` if `private` is set
    and it exists and is public."""
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    # create_repo does not change an existing repository, whatever `private` says.
    if private and not api.repo_info(url.repo_id, repo_type=repo_type, timeout=SILENCE_SECONDS).private:
        fix = "choose another --repo_id (hub_model_id), or make that one private"
        if repo_type == "model":
            fix = "push with --public (hub_private_repo=False), or " + fix
        raise InputError(f"nothing was pushed: the {repo_type} {url.repo_id} exists and is public: {fix}")
    return str(url), url.repo_id


def again(folder: Path, repo_id: str | None) -> str:
    """Return the command that pushes a folder."""
    named = "" if repo_id is None else f" --repo_id {shlex.quote(repo_id)}"
    return f"`astra-trl push {shlex.quote(str(folder))}{named}`"


@contextmanager
def explained(failed: str, then: str) -> Iterator[None]:
    """Turn errors of the network and of the Hub into an `InputError` of one line: `failed`, the reason, how to fix it,
    and `then`."""
    try:
        yield
    except InputError:
        raise
    # huggingface_hub and hf_xet raise errors of HTTP and of the connection, RuntimeError for a failed upload and
    # ValueError for an unreadable answer.
    except (_HTTPError, OSError, RuntimeError, ValueError) as error:
        reason, fix = _explain(error)
        raise InputError(f"{failed}: {reason}: {fix}{then}") from error


def _explain(error: BaseException) -> tuple[str, str]:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (_HTTPError, OfflineModeIsEnabled)):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE keeps this process off the network", "unset it (and TRANSFORMERS_OFFLINE)"
    if isinstance(error, HFValidationError):
        return "this is not a valid name of a repository", "give another one as --repo_id"
    # hf_xet gives the status only in its text.
    of_xet = re.search(r"HTTP status \w+ error \((\d{3})", str(error))
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else int(of_xet[1]) if of_xet else None
    if status is not None:
        if status >= 500:
            reason, fix = "the Hub has an internal problem", "wait some minutes"
        else:
            reason, fix = _CAUSES.get(status, ("the Hub refuses", "read its message"))
        message = str(error) if status == 400 else getattr(cause, "server_message", None) or ""
        return f"{reason} ({status}{_one_line(message, ': ')})", fix
    if cause is not None:
        return f"the connection failed{_one_line(str(cause), ' (', ')')}", "check the network, or wait a moment"
    return f"the upload failed{_one_line(str(error), ' (', ')')}", "wait a moment"


def _one_line(text: str, before: str, after: str = "") -> str:
    text = " ".join(visible(text).split())
    return f"{before}{text[:300]}{after}" if text else ""


@contextmanager
def _timeout() -> Iterator[None]:
    client = get_session()
    before = client.timeout
    client.timeout = SILENCE_SECONDS
    try:
        yield
    finally:
        client.timeout = before


def _card_of(folder: Path) -> Callable[..., str]:
    # A trainer's card contains more than a folder without config.yaml.
    run, existing = run_of(folder), folder / "README.md"
    if not (run / "config.yaml").exists() and existing.exists():
        text = existing.read_text(encoding="utf-8")
        if re.search(r"^- astra-trl$", text.partition("\n---\n")[0], re.MULTILINE):
            return lambda **_: Secrets(run).hide_paths(text)
    return partial(model_card, folder)
