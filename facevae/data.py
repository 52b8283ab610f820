"""A folder, files or tar shards of faces → a cache of pixels."""

import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from facevae.errors import DataError, ImageError
from facevae.files import cache_folder, digest, locked, read_json, size_bytes, write_json
from facevae.images import SUFFIXES, Pixels, load_square

Rows = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of its parts are done, and how many there are."""

HELD_OUT_ONE_IN = 12
_LAYOUT = 2  # of a cache folder; a change of how pixels are made or stored makes another key
_READ, _SKIPPED = 1, 2  # and 0 before it is tried
_ROW = np.dtype([("status", "u1"), ("digest", "S16")])
_CHUNK = 64  # pictures a thread takes at a time
_Mapped = np.memmap[Any, np.dtype[Any]]


# ---------------------------------------------------------------- finding pictures


@dataclass(frozen=True)
class Picture:
    """One picture: a file, or `size` bytes from `offset` in a tar shard."""

    path: Path
    member: str = ""
    offset: int = 0
    size: int = 0

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
        """Its bytes, as an open file."""
        if not self.member:
            return self.path.open("rb")
        with self.path.open("rb") as shard:
            shard.seek(self.offset)
            return BytesIO(shard.read(self.size))


def find_files(
    sources: Iterable[Path], suffixes: frozenset[str] = SUFFIXES | {".tar"}
) -> list[Path]:
    """Every file that the sources name: folders are searched for `suffixes`, files are taken.

    Hidden files and links that lead back into themselves are passed over. Raises `DataError`.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            found += sorted(_walk(source, suffixes, set()))
        elif source.is_file():
            found.append(source)
        else:
            msg = f"{source}: no such file or folder"
            raise DataError(msg)
    # a file that two sources name counts once
    return list({os.path.abspath(path): path for path in found}.values())  # noqa: PTH100 - keeps links


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
            if path.is_dir():  # unlike the entry's own answer, no error for a link to itself
                yield from _walk(path, suffixes, visited)
            elif path.suffix.lower() in suffixes and path.is_file():
                yield path


def list_pictures(files: Iterable[Path]) -> list[Picture]:
    """The pictures in `files`, tar shards opened up, in an order that only names decide."""
    pictures: list[Picture] = []
    for path in files:
        if path.suffix.lower() == ".tar":
            pictures += _tar_members(path)
        else:
            pictures.append(Picture(path))
    return sorted(pictures, key=lambda p: (p.stem, p.own_name, p.name))


