"""Find pictures in folders, files, tar shards and tables, on this machine or on the Hub."""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from facevae.data.hub_files import HubFile, find_hub_files, is_url
from facevae.data.images import SUFFIXES
from facevae.data.tables import SUFFIXES as TABLES
from facevae.data.tables import File, NoPictures, read_rows, row_names
from facevae.errors import DataError, ImageError

IMAGE_FILES = "PNG, JPEG or WebP files"  # as messages name them

Source = Path | str
"""A file or folder, or `hf://datasets/owner/name[@revision][/split]`."""
Opener = Callable[[], BinaryIO]

_AT_ONCE = 64  # files in one part that `opened` yields
_LISTED_AT_ONCE = 8  # tables listed in parallel, because each request to the Hub takes a while
_TAR_ERRORS = (
    tarfile.TarError,
    OSError,
    ValueError,
    # from impossible sizes and headers in damaged archives
    MemoryError,
    OverflowError,
    RecursionError,
)
_File = TypeVar("_File", bound=File)


@dataclass(frozen=True)
class Picture:
    """One picture: a file, `size` bytes at `offset` in a tar shard, or row `row` of a table.

    `member` is its path in the shard, or its name in the table. `problem` is why the picture cannot
    be opened, such as a broken link; empty if there is no such reason.
    """

    path: File
    member: str = ""
    offset: int = 0
    size: int = 0
    row: int | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """The path that messages show, with the member if it is in a shard or table."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def file_name(self) -> str:
        """The name without folders."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    @property
    def stem(self) -> str:
        """The file name without its suffix: the key for labels and for the held-out split."""
        return PurePosixPath(self.file_name).stem

    def open(self) -> BinaryIO:
        """Open the picture's bytes as a binary file; for rows of tables use `opened` instead.

        Raises `ImageError` if the picture has a `problem`, and `OSError`.
        """
        assert isinstance(self.path, Path)  # noqa: S101 - rows of tables never get here
        if self.problem:
            msg = f"{self.name}: {self.problem}"
            raise ImageError(msg)
        if not self.member:
            return self.path.open("rb")
        with self.path.open("rb") as shard:
            shard.seek(self.offset)
            # a hostile shard may declare any size: never read more than the file has
            return BytesIO(shard.read(min(self.size, os.fstat(shard.fileno()).st_size)))


def check_there(sources: Iterable[Source]) -> None:
    """Raise `DataError` for a local file or folder that does not exist; URLs are not checked."""
    for source in sources:
        if not is_url(source) and not Path(source).exists():
            raise _missing(source)


def _missing(source: Source) -> DataError:
    return DataError(f"{source}: no such file or folder")


def no_pictures(
    sources: Iterable[Source | File],
    accepted: str = f"{IMAGE_FILES}, .tar shards or Parquet",
) -> str:
    """The message for sources without any picture, which names the kinds that are `accepted`."""
    named = ", ".join(map(str, sources))
    return f"{named}: no pictures in there; name a folder of {accepted}"


def find_data(sources: Iterable[Source]) -> list[File]:
    """Find the files of local and `hf://datasets/…` sources, each once. Raises `DataError`."""
    found: list[File] = []
    for source in sources:
        if is_url(source):
            found += find_hub_files(str(source))
        else:
            found += find_files([Path(source)])
    return _distinct(found)


