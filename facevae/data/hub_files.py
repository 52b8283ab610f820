"""Parquet files of a data set on the Hugging Face Hub, read remotely without downloading them."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from facevae.errors import DataError
from facevae.system.hub_client import client_errors, hushed, refusal

_PART = r"[A-Za-z0-9_][\w.-]*"  # cannot start with a dot or dash, so that it stays inside the Hub
_URL = re.compile(
    rf"hf://datasets/(?P<repository>{_PART}/{_PART}?)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/.][^/]*|[^/.][^/]*))?(?:/(?P<below>.*?))?/*",
    re.ASCII,
)
_CONVERTED = "refs/convert/parquet"  # where the Hub keeps its own conversion of other formats
_SUFFIX = ".parquet"


class Unreachable(DataError):
    """A request that the Hub did not answer, or only in part."""


@dataclass(frozen=True)
class HubFile:
    """A file of `size` bytes on the Hub; `mark` is the Hub's digest of its content."""

    repository: str
    commit: str
    path: str
    size: int
    mark: str

    def __str__(self) -> str:
        """The file's URL."""
        return f"hf://datasets/{self.repository}@{self.commit[:12]}/{self.path}"

    @property
    def name(self) -> str:
        """File name without folders."""
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        """Suffix of the file name, with the dot."""
        return PurePosixPath(self.path).suffix

    def open(self, ahead_bytes: int) -> io.RawIOBase:
        """Open the file for reading: only the bytes read are fetched, and `ahead_bytes` beyond them."""
        place = f"datasets/{self.repository}@{self.commit}/{self.path}"
        with _answering(str(self)):
            return _Reader(_hub().open(place, "rb", block_size=ahead_bytes), str(self))


@cache
def _hub() -> Any:
    """The Hub as a file system, shared by all threads so that each folder is listed once."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


class _Reader(io.RawIOBase):
    """A file on the Hub that turns every read failure, at whatever level, into `Unreachable`."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _answering(self._name):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def is_url(source: object) -> bool:
    """Whether `source` names data on the Hub."""
    return isinstance(source, str) and source.startswith("hf://")


def repository_of(url: str) -> str:
    """`hf://datasets/owner/name@v1/train` → `owner/name`. Raises `DataError`."""
    return _parts(url)[0]


def find_hub_files(url: str) -> list[HubFile]:
    """Parquet files that `hf://datasets/owner/name[@revision][/split or path]` names.

    Without a split or path, these are the files of the train split if there is one, else all. If
    the repository holds no Parquet files, the Hub's own conversion is used. Raises `DataError`.
    """
    repository, revision, below = _parts(url)
    files = _list(url, repository, revision)
    if not files and revision is None:
        try:
            files = _list(url, repository, _CONVERTED)
        except Unreachable:
            raise
        except DataError:
            files = []  # the Hub has converted nothing
    if not files:
        msg = f"{url}: no Parquet files in there; download it with `hf download --repo-type dataset {repository}` and name its folder"
        raise DataError(msg)
    chosen = _below(files, below) if below else _of_split(files, "train") or files
    if not chosen:
        folders = sorted({str(PurePosixPath(file.path).parent) for file in files})
        names = sorted({file.name for file in files})
        msg = f"{url}: no split or path '{below}'; there are {_few(folders)} with {_few(names)}"
        raise DataError(msg)
    return chosen


def _parts(url: str) -> tuple[str, str | None, str]:
    match = _URL.fullmatch(url)
    if match is None:
        msg = f"{url}: write it as hf://datasets/owner/name, with @revision and /split if need be"
        raise DataError(msg)
    return match["repository"], match["revision"], match["below"] or ""


def _list(url: str, repository: str, revision: str | None) -> list[HubFile]:
    from huggingface_hub import HfApi

    with _answering(url):
        info = HfApi().dataset_info(repository, revision=revision, files_metadata=True)
    return [
        HubFile(
            repository,
            str(info.sha),
            entry.rfilename,
            entry.size or 0,
            (entry.lfs.sha256 if entry.lfs else entry.blob_id) or "",
        )
        for entry in sorted(info.siblings or [], key=lambda entry: entry.rfilename)
        if entry.rfilename.endswith(_SUFFIX)
    ]


def _below(files: list[HubFile], place: str) -> list[HubFile]:
    """Files at a path or below it, else files of the split named by its last part."""
    found = [f for f in files if f.path == place or f.path.startswith(f"{place}/")]
    folder, slash, split = place.rpartition("/")
    return found or _of_split([f for f in files if f.path.startswith(folder + slash)], split)


def _of_split(files: list[HubFile], split: str) -> list[HubFile]:
    """Files with the split's name as a word in their path, as in `data/train-00000-of-00002`."""
    word = re.compile(rf"(?<![^\W_]){re.escape(split)}(?![^\W_])")
    return [file for file in files if word.search(file.path)]


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")  # noqa: PLR2004 - what fits a line


@contextmanager
def _answering(name: str) -> Iterator[None]:
    """Turn errors of the Hub inside the block into `DataError`s of one line that starts with `name`."""
    failures: tuple[type[Exception], ...] = (
        *client_errors(),
        RuntimeError,
    )  # the last by a closed client
    with hushed():
        try:
            yield
        except failures as error:
            if refused := refusal(error, "no such data set on the Hub"):
                raise DataError(f"{name}: {refused}") from error
            raise Unreachable(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"the Hub does not give it ({first_line}); the same command goes on when it does"
