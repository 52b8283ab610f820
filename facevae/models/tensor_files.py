"""Safetensors files: written atomically, and read with every problem as one line.

A model is one such file (`bundle`); so is the saved state of a training stage, here.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from facevae.errors import ModelError
from facevae.system.files import replacing

# first bytes of a pickle: zipped, or of protocols 2 to 5
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically, its metadata as JSON."""
    # cloned, because safetensors refuses tensors that share memory
    cloned = {name: t.contiguous().clone() for name, t in tensors.items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    with replacing(path) as temporary:
        save_file(cloned, temporary, metadata=texts)


def open_tensors(path: Path, label: object) -> Any:
    """An open safetensors file, to be used in a `with` statement. Raises `ModelError`."""
    if not path.is_file():
        msg = f"{label}: no such model file"
        raise ModelError(msg)
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix.lower() == ".npz":
        msg = (
            f"{label}: a NumPy archive, perhaps of latents, not a model; see `facevae reconstruct`"
        )
        raise ModelError(msg)
    # a safetensors file starts with the length of its header, whose bytes may look like a pickle's
    if start.startswith(_PICKLES) and start[8:] != b"{":
        msg = f"{label}: a pickle (.pt, .pth, .ckpt), which can run code; facevae loads none"
        raise ModelError(msg)
    with safetensors_errors(label):
        return safe_open(path, framework="pt")


@contextmanager
def safetensors_errors(label: object) -> Iterator[None]:
    """Turn any error of safetensors inside the block into one `ModelError` that names the file."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as error:
        msg = f"{label}: not a sound safetensors file ({error})"
        raise ModelError(msg) from error


def parse_json(label: object, texts: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a file, decoded from JSON. Raises `ModelError`."""
    try:
        return {key: json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError) as error:
        msg = f"{label}: its metadata are not JSON ({error})"
        raise ModelError(msg) from error


def save_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a training state atomically, with a checksum of its tensors and metadata."""
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_tensors(path, stored, {**metadata, "checksum": _checksum(stored, metadata)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `save_state`. Raises `ModelError` for a damaged file."""
    with open_tensors(path, path) as file:
        metadata = parse_json(path, file.metadata() or {})
        with safetensors_errors(path):
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    # early versions wrote states without a checksum
    if "checksum" in metadata and metadata.pop("checksum") != _checksum(tensors, metadata):
        msg = f"{path}: a damaged state"
        raise ModelError(msg)
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> int:
    """CRC-32 of the metadata, and of all tensors in the order of their names."""
    layout = {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
    checksum = zlib.crc32(json.dumps([metadata, layout], sort_keys=True).encode())
    for name in sorted(tensors):
        data = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        checksum = zlib.crc32(data, checksum)
    return checksum