def find_files(
    sources: Iterable[Path], suffixes: frozenset[str] = SUFFIXES | {".tar"} | TABLES
) -> list[Path]:
    """Find files: folders are searched for `suffixes`, files that are named outright are taken.

    Hidden files and links that lead back to a folder already visited are skipped. Pictures that are
    broken links are included, so that they are counted. Raises `DataError`.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            found += sorted(_walk(source, suffixes, set()))
        elif source.is_file():
            found.append(source)
        else:
            raise _missing(source)
    return _distinct(found)


def find_photos(sources: Sequence[Path]) -> list[Path]:
    """Find picture files as `find_files` does. Raises `DataError`, or `ImageError` without any."""
    files = find_files(sources, SUFFIXES)
    if not files:
        raise ImageError(no_pictures(sources, IMAGE_FILES))
    return files


def _distinct(files: Iterable[_File]) -> list[_File]:
    """The files without repetitions, for files that several sources name."""
    return list({place_of(file): file for file in files}.values())


def place_of(source: File | Source) -> str:
    """The absolute path of a file or source, or its URL."""
    if isinstance(source, HubFile) or is_url(source):
        return str(source)
    return os.path.abspath(source)  # noqa: PTH100 - does not resolve links


def _walk(folder: Path, suffixes: frozenset[str], visited: set[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in visited:
        return
    visited.add(identity)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            suffix = path.suffix.lower()
            if path.is_dir():  # entry.is_dir() raises for a link to itself
                yield from _walk(path, suffixes, visited)
            elif suffix in suffixes and (
                path.is_file() or (suffix in SUFFIXES and is_broken_link(path))
            ):
                yield path


def is_broken_link(path: Path) -> bool:
    """Whether the path is a link to nothing, or to itself."""
    return path.is_symlink() and not path.exists()


def list_pictures(files: Iterable[File]) -> list[Picture]:
    """List the pictures in files, shards and tables, in an order that depends on names only.

    Tables without pictures are skipped. Raises `DataError` if such tables are all there is.
    """
    pictures: list[Picture] = []
    tables: list[File] = []
    for file in files:
        if file.suffix.lower() in TABLES or isinstance(file, HubFile):
            tables.append(file)
        elif file.suffix.lower() == ".tar":
            pictures += _tar_members(file)
        else:
            problem = "a link that leads nowhere" if is_broken_link(file) else ""
            pictures.append(Picture(file, problem=problem))
    with ThreadPoolExecutor(_LISTED_AT_ONCE) as pool:
        listed = list(pool.map(_table_rows, tables))
    for rows in listed:
        pictures += () if isinstance(rows, NoPictures) else rows
    failures = [rows for rows in listed if isinstance(rows, NoPictures)]
    if failures and not pictures:
        raise failures[0]
    return sorted(pictures, key=lambda p: (p.stem, p.file_name, p.name))


def _table_rows(file: File) -> list[Picture] | NoPictures:
    try:
        return [Picture(file, name, row=row) for row, name in enumerate(row_names(file))]
    except NoPictures as error:
        return error


def opened(
    pictures: Sequence[Picture], chosen: Iterable[int]
) -> Iterator[list[tuple[int, Opener]]]:
    """Yield parts of (index, opener) for the chosen indices; rows of tables are read as needed.

    First come files and members of shards, in the order of `chosen`, then one table after another,
    each in the order of its rows.
    """
    files: list[int] = []
    tables: dict[File, dict[int, int]] = {}
    for i in chosen:
        row = pictures[i].row
        if row is None:
            files.append(i)
        else:
            tables.setdefault(pictures[i].path, {})[row] = i
    for start in range(0, len(files), _AT_ONCE):
        yield [(i, pictures[i].open) for i in files[start : start + _AT_ONCE]]
    for file, rows in tables.items():
        for part in read_rows(file, sorted(rows)):
            yield [
                (rows[row], partial(_in_memory, data, pictures[rows[row]].name))
                for row, data in part
            ]


def _in_memory(data: bytes | str, name: str) -> BinaryIO:
    if isinstance(data, str):
        msg = f"{name}: {data}"
        raise ImageError(msg)
    return BytesIO(data)


def _tar_members(path: Path) -> Iterator[Picture]:
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                name = PurePosixPath(member.name)
                is_picture = name.suffix.lower() in SUFFIXES and not name.name.startswith(".")
                if is_picture and not member.isdir():
                    problem = "" if member.isfile() else "a link or device, which is not followed"
                    yield Picture(
                        path, member.name, member.offset_data, member.size, problem=problem
                    )
            # tarfile takes a header that is cut off for the end of the archive
            if 0 < path.stat().st_size - shard.offset < tarfile.BLOCKSIZE:
                msg = "it is cut off in the middle; copy or download it again"
                raise tarfile.ReadError(msg)
    except _TAR_ERRORS as error:
        reason = str(error) or type(error).__name__
        msg = f"{path}: cannot be read as an uncompressed tar shard ({reason})"
        raise DataError(msg) from error
