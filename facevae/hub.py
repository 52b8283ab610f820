"""A name → a model: the embedded one, a file, a folder, or a repository on the Hugging Face Hub."""

import hashlib
import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from facevae.bundle import Bundle, load
from facevae.errors import ModelError
from facevae.files import expanded
from facevae.hub_client import client_errors, hushed, refusal

DEFAULT = "default"
MODEL_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_PART = r"[A-Za-z0-9_][\w.-]*"  # begins with no dot or dash, so that it leads nowhere else
_REPOSITORY = re.compile(
    rf"(?P<repository>{_PART}/{_PART})(@(?P<revision>(?!.*\.\.){_PART}(/{_PART})*))?", re.ASCII
)
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Located:
    """A model's file, and the name by which a command says which model it used.

    `commit` is that of a repository on the Hub, else empty.
    """

    path: Path
    name: str
    commit: str = ""


@dataclass(frozen=True)
class Alias:
    """A short name's model: a repository at one commit (40 hex digits), and its file's SHA-256."""

    repository: str
    commit: str
    sha256: str


# official weights; one is listed here once it is published, since a name that is not taken yet
# could be registered by anyone
ALIASES: dict[str, Alias] = {}


def locate(name: str = DEFAULT, *, quiet: bool = False) -> Located:
    """Where the model of that name is; one on the Hub is downloaded, or taken from its cache.

    `name` is `default` (or empty), one of `ALIASES`, a `.safetensors` file, a folder that holds
    `model.safetensors`, or `user/repo[@revision]`. What exists here comes before what may exist on
    the Hub. `quiet` shows no progress. Raises `ModelError`.
    """
    if name in ("", DEFAULT):
        return Located(_embedded(), DEFAULT)
    if name in ALIASES:
        return pull(name, quiet=quiet)
    path = expanded(name)
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            msg = f"{path}: no {MODEL_FILE} in this folder"
            raise ModelError(msg)
        return Located(path / MODEL_FILE, name)
    if path.is_file():
        return Located(path, name)
    if _REPOSITORY.fullmatch(name) and path.suffix != ".safetensors":
        try:
            return pull(name, quiet=quiet)
        except ModelError as error:
            if not path.parent.is_dir():
                raise
            msg = f"{name}: no file of that name in {path.parent}/, and from the Hub: "
            raise ModelError(msg + str(error).removeprefix(f"{name}: ")) from error
    msg = f"{name}: no such model; name a file, a folder, user/repo[@revision]{_listed(DEFAULT)}"
    raise ModelError(msg)


def load_model(name: str = DEFAULT, *, quiet: bool = False) -> tuple[Bundle, Located]:
    """Locate and read a model. Raises `ModelError`."""
    located = locate(name, quiet=quiet)
    return read(located), located


def read(located: Located) -> Bundle:
    """Read a model that was found; one from the Hub is called by its name. Raises `ModelError`."""
    try:
        return load(located.path)
    except ModelError as error:
        if not located.commit:
            raise
        reason = str(error).removeprefix(f"{located.path}: ")
        if _is_damaged(located.path):
            reason = f"its copy in the cache is damaged; {_again(located)}"
        msg = f"{located.name}: {reason}"
        raise ModelError(msg) from error


def pull(name: str, *, force: bool = False, quiet: bool = False) -> Located:
    """The file of `user/repo[@revision]` or of an alias, in the cache of the Hub's client.

    It is downloaded where the cache has none, an older one, or with `force`; where the Hub cannot
    be reached, the cached one is taken. Raises `ModelError`.
    """
    alias = ALIASES.get(name)
    match = _REPOSITORY.fullmatch(f"{alias.repository}@{alias.commit}" if alias else name)
    if not match:
        msg = f"{name}: not on the Hub; name user/repo[@revision]{_listed()}"
        raise ModelError(msg)
    repository, revision = match["repository"], match["revision"]
    with asking(name, quiet=quiet):
        path = _fetch(repository, revision, force=force)
    # the cache keeps each revision in a folder named by its commit
    commit = path.parent.name
    located = Located(path, f"{repository}@{commit[:12]}", commit)
    if alias and _sha256(path) != alias.sha256:
        msg = f"{name}: {located.name} is not the file that facevae knows by this name; "
        raise ModelError(msg + _again(located))
    return located


@contextmanager
def asking(name: str, *, quiet: bool = False) -> Iterator[None]:
    """Turn what the Hub's client raises into one `ModelError` that names what was asked for.

    Inside, the client does not talk of its retries, nor with `quiet` show its progress.
    """
    with hushed(progress=not quiet):
        try:
            yield
        except client_errors() as error:
            msg = f"{name}: {_reason(error)}"
            raise ModelError(msg) from error


def _embedded() -> Path:
    # installed packages are folders: torch itself does not run from a zip
    return Path(str(resources.files("facevae") / "weights" / "default.safetensors"))


def _listed(*more: str) -> str:
    """The short names there are, and `more`, as the end of a list; empty where there are none."""
    return "".join(f" or '{name}'" for name in (*ALIASES, *more))


def _again(located: Located) -> str:
    repository = located.name.partition("@")[0]
    return f"`facevae pull {repository}@{located.commit} --force` downloads it again"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_damaged(path: Path) -> bool:
    """Whether a cached file is no longer what was downloaded; the cache names it by its SHA-256."""
    name = path.resolve().name
    return re.fullmatch(r"[0-9a-f]{64}", name) is not None and _sha256(path) != name


# ---------------------------------------------------------------- the Hub's client


def _fetch(repository: str, revision: str | None, *, force: bool) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    found = try_to_load_from_cache(repository, MODEL_FILE, revision=revision)
    cached = Path(found) if isinstance(found, str) and not force else None
    if cached and cached.parent.name == revision:
        return cached  # what a commit is never changes
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
    """The commit that a revision is now; empty if the Hub does not say, None if it does not answer.

    The client itself would try for minutes. It is asked for the file by which the Hub counts
    downloads.
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
            is_down = error.response is not None and error.response.status_code >= 500  # noqa: PLR2004 - its own fault
            answers.put(None if is_down else "")
        except client_errors():
            answers.put(None)

    # in a thread, since looking up a name or trying many addresses may take longer than any timeout
    Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=patience)
    except Empty:
        return None


def _reason(error: BaseException) -> str:
    """Why the Hub did not do what it was asked for, and what to do, in one line."""
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
        return _reason(error.__cause__)  # the client's "due to the above error"
    message = getattr(error, "server_message", None) or str(error) or type(error).__name__
    message = textwrap.shorten(message, 200, placeholder=" …")
    offline = "the Hub is not asked while HF_HUB_OFFLINE is set"
    unreachable = "the Hub cannot be reached; check the network or name a local file"
    known = {  # the first that fits
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
