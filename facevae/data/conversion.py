"""Convert pictures to pixels in a folder of the cache, with a thread for each core."""

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from facevae.data.images import Pixels, load_square
from facevae.data.pictures import (
    Opener,
    Picture,
    Source,
    list_pictures,
    no_pictures,
    opened,
    place_of,
)
from facevae.data.tables import File
from facevae.errors import DataError, ImageError, Stopped
from facevae.system.files import clear_half_written, digest, unwritable, write_json
from facevae.system.signals import stop_requests

Progress = Callable[[str, int, int], None]
"""Called with the name of the task, the number of items done, and their total."""

# what `convert_pictures` writes into a cache folder: the sources and size at its beginning, and
# the whole index once the conversion is complete
ABOUT, INDEX = "about.json", "index.json"

_READ, _SKIPPED = 1, 2  # the status of a row; 0 is a picture that was not tried yet
_ROW = np.dtype([("status", "u1"), ("digest", "S16")])
# the file, or the disk or share that it is on, is gone or cannot be read at present
_UNAVAILABLE = frozenset(
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENODEV,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ETIMEDOUT,
    )
)
_Mapped = np.memmap[Any, np.dtype[Any]]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def convert_pictures(
    files: list[File], sources: Sequence[Source], size: int, folder: Path, progress: Progress
) -> None:
    """Convert `files` into `folder`: pixels first, then each row's status, then the index.

    The index makes the folder complete; until then a second call resumes the work. Raises
    `DataError` if there are no pictures, if none of them can be read, or if one has gone.
    """
    clear_half_written(folder)
    pictures = list_pictures(files)
    if not pictures:
        raise DataError(no_pictures(files))
    pixels, rows = _open_arrays(folder, len(pictures), size)
    about = {"sources": [place_of(source) for source in sources], "size": size}
    write_json(folder / ABOUT, about)
    reasons = _fill(pictures, pixels, rows, progress)
    pixels.flush()
    if len(reasons) == len(pictures):
        msg = f"none of the {len(pictures)} pictures can be read; the first: {reasons[0]}"
        raise DataError(msg)
    kept = [row for row in range(len(pictures)) if row not in reasons]
    names = sorted(f"{pictures[row].stem} {rows['digest'][row].decode()}" for row in kept)
    index = {
        **about,
        "created": time.time(),
        "fingerprint": digest(*names)[:16],
        "stems": [picture.stem for picture in pictures],
        "skipped_rows": sorted(reasons),
        "skipped": [reasons[row] for row in sorted(reasons)],
    }
    write_json(folder / INDEX, index)


def _fill(
    pictures: list[Picture],
    pixels: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.void],
    progress: Progress,
) -> dict[int, str]:
    """Convert the rows that are not converted yet; returns the reason for each skipped row.

    Rows that were skipped before are tried again, to learn the reason. So are rows whose pixels do
    not match their digest, because they did not reach the disk before a power cut.
    """
    for row in np.flatnonzero(rows["status"] == _READ).tolist():
        if rows["digest"][row] != _pixels_digest(pixels[row]):
            rows["status"][row] = 0
    pending = np.flatnonzero(rows["status"] != _READ)
    done = len(pictures) - len(pending)
    reasons: dict[int, str] = {}

    def convert(chunk: list[tuple[int, Opener]]) -> list[tuple[int, int, bytes]]:
        results = []
        for row, open_it in chunk:
            try:
                with open_it() as file:
                    pixels[row] = load_square(file, pixels.shape[1], pictures[row].name)
                status, pixels_digest = _READ, _pixels_digest(pixels[row])
            except (ImageError, OSError) as error:
                _check_available(pictures[row], error)
                reasons[row] = _reason(pictures[row], error)
                status, pixels_digest = _SKIPPED, b""
            results.append((row, status, pixels_digest))
        return results

    # Pillow releases the GIL while it decodes and scales, so threads use every core
    with ThreadPoolExecutor(os.cpu_count()) as pool, stop_requests() as stop_signal:
        try:
            for results in _in_order(pool, convert, opened(pictures, pending.tolist())):
                for row, status, pixels_digest in results:
                    rows[row] = (status, pixels_digest)
                done += len(results)
                progress("Converting", done, len(pictures))
                _check_stop(stop_signal())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return reasons


def _check_stop(stop_signal: int) -> None:
    if stop_signal:
        raise Stopped(stop_signal)


def _check_available(picture: Picture, error: Exception) -> None:
    """Raise `DataError` if a picture has gone: only damaged pictures are skipped for good."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in _UNAVAILABLE:
        msg = (
            f"{picture.name}: cannot be read any more ({cause.strerror}); restore the file or "
            "remove it, then run the same command again"
        )
        raise DataError(msg) from error


def _reason(picture: Picture, error: Exception) -> str:
    """Why a picture is skipped: one line that begins with its name."""
    if isinstance(error, OSError):
        return f"{picture.name}: {error.strerror or error}"
    return str(error)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In]
) -> Iterator[_Out]:
    """`pool.map` with a bounded queue, since the items may be large.

    If `items` raises `DataError`, the results of the items before it come first.
    """
    waiting: deque[Future[_Out]] = deque()
    failure = None
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * (os.cpu_count() or 1):
                yield waiting.popleft().result()
    except DataError as error:
        failure = error
    while waiting:
        yield waiting.popleft().result()
    if failure:
        raise failure


def _pixels_digest(pixels: Pixels) -> bytes:
    return digest(pixels.tobytes())[:16].encode()


def _open_arrays(folder: Path, count: int, size: int) -> tuple[_Mapped, _Mapped]:
    """Open the mapped pixels and rows of an interrupted conversion, or new ones full of zeros.

    Raises `FacevaeError` if there is no room for them.
    """
    paths = folder / "pixels.npy", folder / "rows.npy"
    shape = (count, size, size, 3)
    found = _arrays_to_resume(paths, shape)
    try:
        pixels, rows = found or (
            np.lib.format.open_memmap(paths[0], "w+", np.dtype("u1"), shape),
            np.lib.format.open_memmap(paths[1], "w+", _ROW, (count,)),
        )
        _allocate(paths)
    except OSError as error:
        for path in () if found else paths:
            path.unlink(missing_ok=True)
        raise unwritable(folder, error.errno, "--cache-dir") from error
    return pixels, rows


def _arrays_to_resume(
    paths: tuple[Path, Path], shape: tuple[int, ...]
) -> tuple[_Mapped, _Mapped] | None:
    try:
        pixels, rows = (np.lib.format.open_memmap(path, mode="r+") for path in paths)
    except (ValueError, OSError, EOFError):
        return None  # they do not exist, or their creation was interrupted
    fits = pixels.shape == shape and rows.shape == shape[:1] and rows.dtype == _ROW
    return (pixels, rows) if fits and pixels.dtype == np.uint8 else None


def _allocate(paths: Iterable[Path]) -> None:
    """Reserve the disk space, since a write to a mapped page without space kills the process."""
    for path in paths if hasattr(os, "posix_fallocate") else ():
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
