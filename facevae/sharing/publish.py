"""Publishing a model's folder in a repository on the Hugging Face Hub, in one commit."""

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.errors import Argument, FacevaeError, ModelError, UsageError
from facevae.models.hub import CONFIG_FILE, MODEL_FILE, asking
from facevae.sharing.card import ATTRIBUTES, CARD, LICENSE, MORPH, SAMPLES, is_unchanged
from facevae.sharing.package import is_configuration
from facevae.system.files import read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

_DOCUMENTS = (CARD, LICENSE)
_PICTURES = (SAMPLES, MORPH, ATTRIBUTES)
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Published:
    """Outcome of a push; `kept` are files of the repository that were not replaced."""

    url: str
    commit: str
    is_changed: bool
    kept: list[str]


def check_repository(name: str) -> None:
    """Raise `UsageError` unless `name` has the form `user/repo`."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        reason = f"{name}: name the repository as user/repo; a branch goes with "
        raise UsageError(reason, Argument("revision"))


def check_token() -> None:
    """Raise `ModelError` if no Hub token is set."""
    from huggingface_hub import get_token

    if not get_token():
        msg = (
            "publishing needs a token that may write: log in with `hf auth login`, or set HF_TOKEN"
        )
        raise ModelError(msg)


def push(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    branch: str | None = None,
    message: str = "",
    replace: bool = False,
    quiet: bool = False,
) -> Published:
    """Publish what `package.write_package` wrote, in one commit; creates the repository if needed.

    Unless `replace`, it keeps a card and licence that were not written by a push or were changed
    since, and refuses to replace another program's model. Raises `ModelError`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="facevae", library_version=version("facevae"))
    with asking(f"{repository}: ", quiet=quiet):
        info = _open(api, repository, private=private, branch=branch)
        existing = {sibling.rfilename for sibling in info.siblings or ()}
        files = (path for path in folder.rglob("*") if path.is_file())
        sent = {path.relative_to(folder).as_posix(): path for path in files}
        is_own = _is_own(api, repository, info, existing)
        if MODEL_FILE in existing and not (is_own or replace):
            reason = f"{repository}: holds another program's model; name another repository, or "
            raise ModelError(reason, Argument("replace"), " it")
        kept = []
        if not (replace or _may_replace_documents(api, repository, info, existing)):
            kept = [name for name in _DOCUMENTS if name in existing]
            sent = {name: path for name, path in sent.items() if name not in _DOCUMENTS}
        stale = existing.intersection((*_PICTURES, *_DOCUMENTS)) - sent.keys() - set(kept)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, path) for name, path in sorted(sent.items())),
            *(CommitOperationDelete(name) for name in sorted(stale)),
        ]
        commit = api.create_commit(
            repository,
            operations,
            commit_message=message or f"A model, by facevae {version('facevae')}",
            revision=branch,
            parent_commit=info.sha,
        )
    url = f"{api.endpoint}/{repository}" + (f"/tree/{branch}" if branch else "")
    return Published(url, commit.oid, commit.oid != info.sha, kept)


def _open(api: "HfApi", repository: str, *, private: bool, branch: str | None) -> "ModelInfo":
    """The repository at a branch; both are created if missing."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        main = api.model_info(repository, timeout=_TIMEOUT_SECONDS)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(repository, private=private)
        main = api.model_info(repository, timeout=_TIMEOUT_SECONDS)
    else:
        if private and not main.private:
            msg = (
                f"{repository}: is public already; make it private in its settings, or name another"
            )
            raise ModelError(msg)
    if branch is None:
        return main
    try:
        return api.model_info(repository, revision=branch, timeout=_TIMEOUT_SECONDS)
    except RevisionNotFoundError:
        api.create_branch(repository, branch=branch)
        return api.model_info(repository, revision=branch, timeout=_TIMEOUT_SECONDS)


def _is_own(api: "HfApi", repository: str, info: "ModelInfo", existing: set[str]) -> bool:
    """Whether the repository holds a model of facevae, according to its `config.json`."""
    if CONFIG_FILE not in existing:
        return False
    path = api.hf_hub_download(repository, CONFIG_FILE, revision=info.sha)
    try:
        return is_configuration(read_json(Path(path)))
    except FacevaeError:
        return False


def _may_replace_documents(
    api: "HfApi", repository: str, info: "ModelInfo", existing: set[str]
) -> bool:
    """Whether card and licence are missing, or were written by a push and not changed since."""
    if CARD not in existing:
        return LICENSE not in existing
    path = api.hf_hub_download(repository, CARD, revision=info.sha)
    return is_unchanged(Path(path).read_text(encoding="utf-8", errors="replace"))
