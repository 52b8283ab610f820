"""Pictures of faces → a cache of pixels, mapped into memory."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facevae.conversion import ABOUT, INDEX, Progress, convert_pictures
from facevae.errors import DataError
from facevae.files import cache_folder, digest, locked, read_json, size_bytes
from facevae.hub_files import HubFile, Unreachable
from facevae.images import Pixels
from facevae.pictures import Source, find_data, leads_nowhere, place_of
from facevae.tables import File

Rows = npt.NDArray[np.int64]

HELD_OUT_ONE_IN = 12
_LAYOUT = 2  # of a cache folder; a change of how pixels are made or stored makes another key


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
    sources: Sequence[Source],
    size: int,
    *,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Faces:
    """The faces in `sources` at `size` pixels, converted now or before.

    Each picture's largest centred square is scaled to `size`. What cannot be read is left out and
    listed in `skipped`. An interrupted conversion goes on where it stopped. What was converted
    from the Hub before will do where the Hub cannot be reached. Raises `DataError` when there is
    nothing to train on.
    """
    try:
        files = find_data(sources)
    except Unreachable:
        if earlier := _converted_before(sources, size, cache):
            return _load(earlier)
        raise
    if not files:
        named = ", ".join(map(str, sources))
        msg = f"{named}: no pictures in there; name a folder of PNG, JPEG or WebP files, .tar shards or Parquet"
        raise DataError(msg)
    folder, is_done = converted(files, size, cache)
    if not is_done:
        with locked(folder, "this cache", "--cache-dir"):
            if not converted(files, size, cache)[1]:  # by another, meanwhile
                convert_pictures(files, sources, size, folder, progress)
    return _load(folder)


def _load(folder: Path) -> Faces:
    index = read_json(folder / INDEX)
    # copy-on-write: nobody writes to it, but torch warns of memory that nobody may write to
    pixels = np.load(folder / "pixels.npy", mmap_mode="c")
    return _split(pixels, index)


def cached_faces(fingerprint: str, size: int, cache: Path | None = None) -> Faces | None:
    """The faces of that fingerprint at `size` pixels, if they are still in the cache."""
    for entry in list_cache(cache):
        if not (entry.complete and entry.size == size):
            continue
        if read_json(entry.folder / INDEX).get("fingerprint") == fingerprint:
            with suppress(OSError, ValueError):  # removed or damaged since
                return _load(entry.folder)
    return None


def _converted_before(sources: Sequence[Source], size: int, cache: Path | None) -> Path | None:
    """The last conversion of the same sources, whatever they held then."""
    places = [place_of(source) for source in sources]
    entries = [e for e in list_cache(cache) if e.complete and (e.sources, e.size) == (places, size)]
    return entries[-1].folder if entries else None


def converted(files: Sequence[File], size: int, cache: Path | None = None) -> tuple[Path, bool]:
    """Where these files at this size are kept, converted, and whether they are there yet."""
    folder = faces_cache(cache) / _cache_key(files, size)
    return folder, (folder / INDEX).exists()


def _cache_key(files: Sequence[File], size: int) -> str:
    parts = [f"{_LAYOUT} {size}"]
    for file in files:
        if isinstance(file, HubFile):
            # in whichever commit: it is the same file
            parts.append(f"{file.repository}/{file.path}\0{file.size}\0{file.mark}")
        else:
            status = file.lstat() if leads_nowhere(file) else file.stat()
            parts.append(f"{place_of(file)}\0{status.st_size}\0{status.st_mtime_ns}")
    return digest(*parts)[:20]


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
    """One converted data set in the cache; of one that is not complete no faces count yet."""

    key: str
    folder: Path
    sources: list[str]
    size: int
    num_faces: int
    num_bytes: int
    created: float
    complete: bool


def list_cache(cache: Path | None = None) -> list[CacheEntry]:
    """The converted data sets in the cache, the oldest first."""
    entries = []
    root = faces_cache(cache)
    for folder in root.iterdir() if root.is_dir() else ():
        if not folder.is_dir():
            continue
        is_complete = (folder / INDEX).exists()
        known = folder / (INDEX if is_complete else ABOUT)
        index = read_json(known) if known.exists() else {}
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
