"""Load a data set of faces from a cache of converted pixels, mapped into memory."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facevae.data.conversion import ABOUT, INDEX, Progress, convert_pictures
from facevae.data.hub_files import HubFile, Unreachable
from facevae.data.images import Pixels
from facevae.data.pictures import Source, find_data, is_broken_link, no_pictures, place_of
from facevae.data.tables import File
from facevae.errors import DataError
from facevae.system.files import cache_folder, digest, locked, read_json, size_bytes

Rows = npt.NDArray[np.int64]

HELD_OUT_ONE_IN = 12
_LAYOUT = 2  # version of the cache format: part of the key, so raise it when the pixels change


@dataclass(frozen=True)
class Faces:
    """A converted data set, split into training and held-out faces.

    `pixels` (N, size, size, 3) is mapped from the cache, not loaded. `stems` has a name for each of
    its rows. `train` and `held_out` are row numbers. `skipped` has a line for each picture that
    could not be read. `fingerprint` identifies the names and pixels of the readable faces.
    """

    pixels: Pixels
    stems: list[str]
    train: Rows
    held_out: Rows
    skipped: list[str]
    fingerprint: str

    @property
    def size(self) -> int:
        """The side of a face in pixels."""
        return int(self.pixels.shape[1])


def is_held_out(stem: str) -> bool:
    """Whether a face is held out of all training: one in twelve, chosen by its name alone."""
    return int(digest(stem)[:15], 16) % HELD_OUT_ONE_IN == 0


def faces_cache(cache: Path | None = None) -> Path:
    """The folder in the cache that holds converted data sets."""
    return (cache or cache_folder()) / "faces"


def load_faces(
    sources: Sequence[Source],
    size: int,
    *,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Faces:
    """Load the faces in `sources` at `size` pixels, converting them unless the cache has them.

    Each picture's largest centred square is scaled to `size`. Pictures that cannot be read are
    left out and listed in `skipped`. An interrupted conversion resumes where it stopped. If the Hub
    cannot be reached, the last conversion of the same sources is used. Raises `DataError` if there
    is nothing to train on.
    """
    try:
        files = find_data(sources)
    except Unreachable:
        if earlier := _converted_before(sources, size, cache):
            return _load(earlier)
        raise
    if not files:
        raise DataError(no_pictures(sources))
    folder, is_done = converted(files, size, cache)
    if not is_done:
        with locked(folder, "this cache", "--cache-dir"):
            if not converted(files, size, cache)[1]:  # unless another process just did
                convert_pictures(files, sources, size, folder, progress)
    return _load(folder)


def _load(folder: Path) -> Faces:
    index = read_json(folder / INDEX)
    # copy-on-write, since torch warns about read-only memory; nothing is ever written to it
    pixels = np.load(folder / "pixels.npy", mmap_mode="c")
    return _split(pixels, index)


def cached_faces(fingerprint: str, size: int, cache: Path | None = None) -> Faces | None:
    """Load the faces with this fingerprint at `size` pixels; None if they are not in the cache."""
    for entry in list_cache(cache):
        if not (entry.complete and entry.size == size):
            continue
        if read_json(entry.folder / INDEX).get("fingerprint") == fingerprint:
            with suppress(OSError, ValueError):  # removed or damaged since
                return _load(entry.folder)
    return None


def _converted_before(sources: Sequence[Source], size: int, cache: Path | None) -> Path | None:
    """The folder of the last complete conversion of the same sources, or None.

    The contents of the sources may have changed since.
    """
    places = [place_of(source) for source in sources]
    entries = [e for e in list_cache(cache) if e.complete and (e.sources, e.size) == (places, size)]
    return entries[-1].folder if entries else None


def converted(files: Sequence[File], size: int, cache: Path | None = None) -> tuple[Path, bool]:
    """The cache folder for these files at this size, and whether their conversion is complete."""
    folder = faces_cache(cache) / _cache_key(files, size)
    return folder, (folder / INDEX).exists()


def _cache_key(files: Sequence[File], size: int) -> str:
    parts = [f"{_LAYOUT} {size}"]
    for file in files:
        if isinstance(file, HubFile):
            # without the commit: the same file may be in several
            parts.append(f"{file.repository}/{file.path}\0{file.size}\0{file.mark}")
        else:
            status = file.lstat() if is_broken_link(file) else file.stat()
            parts.append(f"{place_of(file)}\0{status.st_size}\0{status.st_mtime_ns}")
    return digest(*parts)[:20]


def _split(pixels: Pixels, index: dict[str, Any]) -> Faces:
    stems: list[str] = index["stems"]
    kept = np.setdiff1d(np.arange(len(stems)), index["skipped_rows"])
    is_held = np.array([is_held_out(stems[row]) for row in kept])
    if len(kept) == 1:
        msg = "only one face can be read; add more pictures: one face is held out of training"
        raise DataError(msg)
    if not is_held.any() or is_held.all():
        # too few faces for a random split: hold out the one whose name has the lowest hash
        lowest = min(range(len(kept)), key=lambda i: digest(stems[kept[i]]))
        is_held = np.arange(len(kept)) == lowest
    return Faces(
        pixels, stems, kept[~is_held], kept[is_held], index["skipped"], str(index["fingerprint"])
    )


@dataclass(frozen=True)
class CacheEntry:
    """One data set in the cache; `num_faces` is 0 until its conversion is complete."""

    key: str
    folder: Path
    sources: list[str]
    size: int
    num_faces: int
    num_bytes: int
    created: float
    complete: bool


def list_cache(cache: Path | None = None) -> list[CacheEntry]:
    """The data sets in the cache, complete or not, the oldest first."""
    entries = []
    root = faces_cache(cache)
    for folder in root.iterdir() if root.is_dir() else ():
        if not folder.is_dir():
            continue
        is_complete = (folder / INDEX).exists()
        file = folder / (INDEX if is_complete else ABOUT)
        index = read_json(file) if file.exists() else {}
        entries.append(
            CacheEntry(
                folder.name,
                folder,
                index.get("sources", []),
                index.get("size", 0),
                len(index.get("stems", [])) - len(index.get("skipped", [])),
                size_bytes(folder),
                index.get("created", folder.stat().st_mtime),
                is_complete,
            )
        )
    return sorted(entries, key=lambda e: e.created)
