"""One `.safetensors` file is one model; another is a run's state, from which it goes on.

A model file holds weights, configuration, framing, prior, attributes and provenance, and is read
without executing anything. Metadata are JSON strings; tensors are `vae.*`, those of a finish under
`vae.decoder.textured.*`, `prior.*`, `latents.mean` (D,), `latents.covariance`, and with attributes
`directions` and `scorers` (A, D). Of a covariance, and of the factor by which a prior whitens, there is
the lower triangle, by rows (D (D + 1) / 2,).
"""

import dataclasses
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from facevae.attributes import Attribute
from facevae.config import ModelConfig, PriorConfig
from facevae.errors import FacevaeError, ModelError
from facevae.files import replacing
from facevae.formats import FORMAT, UNSAID, has_triangles, init_missing_blocks, stored_name
from facevae.framing import Framing
from facevae.model import VAE
from facevae.prior import Prior, build_prior
from facevae.texture import TEXTURED

_PICKLES = (
    b"PK",
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
)  # zipped, and protocols 2 to 5
_COVARIANCE = "latents.covariance"
_TRIANGLES = (_COVARIANCE, "prior.factor", "prior.whitening.factor")  # symmetric, and triangular
_KEYS = ("format", "config", "prior", "framing", "attributes", "provenance")


