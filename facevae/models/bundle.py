"""Reading and writing model files, in the safetensors format.

A model file holds weights, configuration, framing, prior, attributes and provenance. Reading it
executes no code. The metadata are JSON strings. The tensors are `vae.*` (those of a finished
decoder's texture under `vae.decoder.textured.*`), `prior.*`, `latents.mean` (D,),
`latents.covariance` where the prior is N(0, I) (any other prior has a covariance itself), and, for
a model with attributes, `directions` and `scorers` (A, D). If directions vary along axes, there are
`axes.rows` (K, D), `axes.offsets` (K,) and `interactions` (A, K, D) too. The covariance and the
prior's Cholesky factor are stored as their lower triangles, row by row (D (D + 1) / 2,).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from facevae.attributes.directions import Attribute
from facevae.attributes.interactions import Axes, no_axes
from facevae.config import ModelConfig, PriorConfig
from facevae.errors import FacevaeError, ModelError
from facevae.faces.framing import Framing
from facevae.models.bundle_tensors import (
    AXES,
    COVARIANCE,
    INTERACTIONS,
    OFFSETS,
    TRIANGLES,
    check_covariance,
    lower_triangle,
    matrix_of,
    read_tensors,
    stored_type,
    tensor_shapes,
)
from facevae.models.formats import (
    FORMAT,
    UNSAID,
    has_covariance,
    has_triangles,
    init_missing_blocks,
    stored_name,
)
from facevae.models.tensor_files import open_tensors, parse_json, write_tensors
from facevae.networks.prior import Prior, build_prior, fitted_gaussian
from facevae.networks.texture import TEXTURED
from facevae.networks.vae import VAE

_KEYS = ("format", "config", "prior", "framing", "attributes", "provenance")


class Provenance(TypedDict, total=False):
    """What a model file says about the training that made it. Every key may be missing.

    The types hold for files that facevae wrote; other files may hold anything under these keys.
    """

    facevae: str  # version
    torch: str  # version
    preset: str
    init: str  # name of the model that the training started from
    sources: list[str]  # names of the data
    num_train: int
    num_held_out: int
    fingerprint: str  # of the faces
    labels: str | None  # fingerprint of the labels that the attributes were learned from
    terms: str  # what others may do with the weights
    train: dict[str, Any]  # see `TrainConfig.to_dict`
    device: str  # device type, such as "cpu"
    epochs: int  # passes of the network over the training faces
    images_seen: int  # by the network
    stage_seconds: dict[str, float | None]  # time budget by stage; None if epochs were the budget
    finish: dict[str, Any]  # epochs, weight, perceptual; only if the decoder has been finished
    complete: bool  # only if the run has ended
    figures: dict[str, float]  # of the held-out faces; see `snapshots.measure`
    skipped_steps: int
    train_seconds: float | None


@dataclass
class Bundle:
    """Everything that inference needs.

    `latent_mean` (D,) and `mean_covariance` (D, D) are moments of the posterior means of the training
    faces; the covariance is exactly symmetric, and None if a fitted prior has one (see
    `latent_covariance` and `set_prior`). `framing` is None if the training faces did not share one
    framing. `directions` and `scorers` (A, D), and the `interactions` (A, K, D) with the `axes`,
    belong to `attributes`; these three tensors are None if there are no attributes. `half` says
    whether the file stored the weights as float16.
    """

    config: ModelConfig
    vae: VAE
    prior: Prior
    prior_config: PriorConfig
    latent_mean: Tensor
    mean_covariance: Tensor | None
    axes: Axes
    framing: Framing | None = None
    attributes: list[Attribute] = field(default_factory=list)
    directions: Tensor | None = None
    scorers: Tensor | None = None
    interactions: Tensor | None = None
    provenance: Provenance = field(default_factory=Provenance)
    half: bool = False

    def to(self, device: torch.device) -> "Bundle":
        """Move the model to `device`, in place; returns it."""
        self.vae.to(device)
        self.prior.to(device)
        self.latent_mean = self.latent_mean.to(device)
        self.axes = self.axes.to(device)
        for name in ("mean_covariance", "directions", "scorers", "interactions"):
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor.to(device))
        return self

    def describe(self) -> dict[str, Any]:
        """The model without its tensors, as JSON values: the metadata of its file."""
        return {
            "config": self.config.to_dict(),
            "prior": self.prior_config.to_dict(),
            "framing": self.framing.to_dict() if self.framing else None,
            "attributes": [dataclasses.asdict(attribute) for attribute in self.attributes],
            "provenance": self.provenance,
        }

    def set_prior(self, prior: Prior, config: PriorConfig) -> None:
        """Replace the prior, in place; the covariance of the latents is not lost with it."""
        covariance = self.latent_covariance
        self.prior, self.prior_config = prior, config
        self.mean_covariance = None if fitted_gaussian(prior) else covariance

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.latent_mean.device

    @property
    def latent_covariance(self) -> Tensor:
        """Covariance (D, D) of the training faces' latents, exactly symmetric.

        It is the fitted prior's, of draws from the posteriors, or else that of the posterior means.
        """
        if fitted := fitted_gaussian(self.prior):
            return fitted.covariance
        assert self.mean_covariance is not None  # noqa: S101 - needed with N(0, I)
        return self.mean_covariance

    @property
    def latent_spread(self) -> Tensor:
        """Standard deviations (D,) of the training faces' latents."""
        return self.latent_covariance.diag().clamp_min(0).sqrt()


