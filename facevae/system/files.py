"""Write files atomically, lock folders, choose unused names, and locate the cache."""

import errno
import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

from facevae.errors import FacevaeError, UsageError

_RUST_ERROR = re.compile(r"\(os error (\d+)\)$")  # the end of a message from safetensors


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` atomically on success.

    The temporary name has the same suffix, for writers that choose a format by it. Missing parent
    folders are created. On failure `path` is unchanged and the temporary file is removed. Raises
    `FacevaeError` if the system refuses to write, such as on a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:
        raise unwritable(path, error.errno) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except Exception as error:
        if number := _errno_of_writing(error, temporary):
            raise unwritable(path, number) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _errno_of_writing(error: Exception, file: Path) -> int | None:
    """The errno of a failure to write `file`; None for any other failure."""
    if isinstance(error, OSError):
        return error.errno if error.filename in (None, str(file)) else None
    number = _RUST_ERROR.search(str(error))
    return int(number[1]) if number else None


def unwritable(path: Path, number: int | None, option: str = "-o") -> FacevaeError:
    """The error for a failure to write `path`; `option` is the one that names another place."""
    advice = f"name another place with {option}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space and run the command again"
    reason = os.strerror(number or errno.EIO)
    return FacevaeError(f"{path}: cannot be written there ({reason}); {advice}")


def check_place(path: Path, option: str = "-o") -> None:
    """Raise `FacevaeError` before any work is done if `path`, a file or folder, cannot be written.

    Missing folders are no error, since they will be created. `option` is the one that names another
    place. Failures that only show when writing, such as a full disk, are not found.
    """
    folders = (path, *path.parents) if path.is_dir() else path.parents
    existing = next((folder for folder in folders if os.path.lexists(folder)), Path())
    if not existing.is_dir():
        raise unwritable(path, errno.ENOTDIR, option)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise unwritable(path, errno.EACCES, option)


def clear_half_written(folder: Path) -> None:
    """Remove the temporary files of processes that were killed within `replacing`."""
    for leftover in folder.glob(".*-????????.*"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_text(path: Path, text: str) -> None:
    """Append `text` as UTF-8 to a file, created if missing, and flush it to the disk."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error.errno) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises `FacevaeError` if it cannot be read or is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        msg = f"{path}: cannot be read as JSON ({error}); restore it or remove it"
        raise FacevaeError(msg) from error


def dictionary(value: object) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one: a file's metadata may hold anything."""
    return value if isinstance(value, dict) else {}


def expanded(name: Path | str) -> Path:
    """The path with `~` and `~user` expanded to home folders.

    If there is no such user, it is the name of a file. Raises `UsageError` if there is no such
    file either.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        first = Path(name).parts[0]
        if os.path.lexists(first):
            return Path(name)
        msg = f"{name}: no user is called '{first[1:]}'; write ./{name} if that is a file or folder"
        raise UsageError(msg) from error


def inside(folder: Path, named: object) -> Path:
    """The file in `folder` that an untrusted path names: only the last part of the path counts."""
    return folder / Path(str(named)).name


def unused(path: Path) -> Path:
    """`path`, or the first of `name-1`, `name-2`, … beside it that does not exist."""
    numbered = (path.with_name(f"{path.stem}-{i}{path.suffix}") for i in itertools.count(1))
    return next(p for p in itertools.chain([path], numbered) if not os.path.lexists(p))


def distinct_names(paths: list[str]) -> list[str]:
    """A file stem for each path; repeated stems get a number.

    >>> distinct_names(["a/face.png", "b/face.jpg", "c/other.png"])
    ['face', 'face-2', 'other']
    """
    taken: set[str] = set()
    names = []
    for path in paths:
        stem = Path(path).stem or "face"
        candidates = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
        # compared without case, since on some file systems a.png and A.png are the same file
        name = next(c for c in candidates if c.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def digest(*parts: bytes | str) -> str:
    """SHA-256 of the parts as 64 hex digits; it depends on where one part ends."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


@contextmanager
def locked(folder: Path, what: str, option: str = "-o") -> Iterator[None]:
    """Lock `folder` for this process; the system releases the lock when the process ends.

    Raises `FacevaeError` at once if another process has the lock, or if the folder cannot be
    written; messages call it `what`, and name `option` as the way to choose another place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("a+b")
    except OSError as error:
        raise unwritable(folder, error.errno, option) from error
    with handle:
        try:
            _lock(handle.fileno())
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise
            msg = f"{folder}: {what} is in use by another facevae process; wait for it or stop it"
            raise FacevaeError(msg) from error
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def packaged_weights(name: str) -> Path:
    """The path of a file among the weights in the package."""
    # an installed package is a folder: torch itself does not run from a zip
    return Path(str(resources.files("facevae") / "weights" / name))


def cache_folder() -> Path:
    """The cache folder: `FACEVAE_CACHE` if set, or else the platform's usual place."""
    if chosen := os.environ.get("FACEVAE_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "facevae"


def size_bytes(folder: Path) -> int:
    """The total size of the files in `folder` and its subfolders."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total
