"""Pictures → pixels in a folder of the cache, by as many threads as there are cores."""

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

from facevae.errors import DataError, ImageError, Stopped
from facevae.files import clear_half_written, digest, unwritable, write_json
from facevae.images import Pixels, load_square
from facevae.pictures import Opener, Picture, Source, list_pictures, opened, place_of
from facevae.signals import stop_requests
from facevae.tables import File

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of its parts are done, and how many there are."""

_READ, _SKIPPED = 1, 2  # and 0 before it is tried
_ROW = np.dtype([("status", "u1"), ("digest", "S16")])
# what the system says of a file, or of a disk or share with it, that is not there any more, or that
# cannot be read just now
_GONE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENOTCONN, errno.ESTALE),
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT),
)
_Mapped = np.memmap[Any, np.dtype[Any]]
_In = TypeVar("_In")
_Out = TypeVar("_Out")

# of an entry: what it is of, and all of it once it is there
ABOUT, INDEX = "about.json", "index.json"


def convert_pictures(
    files: list[File], sources: Sequence[Source], size: int, folder: Path, progress: Progress
) -> None:
    """Fill `folder`: rows of pixels first, then their status, then the index that completes it."""
    clear_half_written(folder)
    pictures = list_pictures(files)
    if not pictures:
        msg = f"{', '.join(map(str, files))}: no pictures in there"
        raise DataError(msg)
    pixels, rows = _open_arrays(folder, len(pictures), size)  # if there is room
    about = {"sources": [place_of(source) for source in sources], "size": size}
    write_json(folder / ABOUT, about)
    reasons = _fill(pictures, pixels, rows, progress)
    pixels.flush()
    if len(reasons) == len(pictures):
        msg = f"none of the {len(pictures)} pictures can be read; the first: {reasons[0]}"
        raise DataError(msg)
    kept = [row for row in range(len(pictures)) if row not in reasons]
    marks = sorted(f"{pictures[row].stem} {rows['digest'][row].decode()}" for row in kept)
    index = {
        **about,
        "created": time.time(),
        "fingerprint": digest(*marks)[:16],
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

    def convert(chunk: list[tuple[int, Opener]]) -> list[tuple[int, int, bytes]]:
        results = []
        for row, open_it in chunk:
            try:
                with open_it() as file:
                    pixels[row] = load_square(file, pixels.shape[1], pictures[row].name)
                status, mark = _READ, _mark(pixels[row])
            except (ImageError, OSError) as error:
                _check_there(pictures[row], error)
                reasons[row] = _reason(pictures[row], error)
                status, mark = _SKIPPED, b""
            results.append((row, status, mark))
        return results

    # Pillow decodes and scales outside the interpreter's lock: threads use every core
    with ThreadPoolExecutor(os.cpu_count()) as pool, stop_requests() as stop_signal:
        try:
            for results in _in_order(pool, convert, opened(pictures, pending.tolist())):
                for row, status, mark in results:
                    rows[row] = (status, mark)
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


def _check_there(picture: Picture, error: Exception) -> None:
    """Raise `DataError` where a picture is gone: what is left out for good is what is damaged."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in _GONE:
        msg = (
            f"{picture.name}: cannot be read any more ({cause.strerror}); put that right, or take it "
            "away, and run the command again"
        )
        raise DataError(msg) from error


def _reason(picture: Picture, error: Exception) -> str:
    """Why a picture is left out, in one line that begins with its name."""
    if isinstance(error, OSError):
        return f"{picture.name}: {error.strerror or error}"
    return str(error)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In]
) -> Iterator[_Out]:
    """`map`, which takes no more items than the pool will soon need: they may hold much."""
    waiting: deque[Future[_Out]] = deque()
    problem = None
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * (os.cpu_count() or 1):
                yield waiting.popleft().result()
    except DataError as error:
        problem = error  # of reading further; what was read before is not lost
    while waiting:
        yield waiting.popleft().result()
    if problem:
        raise problem


def _mark(pixels: Pixels) -> bytes:
    return digest(pixels.tobytes())[:16].encode()


def _open_arrays(folder: Path, count: int, size: int) -> tuple[_Mapped, _Mapped]:
    """Mapped pixels and rows: those that an interrupted conversion left, or new ones of zeros."""
    paths = folder / "pixels.npy", folder / "rows.npy"
    shape = (count, size, size, 3)
    found = _earlier_arrays(paths, shape)
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


def _earlier_arrays(
    paths: tuple[Path, Path], shape: tuple[int, ...]
) -> tuple[_Mapped, _Mapped] | None:
    try:
        pixels, rows = (np.lib.format.open_memmap(path, mode="r+") for path in paths)
    except (ValueError, OSError, EOFError):
        return None  # there are none, or they were cut off while being made
    is_whole = pixels.shape == shape and rows.shape == shape[:1] and rows.dtype == _ROW
    return (pixels, rows) if is_whole and pixels.dtype == np.uint8 else None


def _allocate(paths: Iterable[Path]) -> None:
    """Have a full disk be an error now, where a mapped page without space would end the process."""
    for path in paths if hasattr(os, "posix_fallocate") else ():
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
