"""Files of latents, `.npz` or `.safetensors`, with the model that the latents belong to.

A file holds `latents` (N, D) and, optionally, `names` (N), `model` (its name) and `weights` (a
digest of its VAE), so files of other programs can be read too. Nothing is ever unpickled.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from facevae.errors import Argument, LatentsError
from facevae.system.files import digest, replacing

_FLOATS = ("F16", "BF16", "F32", "F64")
# names may unpack to this many times the file's size, or to this many bytes, if that is more
_MAX_EXPANSION, _ALWAYS_ALLOWED = 16, 32 << 20
_SKIPPED_BYTES = 1 << 20  # at a time
# raised by readers of damaged files
_NOT_LATENTS = (
    KeyError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    RecursionError,
    SyntaxError,
    NotImplementedError,
    OverflowError,
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    # by the header of an array, and by invalid text
    TokenError,
    SystemError,
)


@dataclass(frozen=True)
class LatentsOrigin:
    """The model that latents belong to: its name, and the digest of its VAE."""

    model: str
    weights: str


@dataclass(frozen=True)
class LatentsFile:
    """A file of latents (`num_faces`, `latent_dim`), from which only requested rows are read.

    `names` is empty if the file has none.
    """

    path: Path
    num_faces: int
    latent_dim: int
    names: list[str]

    def name(self, row: int) -> str:
        """The name of the face in a row, or the row's number."""
        return self.names[row] if self.names else str(row)

    def row(self, which: str | None) -> int:
        """Row of the face with that name, else with that number. Raises `LatentsError`.

        None is the only face of a file of one.
        """
        if which is None:
            if self.num_faces == 1:
                return 0
            msg = f"{self.path}: has {self.num_faces:,} faces; choose one, as in {self.path}#0"
            raise LatentsError(msg)
        if which in self.names:
            return self.names.index(which)
        if re.fullmatch(r"[0-9]{1,19}", which) and int(which) < self.num_faces:
            return int(which)
        last = f"{self.num_faces - 1:,}"
        known = f"rows are 0 to {last}" + (f", names like {self.names[0]}" if self.names else "")
        msg = f"{self.path}#{which}: no such face in there; {known}"
        raise LatentsError(msg)

    def read(self, start: int, stop: int, size: int = 64) -> Iterator[Tensor]:
        """Yield rows `start` to `stop`, `size` at a time, float32 (≤ size, D). Raises `LatentsError`."""
        with _opened(self.path) as file:
            for values in file.read(start, stop, size):
                if not values.isfinite().all():
                    row = start + int((~values.isfinite()).any(1).nonzero()[0])
                    msg = f"{self.path}#{row}: holds numbers that are not finite"
                    raise LatentsError(msg)
                yield values
                start += len(values)


def digest_of(vae: nn.Module) -> str:
    """Digest of a VAE's weights, 16 hex digits, which its copy at half precision shares.

    `runs.weights_digest` tells the two apart.
    """
    state = vae.state_dict()
    parts = (t.cpu().half() if t.is_floating_point() else t.cpu() for t in state.values())
    return digest(*(part.contiguous().numpy().tobytes() for part in parts))[:16]


def save_latents(path: Path, names: Sequence[str], latents: Tensor, origin: LatentsOrigin) -> None:
    """Write latents (N, D) and their names atomically, in the format of the suffix."""
    values = latents.detach().cpu().float().contiguous()
    # the name may be a path, which need not be valid text
    model = origin.model.encode(errors="backslashreplace").decode()
    with replacing(path) as temporary:
        if path.suffix.lower() == ".npz":
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    names=np.array(names, dtype=np.str_),
                    latents=values.numpy(),
                    model=np.array(model),
                    weights=np.array(origin.weights),
                )
        else:
            texts = {
                "names": json.dumps(list(names)),
                "model": model,
                "weights": origin.weights,
            }
            save_file({"latents": values}, temporary, metadata=texts)


def open_latents(path: Path, latent_dim: int, weights: str) -> LatentsFile:
    """Open a file of latents of the model with this dimension D and this `digest_of` its VAE.

    Raises `LatentsError` for an invalid file, and for latents of another model.
    """
    with _opened(path) as file:
        if len(file.shape) != 2 or not file.shape[0]:  # noqa: PLR2004 - (N, D)
            msg = f"{path}: latents have shape {file.shape}; need (N, {latent_dim}), N from 1"
            raise LatentsError(msg)
        num_faces, found_dim = file.shape
        model = file.text("model")
        if (found := file.text("weights")) and found != weights:
            which = f"'{model}', or one of that name with other weights" if model else "another one"
            reason = f"{path}: latents of another model ({which}); name theirs with "
            raise LatentsError(reason, Argument("model"))
        if found_dim != latent_dim:
            msg = f"{path}: latents of {found_dim} numbers, but the model's have {latent_dim}"
            raise LatentsError(msg)
        names = file.names()
        if names and len(names) != num_faces:
            msg = f"{path}: {len(names):,} names for {num_faces:,} latents"
            raise LatentsError(msg)
    return LatentsFile(path, num_faces, found_dim, names)