@dataclass
class Bundle:
    """All that inference needs.

    `latent_mean` (D,) and `latent_covariance` (D, D) are of the training faces' posterior means, and the latter exactly symmetric.
    `framing` is None where the faces were not framed alike. `directions` and `scorers` (A, D) are
    those of `attributes`, None where there are none. `half` tells how the weights were stored.
    """

    config: ModelConfig
    vae: VAE
    prior: Prior
    prior_config: PriorConfig
    latent_mean: Tensor
    latent_covariance: Tensor
    framing: Framing | None = None
    attributes: list[Attribute] = field(default_factory=list)
    directions: Tensor | None = None
    scorers: Tensor | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    half: bool = False

    def to(self, device: torch.device) -> "Bundle":
        """The same model on `device`, in place."""
        self.vae.to(device)
        self.prior.to(device)
        self.latent_mean = self.latent_mean.to(device)
        self.latent_covariance = self.latent_covariance.to(device)
        self.directions = None if self.directions is None else self.directions.to(device)
        self.scorers = None if self.scorers is None else self.scorers.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """All but the numbers, for JSON: what the model file's metadata are."""
        return {
            "config": self.config.to_dict(),
            "prior": self.prior_config.to_dict(),
            "framing": self.framing.to_dict() if self.framing else None,
            "attributes": [dataclasses.asdict(attribute) for attribute in self.attributes],
            "provenance": self.provenance,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.latent_mean.device

    @property
    def latent_spread(self) -> Tensor:
        """Standard deviations (D,) of the latents of training faces."""
        return self.latent_covariance.diag().clamp_min(0).sqrt()


def save(bundle: Bundle, path: Path, *, half: bool = False) -> None:
    """Write the model atomically; `half` stores float16, half the bytes, faces alike to 1/255."""
    tensors = {
        **{f"vae.{name}": t for name, t in bundle.vae.state_dict().items()},
        **{f"prior.{name}": t for name, t in bundle.prior.state_dict().items()},
        "latents.mean": bundle.latent_mean,
        _COVARIANCE: bundle.latent_covariance,
    }
    tensors |= {name: _lower_triangle(tensors[name]) for name in _TRIANGLES if name in tensors}
    if bundle.directions is not None and bundle.scorers is not None:
        tensors |= {"directions": bundle.directions, "scorers": bundle.scorers}
    stored = {
        name: t.detach().to("cpu", torch.float16 if half and t.is_floating_point() else t.dtype)
        for name, t in tensors.items()
    }
    if too_large := [n for n, t in stored.items() if not t.isfinite().all()]:
        msg = f"{path}: {too_large[0]} holds numbers that cannot be stored; try without --half"
        raise ModelError(msg)
    _write(path, stored, {"format": FORMAT, **bundle.describe()})


def load(path: Path) -> Bundle:
    """Read a model, on the CPU and in float32. Raises `ModelError` for anything but a sound one.

    Memory stays near the file's size: the shapes that the configuration calls for are compared
    with those in the file before anything is allocated.
    """
    with _opened(path) as file:
        metadata = _metadata(path, file.metadata())
        try:
            config = ModelConfig.from_dict(metadata["config"])
            prior_config = PriorConfig.from_dict(metadata["prior"])
            attributes = [Attribute(**values) for values in metadata["attributes"]]
            stored = metadata["framing"]
            framing = None if stored is None else Framing.from_dict(stored)
            provenance = dict(metadata["provenance"])
        except (FacevaeError, TypeError, ValueError) as error:
            msg = f"{path}: its metadata are not sound ({error}); get or train it again"
            raise ModelError(msg) from error
        with torch.device("meta"):
            vae, prior = VAE(config), build_prior(prior_config, config.latent_dim)
            if any(name.startswith(f"vae.{TEXTURED}") for name in file.keys()):  # noqa: SIM118 - no dictionary
                vae.decoder.add_texture()
        expected: dict[str, tuple[int, ...]] = {
            **{f"vae.{name}": tuple(t.shape) for name, t in vae.state_dict().items()},
            **{f"prior.{name}": tuple(t.shape) for name, t in prior.state_dict().items()},
            "latents.mean": (config.latent_dim,),
            _COVARIANCE: (config.latent_dim, config.latent_dim),
        }
        if attributes:
            shape = (len(attributes), config.latent_dim)
            expected |= {"directions": shape, "scorers": shape}
        known, textured = metadata["format"], vae.decoder.textured
        triangles = [n for n in _TRIANGLES if n in expected and has_triangles(known)]
        for name in triangles:
            side = expected[name][0]
            expected[name] = (side * (side + 1) // 2,)
        names = {name: stored_name(known, name) for name in expected}
        wanted = {stored: expected[name] for name, stored in names.items() if stored}
        read = _read_expected(path, file, wanted)
        if textured:  # not before it is known how large all is
            init_missing_blocks(known, textured)
        state = {f"vae.{name}": t for name, t in vae.state_dict().items()}
        tensors = {name: read[stored] if stored else state[name] for name, stored in names.items()}
        for name in triangles:
            tensors[name] = _matrix(tensors[name], symmetric=name == _COVARIANCE)
        half = file.get_slice("latents.mean").get_dtype() == "F16"
    if tensors[_COVARIANCE].diag().min() < 0:
        msg = f"{path}: tensor {_COVARIANCE} holds variances below 0"
        raise ModelError(msg)
    _assign(vae, tensors, "vae.")
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # decodes in half the time
    # buffers that are not stored are computed anew, off the meta device
    prior = build_prior(prior_config, config.latent_dim)
    _assign(prior, tensors, "prior.")
    return Bundle(
        config,
        vae.eval(),
        prior.eval(),
        prior_config,
        tensors["latents.mean"],
        tensors[_COVARIANCE],
        framing,
        attributes,
        tensors.get("directions"),
        tensors.get("scorers"),
        provenance,
        half,
    )


def save_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a run's state atomically, with a checksum of its numbers."""
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    known = {"format": FORMAT, **metadata}
    _write(path, stored, {**known, "checksum": _checksum(stored, known)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `save_state`. Raises `ModelError`."""
    with _opened(path) as file:
        metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dictionary
    # states of before there was a checksum have none
    if "checksum" in metadata and metadata.pop("checksum") != _checksum(tensors, metadata):
        msg = f"{path}: a damaged state"
        raise ModelError(msg)
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> int:
    """CRC-32 of the metadata, and of all tensors in the order of their names."""
    kinds = {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
    checksum = zlib.crc32(json.dumps([metadata, kinds], sort_keys=True).encode())
    for name in sorted(tensors):
        numbers = tensors[name].reshape(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(numbers.data, checksum)
    return checksum


def _write(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> None:
    # clones, since safetensors refuses tensors that share memory
    cloned = {name: t.contiguous().clone() for name, t in tensors.items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    with replacing(path) as temporary:
        save_file(cloned, temporary, metadata=texts)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """`safe_open`, with whatever goes wrong as one line that names the file."""
    if not path.is_file():
        msg = f"{path}: no such model file"
        raise ModelError(msg)
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix.lower() == ".npz":
        msg = f"{path}: holds NumPy's arrays, latents perhaps, and no model; see `facevae reconstruct`"
        raise ModelError(msg)
    # a safetensors file begins with its header's length, which may look like anything
    if start.startswith(_PICKLES) and start[8:] != b"{":
        msg = f"{path}: a pickle (.pt, .pth, .ckpt), which can run code; facevae loads none"
        raise ModelError(msg)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as error:
        msg = f"{path}: not a sound safetensors file ({error})"
        raise ModelError(msg) from error


def _metadata(path: Path, texts: Mapping[str, str] | None) -> dict[str, Any]:
    texts = texts or {}
    if "format" not in texts or "config" not in texts:
        msg = f"{path}: a safetensors file, but not a facevae model; train one with `facevae train`"
        raise ModelError(msg)
    try:
        metadata = {key: json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError) as error:
        msg = f"{path}: its metadata are not JSON ({error})"
        raise ModelError(msg) from error
    known = metadata["format"]
    if not isinstance(known, int) or known not in UNSAID:
        msg = (
            f"{path}: bundle format {known}, this facevae reads {min(UNSAID)} to "
            f"{FORMAT}; upgrade facevae"
        )
        raise ModelError(msg)
    if missing := [key for key in _KEYS if key not in metadata]:
        msg = f"{path}: no {', '.join(missing)} in its metadata"
        raise ModelError(msg)
    for key, unsaid in UNSAID[known].items():
        if isinstance(metadata[key], dict):
            metadata[key] |= unsaid
    return metadata


def _read_expected(
    path: Path,
    file: Any,
    expected: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    names = set(file.keys())
    if problem := set(expected) ^ names:
        which = "missing" if problem - names else "not known"
        msg = f"{path}: tensor {min(problem)} is {which}"
        raise ModelError(msg)
    tensors = {}
    for name, shape in expected.items():
        found = tuple(file.get_slice(name).get_shape())
        if found != shape:
            msg = f"{path}: tensor {name} has shape {found}, its configuration calls for {shape}"
            raise ModelError(msg)
        tensor = file.get_tensor(name)
        if name.endswith(".num_batches_tracked") and tensor.dtype == torch.int64:
            tensors[name] = tensor.clone()
            continue
        if not tensor.is_floating_point():
            msg = f"{path}: tensor {name} holds {tensor.dtype}, not floating-point numbers"
            raise ModelError(msg)
        tensors[name] = tensor.to(torch.float32, copy=True)  # not mapped from the file
        if not tensors[name].isfinite().all():
            msg = f"{path}: tensor {name} holds numbers that are not finite"
            raise ModelError(msg)
    return tensors


def _lower_triangle(matrix: Tensor) -> Tensor:
    """Of a matrix (D, D), by rows (D (D + 1) / 2,)."""
    rows, columns = torch.tril_indices(*matrix.shape)
    return matrix.cpu()[rows, columns]


def _matrix(triangle: Tensor, *, symmetric: bool) -> Tensor:
    """The matrix (D, D) whose lower triangle this is, above which are its mirror image or zeros."""
    side = math.isqrt(2 * len(triangle))
    rows, columns = torch.tril_indices(side, side)
    matrix = triangle.new_zeros(side, side)
    matrix[rows, columns] = triangle
    if symmetric:
        matrix[columns, rows] = triangle
    return matrix


def _assign(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    part = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    module.load_state_dict(part, assign=True)
