"""Pictures in folders, files, tar shards and tables, here or on the Hub."""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from facevae.errors import DataError, ImageError
from facevae.hub_files import HubFile, find_hub_files, is_url
from facevae.images import SUFFIXES
from facevae.tables import SUFFIXES as TABLES
from facevae.tables import File, NoPictures, read_rows, row_names

Source = Path | str
"""A file or folder, or `hf://datasets/owner/name[@revision][/split]`."""
Opener = Callable[[], BinaryIO]

_AT_ONCE = 64  # files that `opened` names together
_LISTED_AT_ONCE = 8  # tables, which on the Hub take a while to answer each
_File = TypeVar("_File", bound=File)


@dataclass(frozen=True)
class Picture:
    """One picture: a file, `size` bytes from `offset` in a tar shard, or `row` of a table.

    `problem` says why one that is there by its name cannot be read whatever is in it.
    """

    path: File
    member: str = ""
    offset: int = 0
    size: int = 0
    row: int | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """Where it is, for people."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def own_name(self) -> str:
        """Its name without folders."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    @property
    def stem(self) -> str:
        """What labels and the held-out split know it by: its own name without a suffix."""
        return PurePosixPath(self.own_name).stem

    def open(self) -> BinaryIO:
        """Its bytes, as an open file; those of a table's row come from `opened` alone.

        Raises `ImageError` where it has a problem, and `OSError`.
        """
        assert isinstance(self.path, Path)  # noqa: S101 - a table's row else
        if self.problem:
            msg = f"{self.name}: {self.problem}"
            raise ImageError(msg)
        if not self.member:
            return self.path.open("rb")
        with self.path.open("rb") as shard:
            shard.seek(self.offset)
            # never more than there is, whatever size a hostile shard declares
            return BytesIO(shard.read(min(self.size, os.fstat(shard.fileno()).st_size)))


def check_there(sources: Iterable[Source]) -> None:
    """Raise `DataError` for a file or folder that is not there; what is not on this machine may be."""
    for source in sources:
        if not is_url(source) and not Path(source).exists():
            raise _missing(source)


def _missing(source: Source) -> DataError:
    return DataError(f"{source}: no such file or folder")


def find_data(sources: Iterable[Source]) -> list[File]:
    """Every file that the sources name, which may be `hf://datasets/…` too. Raises `DataError`."""
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
    """Every file that the sources name: folders are searched for `suffixes`, files are taken.

    Hidden files, and links to folders that they are in, are passed over; pictures that are links
    to nothing are found, so that they are counted. Raises `DataError`.
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
    """Every picture that the sources name. Raises `DataError`, and `ImageError` where there is none."""
    files = find_files(sources, SUFFIXES)
    if not files:
        msg = f"{', '.join(map(str, sources))}: no pictures in there"
        raise ImageError(msg)
    return files


def _distinct(files: Iterable[_File]) -> list[_File]:
    """A file that two sources name counts once."""
    return list({place_of(file): file for file in files}.values())


def place_of(source: File | Source) -> str:
    """Where a file or source is, wherever the command was given."""
    if isinstance(source, HubFile) or is_url(source):
        return str(source)
    return os.path.abspath(source)  # noqa: PTH100 - keeps links


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
            if path.is_dir():  # unlike the entry's own answer, no error for a link to itself
                yield from _walk(path, suffixes, visited)
            elif suffix in suffixes and (
                path.is_file() or (suffix in SUFFIXES and leads_nowhere(path))
            ):
                yield path


def leads_nowhere(path: Path) -> bool:
    """Whether that is a link to nothing, or to itself."""
    return path.is_symlink() and not path.exists()


def list_pictures(files: Iterable[File]) -> list[Picture]:
    """The pictures in `files`, shards and tables opened up, in an order that only names decide.

    Tables of other things are passed over. Raises `DataError` where there is nothing else.
    """
    pictures: list[Picture] = []
    tables: list[File] = []
    for file in files:
        if file.suffix.lower() in TABLES or isinstance(file, HubFile):
            tables.append(file)
        elif file.suffix.lower() == ".tar":
            pictures += _tar_members(file)
        else:
            problem = "a link that leads nowhere" if leads_nowhere(file) else ""
            pictures.append(Picture(file, problem=problem))
    with ThreadPoolExecutor(_LISTED_AT_ONCE) as pool:
        listed = list(pool.map(_table_rows, tables))
    for rows in listed:
        pictures += () if isinstance(rows, NoPictures) else rows
    problems = [rows for rows in listed if isinstance(rows, NoPictures)]
    if problems and not pictures:
        raise problems[0]
    return sorted(pictures, key=lambda p: (p.stem, p.own_name, p.name))


def _table_rows(file: File) -> list[Picture] | NoPictures:
    try:
        return [Picture(file, name, row=row) for row, name in enumerate(row_names(file))]
    except NoPictures as problem:
        return problem


def opened(
    pictures: Sequence[Picture], chosen: Iterable[int]
) -> Iterator[list[tuple[int, Opener]]]:
    """What opens each of the chosen pictures, some at a time; a table's rows are read on the way.

    Files in the order of `chosen`, then tables one after another, from their first row on.
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
                    at = member.offset_data, member.size
                    yield Picture(path, member.name, *at, problem=problem)
            # where tarfile takes what is left of a header for the end of the archive
            if 0 < path.stat().st_size - shard.offset < tarfile.BLOCKSIZE:
                msg = "it is cut off in the middle; copy or download it again"
                raise tarfile.ReadError(msg)
    except (
        *(tarfile.TarError, OSError, ValueError),
        *(MemoryError, OverflowError, RecursionError),  # of sizes and headers that none can have
    ) as error:
        reason = str(error) or type(error).__name__
        msg = f"{path}: cannot be read as an uncompressed tar shard ({reason})"
        raise DataError(msg) from error
