"""Find models by name: the packaged one, a file, a folder, or a repository on the Hub."""

import hashlib
import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from facevae.errors import ModelError
from facevae.system.files import expanded, packaged_weights
from facevae.system.hub_client import client_errors, hushed, refusal

DEFAULT = "default"
MODEL_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_PART = r"[A-Za-z0-9_][\w.-]*"  # cannot start with a dot or dash, so that it stays inside the Hub
_REPOSITORY = re.compile(
    rf"(?P<repository>{_PART}/{_PART})(@(?P<revision>(?!.*\.\.){_PART}(/{_PART})*))?", re.ASCII
)
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Located:
    """A model's file, and the name by which commands report it.

    `commit` is the commit of a repository on the Hub, and empty for a local file.
    """

    path: Path
    name: str
    commit: str = ""


@dataclass(frozen=True)
class Alias:
    """What a short name stands for: a repository, a commit (40 hex digits), the file's SHA-256."""

    repository: str
    commit: str
    sha256: str


# official weights; listed here only once they are published, because anyone could register a
# repository name that is still free
ALIASES: dict[str, Alias] = {}


def locate(name: str = DEFAULT, *, quiet: bool = False) -> Located:
    """Find the file of a model; one on the Hub is downloaded unless it is cached.

    `name` is `default` (or empty), one of `ALIASES`, a `.safetensors` file, a folder that holds
    `model.safetensors`, or `user/repo[@revision]`. Local files and folders take precedence over
    repositories on the Hub. `quiet` hides the progress. Raises `ModelError`.
    """
    if name in ("", DEFAULT):
        return Located(packaged_weights("default.safetensors"), DEFAULT)
    if name in ALIASES:
        return pull(name, quiet=quiet)
    path = expanded(name)
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            msg = (
                f"{path}: no {MODEL_FILE} in this folder; name a model file, or the folder of a run "
                "that has saved its model"
            )
            raise ModelError(msg)
        return Located(path / MODEL_FILE, name)
    if path.is_file():
        return Located(path, name)
    if _REPOSITORY.fullmatch(name) and path.suffix != ".safetensors":
        # it may also be a misspelt file name
        missing = f"no file of that name in {path.parent}/, and from the Hub: "
        return _pull(name, quiet=quiet, missing=missing if path.parent.is_dir() else "")
    msg = f"{name}: no such model; name a file, a folder, user/repo[@revision]{_listed(DEFAULT)}"
    raise ModelError(msg)


def pull(name: str, *, force: bool = False, quiet: bool = False) -> Located:
    """Cached file of `user/repo[@revision]` or of an alias, downloaded if need be.

    It is downloaded if the cache of the Hub's client has no copy or an outdated one, or with
    `force`. If the Hub cannot be reached, the cached copy is used. Raises `ModelError`.
    """
    return _pull(name, force=force, quiet=quiet)


def _pull(name: str, *, force: bool = False, quiet: bool = False, missing: str = "") -> Located:
    """`pull`, with `missing` put before the reason if the Hub does not provide the file."""
    alias = ALIASES.get(name)
    match = _REPOSITORY.fullmatch(f"{alias.repository}@{alias.commit}" if alias else name)
    if not match:
        msg = f"{name}: not on the Hub; name user/repo[@revision]{_listed()}"
        raise ModelError(msg)
    repository, revision = match["repository"], match["revision"]
    with asking(f"{name}: {missing}", quiet=quiet):
        path = _fetch(repository, revision, force=force)
    # the cache keeps each revision in a folder named after its commit
    commit = path.parent.name
    located = Located(path, f"{repository}@{commit[:12]}", commit)
    if alias and _sha256(path) != alias.sha256:
        msg = f"{name}: {located.name} is not the file that facevae knows by this name; "
        raise ModelError(msg + _again(located))
    return located