def save(bundle: Bundle, path: Path, *, half: bool = False) -> None:
    """Write the model atomically.

    `half` stores float16: half the bytes, and decoded faces that differ by at most 1/255. Interactions,
    which are known to a tenth at best, are stored as float8 then, to 6 % or 0.001. Raises
    `ModelError` for numbers that are not finite, or too large for these types.
    """
    tensors = {
        **{f"vae.{name}": t for name, t in bundle.vae.state_dict().items()},
        **{f"prior.{name}": t for name, t in bundle.prior.state_dict().items()},
        "latents.mean": bundle.latent_mean,
    }
    if not fitted_gaussian(bundle.prior):
        tensors[COVARIANCE] = bundle.latent_covariance
    tensors |= {name: lower_triangle(tensors[name]) for name in TRIANGLES if name in tensors}
    if bundle.directions is not None and bundle.scorers is not None:
        tensors |= {"directions": bundle.directions, "scorers": bundle.scorers}
        if bundle.interactions is not None and len(bundle.axes):
            tensors[INTERACTIONS] = bundle.interactions
            tensors |= {AXES: bundle.axes.rows, OFFSETS: bundle.axes.offsets}
    stored = {}
    for name, tensor in tensors.items():
        dtype = stored_type(name, tensor, half=half)
        tensor = tensor.detach().cpu()  # noqa: PLW2901 - not every device has float8
        if dtype.is_floating_point and not (tensor.abs() <= torch.finfo(dtype).max).all():
            msg = f"{path}: {name} holds numbers that cannot be stored; try without --half"
            raise ModelError(msg)
        stored[name] = tensor.to(dtype)
    write_tensors(path, stored, {"format": FORMAT, **bundle.describe()})


def load(path: Path, label: object = None) -> Bundle:
    """Read a model, on the CPU and in float32. Raises `ModelError` for anything but a sound one.

    Memory use stays near the file's size: the shapes that the configuration calls for are compared
    with those in the file before anything is allocated.

    Messages call the model `label`, or by its path if that is None.
    """
    label = path if label is None else label
    with open_tensors(path, label) as file:
        metadata = _parse_metadata(label, file.metadata())
        try:
            config = ModelConfig.from_dict(metadata["config"])
            prior_config = PriorConfig.from_dict(metadata["prior"])
            attributes = [Attribute(**values) for values in metadata["attributes"]]
            stored = metadata["framing"]
            framing = None if stored is None else Framing.from_dict(stored)
            provenance = cast("Provenance", dict(metadata["provenance"]))
        except (FacevaeError, TypeError, ValueError, OverflowError) as error:
            msg = f"{label}: its metadata are not sound ({error}); get or train it again"
            raise ModelError(msg) from error
        with torch.device("meta"):
            vae, prior = VAE(config), build_prior(prior_config, config.latent_dim)
            if any(name.startswith(f"vae.{TEXTURED}") for name in file.keys()):  # noqa: SIM118 - not a dict
                vae.decoder.add_texture()
        version, textured = metadata["format"], vae.decoder.textured
        shapes = tensor_shapes(file, vae, prior, len(attributes))
        if has_covariance(version):
            shapes[COVARIANCE] = (config.latent_dim, config.latent_dim)
        triangles = [n for n in TRIANGLES if n in shapes and has_triangles(version)]
        for name in triangles:
            side = shapes[name][0]
            shapes[name] = (side * (side + 1) // 2,)
        names = {name: stored_name(version, name) for name in shapes}
        stored_shapes = {stored: shapes[name] for name, stored in names.items() if stored}
        read = read_tensors(label, file, stored_shapes)
        half = file.get_slice("latents.mean").get_dtype() == "F16"
    if textured:  # only now that the file is known to be as large as its configuration says
        init_missing_blocks(version, textured)
    state = {f"vae.{name}": t for name, t in vae.state_dict().items()}
    tensors = {name: read[stored] if stored else state[name] for name, stored in names.items()}
    for name in triangles:
        tensors[name] = matrix_of(tensors[name], symmetric=name == COVARIANCE)
    _assign(vae, tensors, "vae.")
    # this memory format halves the time to decode
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # built again off the meta device, which computes the buffers that are not stored
    prior = build_prior(prior_config, config.latent_dim)
    _assign(prior, tensors, "prior.")
    covariance = None if fitted_gaussian(prior) else tensors[COVARIANCE]
    check_covariance(label, prior, covariance)
    axes = no_axes(config.latent_dim)
    if AXES in tensors:
        axes = Axes(tensors[AXES], tensors[OFFSETS])
    elif attributes:
        tensors[INTERACTIONS] = torch.zeros(len(attributes), *axes.rows.shape)
    return Bundle(
        config,
        vae.eval(),
        prior.eval(),
        prior_config,
        tensors["latents.mean"],
        covariance,
        axes,
        framing,
        attributes,
        tensors.get("directions"),
        tensors.get("scorers"),
        tensors.get(INTERACTIONS),
        provenance,
        half,
    )


def _parse_metadata(label: object, texts: Mapping[str, str] | None) -> dict[str, Any]:
    """The metadata of a model file, completed to today's format. Raises `ModelError`."""
    texts = texts or {}
    if "format" not in texts or "config" not in texts:
        msg = (
            f"{label}: a safetensors file, but not a facevae model; train one with `facevae train`"
        )
        raise ModelError(msg)
    metadata = parse_json(label, texts)
    version = metadata["format"]
    if not isinstance(version, int) or version not in UNSAID:
        msg = (
            f"{label}: bundle format {version}, this facevae reads {min(UNSAID)} to "
            f"{FORMAT}; upgrade facevae"
        )
        raise ModelError(msg)
    if missing := [key for key in _KEYS if key not in metadata]:
        msg = f"{label}: no {', '.join(missing)} in its metadata"
        raise ModelError(msg)
    for key, defaults in UNSAID[version].items():
        if isinstance(metadata[key], dict):
            metadata[key] |= defaults
    return metadata


def _assign(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    part = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    module.load_state_dict(part, assign=True)