# ---------------------------------------------------------------- the two formats


class _Npz:
    """Arrays in a zip file. Rows are read through each array's own header, without the rest."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self._num_bytes = Path(str(archive.filename)).stat().st_size
        with self._member("latents") as (_, shape, dtype):
            self.shape = shape
            if dtype.kind != "f":
                msg = f"latents hold {dtype}, not floating-point numbers"
                raise ValueError(msg)

    @contextmanager
    def _member(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], "np.dtype[Any]"]]:
        with self.archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            readers = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            if version not in readers:
                msg = f"{name} is stored as .npy version {version}"
                raise ValueError(msg)
            shape, by_columns, dtype = readers[version](file)
            if by_columns and len(shape) > 1:
                msg = f"{name} are stored column by column; store np.ascontiguousarray of them"
                raise ValueError(msg)
            yield file, shape, dtype

    def text(self, name: str) -> str:
        values = self._texts(name)
        return values[0] if values else ""

    def names(self) -> list[str]:
        return self._texts("names")

    def _texts(self, name: str) -> list[str]:
        if f"{name}.npy" not in self.archive.namelist():
            return []
        with self._member(name) as (file, shape, dtype):
            count = int(np.prod(shape, dtype=object))
            if dtype.kind != "U" or len(shape) > 1:
                msg = f"{name} hold {dtype} {shape}, not texts"
                raise ValueError(msg)
            if count * dtype.itemsize > max(_MAX_EXPANSION * self._num_bytes, _ALWAYS_ALLOWED):
                msg = f"{name} unpack to {count * dtype.itemsize:,} bytes, too many for this file"
                raise ValueError(msg)
            data = _exactly(file, count * dtype.itemsize)
        return (
            [str(text) for text in np.frombuffer(data, dtype)] if dtype.itemsize else [""] * count
        )

    def read(self, start: int, stop: int, size: int) -> Iterator[Tensor]:
        with self._member("latents") as (file, shape, dtype):
            row_bytes = shape[1] * dtype.itemsize
            ahead = start * row_bytes
            while ahead:
                ahead -= len(_exactly(file, min(ahead, _SKIPPED_BYTES)))
            for first in range(start, stop, size):
                count = min(size, stop - first)
                values = np.frombuffer(_exactly(file, count * row_bytes), dtype)
                with np.errstate(over="ignore"):  # overflow is refused later as not finite
                    yield torch.from_numpy(values.reshape(count, -1).astype(np.float32))


class _Safetensors:
    """A tensor, read in slices, and texts in the metadata."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.texts: dict[str, str] = file.metadata() or {}
        if "latents" not in file.keys():  # noqa: SIM118 - not a dict
            is_model = "config" in self.texts
            raise KeyError("a model, not latents" if is_model else "no 'latents' in there")
        part = file.get_slice("latents")
        self.shape = tuple(part.get_shape())
        if part.get_dtype() not in _FLOATS:
            msg = f"latents hold {part.get_dtype()}, not floating-point numbers"
            raise ValueError(msg)

    def text(self, name: str) -> str:
        return self.texts.get(name, "")

    def names(self) -> list[str]:
        names = json.loads(self.texts.get("names", "[]"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            msg = "names are not a list of texts"
            raise ValueError(msg)
        return names

    def read(self, start: int, stop: int, size: int) -> Iterator[Tensor]:
        part = self.file.get_slice("latents")
        for first in range(start, stop, size):
            yield part[first : min(first + size, stop)].float()


@contextmanager
def _opened(path: Path) -> Iterator[_Npz | _Safetensors]:
    """Open a file in the format of its suffix. Raises `LatentsError`, also for errors in the block."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                yield _Npz(archive)
        else:
            with path.open("rb"):  # raises clearer errors than safetensors
                pass
            with safe_open(path, framework="pt") as file:
                yield _Safetensors(file)
    except OSError as error:
        msg = f"{path}: {error.strerror or error}"
        raise LatentsError(msg) from error
    except _NOT_LATENTS as error:
        reason = str(error.args[0]) if isinstance(error, KeyError) else str(error)
        msg = f"{path}: cannot be read as latents ({reason.strip() or type(error).__name__})"
        raise LatentsError(msg) from error


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        msg = "it ends too early"
        raise ValueError(msg)
    return data