@contextmanager
def asking(prefix: str, *, quiet: bool = False) -> Iterator[None]:
    """Turn errors of the Hub's client inside the block into `ModelError`: `prefix` and the reason.

    Inside, the client logs no retries, and with `quiet` shows no progress.
    """
    with hushed(progress=not quiet):
        try:
            yield
        except client_errors() as error:
            raise ModelError(prefix, _reason(error)) from error


def damage_message(located: Located) -> str:
    """A message if a model's copy in the cache is damaged, else empty; reads the whole file.

    The cache names a copy by the SHA-256 of what was downloaded.
    """
    digest = located.path.resolve().name
    if not located.commit or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return ""
    if _sha256(located.path) == digest:
        return ""
    return f"{located.name}: its copy in the cache is damaged; {_again(located)}"


def _listed(*more: str) -> str:
    """The aliases and `more` as the end of a list in a message; empty if there are none."""
    return "".join(f" or '{name}'" for name in (*ALIASES, *more))


def _again(located: Located) -> str:
    repository = located.name.partition("@")[0]
    return f"`facevae pull {repository}@{located.commit} --force` downloads it again"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- the Hub's client


def _fetch(repository: str, revision: str | None, *, force: bool) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    found = try_to_load_from_cache(repository, MODEL_FILE, revision=revision)
    cached = Path(found) if isinstance(found, str) and not force else None
    if cached and cached.parent.name == revision:
        return cached  # the content of a commit never changes
    commit = _ask(repository, revision)
    if cached and cached.parent.name == commit:
        return cached
    if commit is None and force:
        msg = "cannot be downloaded again"
        raise LocalEntryNotFoundError(msg)
    return Path(
        hf_hub_download(
            repository,
            MODEL_FILE,
            revision=revision,
            force_download=force,
            local_files_only=commit is None,
            library_name="facevae",
            library_version=version("facevae"),
        )
    )


def _ask(repository: str, revision: str | None) -> str | None:
    """Current commit of a revision; empty if the Hub does not say, None if it does not answer.

    Gives up after seconds, where the client itself would retry for minutes. The request is for the
    file by which the Hub counts downloads.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    url = hf_hub_url(repository, CONFIG_FILE, revision=revision)
    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _PATIENCE_SECONDS)
    answers: SimpleQueue[str | None] = SimpleQueue()

    def ask() -> None:
        try:
            metadata = get_hf_file_metadata(url, timeout=patience)
            answers.put(metadata.commit_hash or "")
        except HfHubHTTPError as error:
            is_down = error.response is not None and error.response.status_code >= 500  # noqa: PLR2004 - server errors
            answers.put(None if is_down else "")
        except client_errors():
            answers.put(None)

    # in a thread, because resolving a name or trying many addresses may outlast the timeout
    Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=patience)
    except Empty:
        return None


def _reason(error: BaseException) -> str:
    """Why a request to the Hub failed, and what to do about it, in one line."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if refused := refusal(error, "no such model here, and no such repository on the Hub"):
        return refused
    if type(error) is ValueError and isinstance(error.__cause__, client_errors()):
        return _reason(error.__cause__)  # the client wraps it: "due to the above error"
    message = getattr(error, "server_message", None) or str(error) or type(error).__name__
    message = textwrap.shorten(message, 200, placeholder=" …")
    offline = "the Hub is not asked while HF_HUB_OFFLINE is set"
    unreachable = "the Hub cannot be reached; check the network or name a local file"
    known = {  # the first match counts
        LocalEntryNotFoundError: f"not here, and {offline if HF_HUB_OFFLINE else unreachable}",
        EntryNotFoundError: f"the repository holds no {MODEL_FILE}, so it is not a facevae model",
        OfflineModeIsEnabled: offline,
        HfHubHTTPError: f"the Hub refuses ({message})",
        ValueError: message,
    }
    for kind, reason in known.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}; HF_HOME names another place for the cache"
    return f"the Hub cannot be reached ({message}); check the network"
