"""A model's folder → a repository on the Hugging Face Hub, in one commit."""

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.card import ATTRIBUTES, CARD, LICENSE, MORPH, SAMPLES, is_unchanged
from facevae.errors import FacevaeError, ModelError, UsageError
from facevae.files import read_json
from facevae.hub import CONFIG_FILE, MODEL_FILE, asking
from facevae.package import is_configuration

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

_PAPERS = (CARD, LICENSE)
_PICTURES = (SAMPLES, MORPH, ATTRIBUTES)
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Published:
    """What came of a push; `kept` are files of the repository's own that were left as they are."""

    url: str
    commit: str
    is_changed: bool
    kept: list[str]


def check_repository(name: str) -> None:
    """Raise `UsageError` unless that is `user/repo`."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        msg = f"{name}: name the repository as user/repo; a branch goes with --revision"
        raise UsageError(msg)


def check_token() -> None:
    """Raise `ModelError` where nobody is logged in."""
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
    """Publish what `package.write_package` wrote, in one commit; the repository is made where there is none.

    A card or licence there that was not written by a push, or was changed since, is kept, and
    another program's model refused, unless `replace`. Raises `ModelError`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="facevae", library_version=version("facevae"))
    with asking(repository, quiet=quiet):
        there = _open(api, repository, private=private, branch=branch)
        earlier = {sibling.rfilename for sibling in there.siblings or ()}
        files = (path for path in folder.rglob("*") if path.is_file())
        sent = {path.relative_to(folder).as_posix(): path for path in files}
        is_ours = _is_ours(api, repository, there, earlier)
        if MODEL_FILE in earlier and not (is_ours or replace):
            msg = f"{repository}: holds another program's model; name another repository, or --replace it"
            raise ModelError(msg)
        kept = []
        if not (replace or _may_replace_papers(api, repository, there, earlier)):
            kept = [name for name in _PAPERS if name in earlier]
            sent = {name: path for name, path in sent.items() if name not in _PAPERS}
        stale = earlier.intersection((*_PICTURES, *_PAPERS)) - sent.keys() - set(kept)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, path) for name, path in sorted(sent.items())),
            *(CommitOperationDelete(name) for name in sorted(stale)),
        ]
        done = api.create_commit(
            repository,
            operations,
            commit_message=message or f"A model, by facevae {version('facevae')}",
            revision=branch,
            parent_commit=there.sha,
        )
    url = f"{api.endpoint}/{repository}" + (f"/tree/{branch}" if branch else "")
    return Published(url, done.oid, done.oid != there.sha, kept)


def _open(api: "HfApi", repository: str, *, private: bool, branch: str | None) -> "ModelInfo":
    """The repository at that branch; both are made where they are missing."""
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


def _is_ours(api: "HfApi", repository: str, there: "ModelInfo", earlier: set[str]) -> bool:
    """Whether the model there is one of facevae's, by its `config.json`."""
    if CONFIG_FILE not in earlier:
        return False
    path = api.hf_hub_download(repository, CONFIG_FILE, revision=there.sha)
    try:
        return is_configuration(read_json(Path(path)))
    except FacevaeError:
        return False


def _may_replace_papers(
    api: "HfApi", repository: str, there: "ModelInfo", earlier: set[str]
) -> bool:
    """Whether there are no card and licence, or only such as a push wrote and nobody changed."""
    if CARD not in earlier:
        return LICENSE not in earlier
    path = api.hf_hub_download(repository, CARD, revision=there.sha)
    return is_unchanged(Path(path).read_text(encoding="utf-8", errors="replace"))
