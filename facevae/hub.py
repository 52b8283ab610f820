"""A name → a model: the embedded one, a file, a folder, or a repository on the Hugging Face Hub."""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from facevae.bundle import Bundle, load
from facevae.errors import ModelError

DEFAULT = "default"
_FILE = "model.safetensors"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class Located:
    """A model's file, and the name by which a command says which model it used."""

    path: Path
    name: str


def locate(name: str = DEFAULT) -> Located:
    """Where the model of that name is; one on the Hub is downloaded, or taken from its cache.

    `name` is `default` (or empty), a `.safetensors` file, a folder that holds `model.safetensors`,
    or `user/repo[@revision]`. What exists here comes before what may exist on the Hub. Raises
    `ModelError`.
    """
    if name in ("", DEFAULT):
        return Located(_embedded(), DEFAULT)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / _FILE).is_file():
            msg = f"{path}: no {_FILE} in this folder"
            raise ModelError(msg)
        return Located(path / _FILE, name)
    if path.is_file():
        return Located(path, name)
    if _REPOSITORY.fullmatch(name) and path.suffix != ".safetensors":
        return _download(name)
    msg = f"{name}: no such model; name a file, a folder, user/repo[@revision], or 'default'"
    raise ModelError(msg)


def load_model(name: str = DEFAULT) -> tuple[Bundle, Located]:
    """Locate and read a model. Raises `ModelError`."""
    located = locate(name)
    return load(located.path), located


def _embedded() -> Path:
    # installed packages are folders: torch itself does not run from a zip
    return Path(str(resources.files("facevae") / "weights" / "default.safetensors"))


def _download(name: str) -> Located:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # its retries and fallbacks; what fails in the end is said below
    repository, _, revision = name.partition("@")
    try:
        path = Path(hf_hub_download(repository, _FILE, revision=revision or None))
    except GatedRepoError as error:
        problem = "is gated; ask for access on its page and log in with `hf auth login`"
        raise ModelError(f"{name}: {problem}") from error
    except RepositoryNotFoundError as error:
        problem = "neither a file or folder here nor a repository on the Hub (a private one needs `hf auth login`)"
        raise ModelError(f"{name}: {problem}") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name}: the repository has no revision {revision}") from error
    except LocalEntryNotFoundError as error:
        problem = "not here, and the Hub cannot be reached; check the network or name a local file"
        raise ModelError(f"{name}: {problem}") from error
    except EntryNotFoundError as error:
        problem = f"the repository holds no {_FILE}, so it is not a facevae model"
        raise ModelError(f"{name}: {problem}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name}: the Hub did not give it ({first_line})") from error
    # the cache keeps each revision in a folder named by its commit
    return Located(path, f"{repository}@{path.parent.name[:12]}")
