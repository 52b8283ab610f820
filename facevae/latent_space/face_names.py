"""How faces are named, `photo.jpg`, `seed:7` or `faces.npz#3`, and files of latents."""

import re
from pathlib import Path

from facevae.config import MAX_SEED
from facevae.errors import Argument, ImageError, LatentsError, UsageError
from facevae.system.files import expanded

_SUFFIXES = (".npz", ".safetensors")
_NAMED = re.compile(
    r"(?P<path>.+\.(?:npz|safetensors))(?:#(?P<which>.*))?", re.IGNORECASE | re.DOTALL
)
_SEED = "seed:"


def is_seed(face: str) -> bool:
    """Whether a face is named by a seed."""
    return face.startswith(_SEED)


def is_photo(face: str) -> bool:
    """Whether a face is a photo, that is neither a seed nor a face in a file of latents."""
    return not is_seed(face) and split_name(face) is None


def split_name(face: str) -> tuple[Path, str | None] | None:
    """`faces.npz#3` → the file and "3"; None for a name that is not a latents file's."""
    match = _NAMED.fullmatch(face)
    if match is None or (match["which"] is not None and Path(face).is_file()):
        return None
    return expanded(match["path"]), match["which"]


def seed_of(face: str) -> int:
    """The seed that names a face. Raises `UsageError`."""
    seed = face.removeprefix(_SEED)
    if not re.fullmatch(r"\d{1,19}", seed) or int(seed) > MAX_SEED:
        file = f"; a file of that name is ./{face}" if Path(seed).suffix else ""
        msg = f"{face}: a seed is a whole number from 0, as in seed:7{file}"
        raise UsageError(msg)
    return int(seed)


def check_face(face: str) -> None:
    """Check a face's name without a model.

    Raises the errors of `latents.read_face` for a bad seed or a missing file.
    """
    if is_seed(face):
        seed_of(face)
    elif stored := split_name(face):
        check_latents_file(stored[0])
    elif not (photo := expanded(face)).exists():
        msg = f"{photo}: no such file"
        raise ImageError(msg)


def check_latents_file(path: Path) -> None:
    """Raise `LatentsError` if a file of latents does not exist."""
    if not path.exists():
        msg = f"{path}: no such file"
        raise LatentsError(msg)


def check_suffix(path: Path) -> None:
    """Raise `UsageError` unless the suffix names a format of latents."""
    if path.suffix.lower() not in _SUFFIXES:
        reason = f": use a name that ends in {' or '.join(_SUFFIXES)}"
        raise UsageError(Argument("latents", path), reason)
