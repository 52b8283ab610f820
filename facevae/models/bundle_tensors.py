"""The tensors of a model file: their names, shapes and types, and what they must not hold."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from facevae.errors import ModelError
from facevae.models.tensor_files import safetensors_errors
from facevae.networks.prior import Prior, fitted_gaussian
from facevae.networks.vae import VAE

COVARIANCE = "latents.covariance"
INTERACTIONS, AXES, OFFSETS = "interactions", "axes.rows", "axes.offsets"
# symmetric or lower triangular matrices
TRIANGLES = (COVARIANCE, "prior.factor", "prior.whitening.factor")


def tensor_shapes(
    file: Any, vae: VAE, prior: Prior, num_attributes: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a file of today's format holds, by name."""
    latent_dim = vae.config.latent_dim
    shapes: dict[str, tuple[int, ...]] = {
        **{f"vae.{name}": tuple(t.shape) for name, t in vae.state_dict().items()},
        **{f"prior.{name}": tuple(t.shape) for name, t in prior.state_dict().items()},
        "latents.mean": (latent_dim,),
    }
    if not fitted_gaussian(prior):
        shapes[COVARIANCE] = (latent_dim, latent_dim)
    if num_attributes:
        shapes |= dict.fromkeys(("directions", "scorers"), (num_attributes, latent_dim))
        if AXES in file.keys():  # noqa: SIM118 - not a dict
            num_axes = next(iter(file.get_slice(AXES).get_shape()), 0)
            shapes |= {AXES: (num_axes, latent_dim), OFFSETS: (num_axes,)}
            shapes[INTERACTIONS] = (num_attributes, num_axes, latent_dim)
    return shapes


def stored_type(name: str, tensor: Tensor, *, half: bool) -> torch.dtype:
    """The type that a tensor is stored in."""
    if not half or not tensor.is_floating_point():
        return tensor.dtype
    return torch.float8_e4m3fn if name == INTERACTIONS else torch.float16


def read_tensors(
    label: object, file: Any, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The tensors of a file in float32. Raises `ModelError` unless it has just those of `shapes`."""
    names = set(file.keys())
    if differing := set(shapes) ^ names:
        problem = "missing" if differing - names else "not known"
        msg = f"{label}: tensor {min(differing)} is {problem}"
        raise ModelError(msg)
    tensors = {}
    with safetensors_errors(label):
        for name, shape in shapes.items():
            found = tuple(file.get_slice(name).get_shape())
            if found != shape:
                msg = (
                    f"{label}: tensor {name} has shape {found}, its configuration calls for {shape}"
                )
                raise ModelError(msg)
            tensor = file.get_tensor(name)
            if name.endswith(".num_batches_tracked") and tensor.dtype == torch.int64:
                tensors[name] = tensor.clone()
                continue
            if not tensor.is_floating_point():
                msg = f"{label}: tensor {name} holds {tensor.dtype}, not floating-point numbers"
                raise ModelError(msg)
            tensors[name] = tensor.to(torch.float32, copy=True)  # not mapped from the file
            if not tensors[name].isfinite().all():
                msg = f"{label}: tensor {name} holds numbers that are not finite"
                raise ModelError(msg)
    return tensors


def check_covariance(label: object, prior: Prior, covariance: Tensor | None) -> None:
    """Raise `ModelError` unless the covariance of the latents, or a fitted prior's, can be one."""
    if covariance is not None and covariance.diag().min() < 0:
        msg = f"{label}: tensor {COVARIANCE} holds variances below 0"
        raise ModelError(msg)
    if (fitted := fitted_gaussian(prior)) and not fitted.covariance.isfinite().all():
        msg = f"{label}: the prior's factor holds numbers that are too large"
        raise ModelError(msg)


def lower_triangle(matrix: Tensor) -> Tensor:
    """Lower triangle of a matrix (D, D), row by row (D (D + 1) / 2,)."""
    rows, columns = torch.tril_indices(*matrix.shape)
    return matrix.cpu()[rows, columns]


def matrix_of(triangle: Tensor, *, symmetric: bool) -> Tensor:
    """Matrix (D, D) with this lower triangle, and above it the mirror image or zeros."""
    side = math.isqrt(2 * len(triangle))
    rows, columns = torch.tril_indices(side, side)
    matrix = triangle.new_zeros(side, side)
    matrix[rows, columns] = triangle
    if symmetric:
        matrix[columns, rows] = triangle
    return matrix