def _tar_members(path: Path) -> Iterator[Picture]:
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                name = PurePosixPath(member.name)
                is_picture = name.suffix.lower() in SUFFIXES and not name.name.startswith(".")
                if member.isfile() and is_picture:
                    yield Picture(path, member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        msg = f"{path}: cannot be read as an uncompressed tar shard ({error})"
        raise DataError(msg) from error


# ---------------------------------------------------------------- the cache


@dataclass(frozen=True)
class Faces:
    """Converted faces: `pixels` (N, size, size, 3) is mapped from the cache, not loaded."""

    pixels: Pixels
    stems: list[str]
    train: Rows
    held_out: Rows
    skipped: list[str]
    fingerprint: str

    @property
    def size(self) -> int:
        """Side of the faces in pixels."""
        return int(self.pixels.shape[1])


def is_held_out(stem: str) -> bool:
    """Whether a face of this name never trains anything: one in twelve, wherever it is stored."""
    return int(digest(stem)[:15], 16) % HELD_OUT_ONE_IN == 0


def faces_cache(cache: Path | None = None) -> Path:
    """The folder that holds converted data sets."""
    return (cache or cache_folder()) / "faces"


def load_faces(
    sources: list[Path],
    size: int,
    *,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Faces:
    """The faces in `sources` at `size` pixels, converted now or before.

    Each picture's largest centred square is scaled to `size`. What cannot be read is left out and
    listed in `skipped`. An interrupted conversion goes on where it stopped. Raises `DataError`
    when there is nothing to train on.
    """
    files = find_files(sources)
    if not files:
        named = ", ".join(map(str, sources))
        msg = f"{named}: no pictures in there; name a folder of PNG, JPEG or WebP files, or .tar shards"
        raise DataError(msg)
    folder, is_done = converted(files, size, cache)
    if not is_done:
        with locked(folder, "this cache"):
            if not converted(files, size, cache)[1]:  # by another, meanwhile
                _convert(files, sources, size, folder, progress)
    index = read_json(folder / "index.json")
    # copy-on-write: nobody writes to it, but torch warns of memory that nobody may write to
    pixels = np.load(folder / "pixels.npy", mmap_mode="c")
    return _split(pixels, index)


def converted(files: list[Path], size: int, cache: Path | None = None) -> tuple[Path, bool]:
    """Where these files at this size are kept, converted, and whether they are there yet."""
    folder = faces_cache(cache) / _cache_key(files, size)
    return folder, (folder / "index.json").exists()


def _cache_key(files: list[Path], size: int) -> str:
    parts = [f"{_LAYOUT} {size}"]
    for path in files:
        status = path.stat()
        place = os.path.abspath(path)  # noqa: PTH100 - keeps links
        parts.append(f"{place}\0{status.st_size}\0{status.st_mtime_ns}")
    return digest(*parts)[:20]


def _convert(
    files: list[Path], sources: list[Path], size: int, folder: Path, progress: Progress
) -> None:
    """Fill `folder`: rows of pixels first, then their status, then the index that completes it."""
    pictures = list_pictures(files)
    if not pictures:
        msg = f"{', '.join(map(str, files))}: no pictures in there"
        raise DataError(msg)
    pixels, rows = _open_arrays(folder, len(pictures), size)
    reasons = _fill(pictures, pixels, rows, progress)
    pixels.flush()
    if len(reasons) == len(pictures):
        msg = f"none of the {len(pictures)} pictures can be read; the first: {reasons[0]}"
        raise DataError(msg)
    kept = [row for row in range(len(pictures)) if row not in reasons]
    marks = sorted(f"{pictures[row].stem} {rows['digest'][row].decode()}" for row in kept)
    index = {
        "sources": [os.path.abspath(source) for source in sources],  # noqa: PTH100 - keeps links
        "size": size,
        "created": time.time(),
        "fingerprint": digest(*marks)[:16],
        "stems": [picture.stem for picture in pictures],
        "skipped_rows": sorted(reasons),
        "skipped": [reasons[row] for row in sorted(reasons)],
    }
    write_json(folder / "index.json", index)


def _fill(
    pictures: list[Picture],
    pixels: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.void],
    progress: Progress,
) -> dict[int, str]:
    """Convert what is not converted yet; returns why rows were skipped.

    What was skipped before is tried again, so that its reason is known; so is what did not reach
    the disk before a power cut.
    """
    for row in np.flatnonzero(rows["status"] == _READ).tolist():
        if rows["digest"][row] != _mark(pixels[row]):
            rows["status"][row] = 0
    pending = np.flatnonzero(rows["status"] != _READ)
    done = len(pictures) - len(pending)
    reasons: dict[int, str] = {}

    def convert(chunk: Rows) -> list[tuple[int, int, bytes]]:
        results = []
        for row in chunk.tolist():
            try:
                with pictures[row].open() as file:
                    pixels[row] = load_square(file, pixels.shape[1], pictures[row].name)
                status, mark = _READ, _mark(pixels[row])
            except (ImageError, OSError) as error:
                reasons[row] = str(error)
                status, mark = _SKIPPED, b""
            results.append((row, status, mark))
        return results

    # Pillow decodes and scales outside the interpreter's lock: threads use every core
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = [pending[i : i + _CHUNK] for i in range(0, len(pending), _CHUNK)]
        try:
            for results in pool.map(convert, chunks):
                for row, status, mark in results:
                    rows[row] = (status, mark)
                done += len(results)
                progress("Converting", done, len(pictures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return reasons


def _mark(pixels: Pixels) -> bytes:
    return digest(pixels.tobytes())[:16].encode()


def _open_arrays(folder: Path, count: int, size: int) -> tuple[_Mapped, _Mapped]:
    """Mapped pixels and rows: those that an interrupted conversion left, or new ones of zeros."""
    paths = folder / "pixels.npy", folder / "rows.npy"
    try:
        pixels, rows = (np.lib.format.open_memmap(path, mode="r+") for path in paths)
        if pixels.shape == (count, size, size, 3) and rows.dtype == _ROW:
            return pixels, rows
    except (ValueError, OSError, EOFError):
        pass  # there are none, or they were cut off while being made
    pixels = np.lib.format.open_memmap(paths[0], "w+", np.dtype("u1"), (count, size, size, 3))
    if hasattr(os, "posix_fallocate"):
        # a full disk is an error now, where a mapped page without space would end the process
        with paths[0].open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, paths[0].stat().st_size)
    return pixels, np.lib.format.open_memmap(paths[1], "w+", _ROW, (count,))


def _split(pixels: Pixels, index: dict[str, Any]) -> Faces:
    stems: list[str] = index["stems"]
    kept = np.setdiff1d(np.arange(len(stems)), index["skipped_rows"])
    held = np.array([is_held_out(stems[row]) for row in kept])
    if len(kept) == 1:
        msg = "only one face can be read; at least two are needed, one of them held out"
        raise DataError(msg)
    if not held.any() or held.all():
        # too few faces for chance: the one whose name hashes lowest is held out
        lowest = min(range(len(kept)), key=lambda i: digest(stems[kept[i]]))
        held = np.arange(len(kept)) == lowest
    return Faces(
        pixels, stems, kept[~held], kept[held], index["skipped"], str(index["fingerprint"])
    )


@dataclass(frozen=True)
class CacheEntry:
    """One converted data set in the cache; `sources` is empty while it is unfinished."""

    key: str
    folder: Path
    sources: list[str]
    size: int
    num_faces: int
    num_bytes: int
    created: float


def list_cache(cache: Path | None = None) -> list[CacheEntry]:
    """The converted data sets in the cache, the oldest first."""
    entries = []
    root = faces_cache(cache)
    for folder in root.iterdir() if root.is_dir() else ():
        if not folder.is_dir():
            continue
        index = read_json(folder / "index.json") if (folder / "index.json").exists() else {}
        entries.append(
            CacheEntry(
                folder.name,
                folder,
                index.get("sources", []),
                index.get("size", 0),
                len(index.get("stems", [])) - len(index.get("skipped", [])),
                size_bytes(folder),
                index.get("created", folder.stat().st_mtime),
            )
        )
    return sorted(entries, key=lambda e: e.created)
