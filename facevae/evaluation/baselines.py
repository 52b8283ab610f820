"""The paper's baselines: eigenfaces (PCA), and the same network as a plain autoencoder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facevae.config import TrainConfig
from facevae.data.batches import batches_of, evenly
from facevae.data.conversion import Progress
from facevae.data.dataset import Faces, Rows
from facevae.errors import DataError
from facevae.models.bundle import Bundle
from facevae.networks.prior import GaussianPrior
from facevae.networks.vae import LOGVAR_RANGE
from facevae.system.files import digest
from facevae.system.runtime import full_precision
from facevae.training.runs import Run

_OVERSAMPLING = 16  # extra directions, which the power iteration needs to converge
_NUM_FIRST = 1024  # number of faces whose principal components are the initial guess
_MAX_PASSES = 12
_CONVERGED = 1e-4  # relative gain in captured variance below which no further pass is made
_CHUNK = 256


@dataclass(frozen=True)
class Eigenfaces:
    """Principal components of faces, as a linear `Coder`.

    `mean` (P,) with P = 3 · size · size; `components` (D, P), orthonormal; `deviations` (D,), the
    faces' standard deviations along them.
    """

    mean: Tensor
    components: Tensor
    deviations: Tensor
    size: int

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, size, size) → coefficients (B, D), and the least log-variance there is."""
        coefficients = (images.flatten(1) - self.mean) @ self.components.T
        return coefficients, torch.full_like(coefficients, LOGVAR_RANGE[0])

    def decode(self, latents: Tensor, texture: float = 0.0) -> Tensor:  # noqa: ARG002 - eigenfaces add no texture
        """latents (B, D) → images (B, 3, size, size), clipped to [0, 1]."""
        flat = self.mean + latents @ self.components
        return flat.clamp(0, 1).view(-1, 3, self.size, self.size)

    def prior(self) -> GaussianPrior:
        """A Gaussian fitted to the faces' coefficients."""
        prior = GaussianPrior(len(self.components)).to(self.mean.device)
        prior.factor.copy_(self.deviations.diag())
        return prior


def fit_eigenfaces(
    faces: Faces,
    rows: Rows,
    latent_dim: int,
    device: torch.device,
    progress: Progress = lambda *_: None,
) -> Eigenfaces:
    """The first `latent_dim` principal components of the faces at `rows`, or all if fewer.

    Block power iteration with a Rayleigh-Ritz step (Halko et al. 2011, section 4.5). It starts from
    the components of some of the faces, and ends when a pass over all of them increases the
    captured variance by less than 0.01 %. One batch is in memory at a time. Raises `DataError` for
    fewer than two faces.
    """
    if len(rows) < 2:  # noqa: PLR2004 - two points give a direction
        msg = "eigenfaces need at least two training faces; add faces to DATA"
        raise DataError(msg)
    with full_precision():
        # Mean
        pixel_sum = torch.zeros(faces.pixels[0].size, device=device)
        for images in batches_of(faces, rows, device, size=_CHUNK):
            pixel_sum += images.flatten(1).sum(0)
        mean = pixel_sum / len(rows)
        latent_dim = min(latent_dim, len(rows) - 1, len(mean))

        # Initial guess
        subset = evenly(rows, max(_NUM_FIRST, 2 * latent_dim))
        centred = torch.cat([x.flatten(1) for x in batches_of(faces, subset, device)]) - mean
        width = min(latent_dim + _OVERSAMPLING, len(rows), len(mean))
        _, vectors = _eigh(centred @ centred.T)
        basis = torch.linalg.qr(centred.T @ vectors[:, -width:].flip(1)).Q
        del centred

        # Power iteration
        captured, done, total = 0.0, 0, _MAX_PASSES * len(rows)
        for number in range(_MAX_PASSES):
            product = torch.zeros_like(basis)  # the scatter matrix times the basis
            projected = torch.zeros(width, width, device=device)  # the scatter matrix in the basis
            for images in batches_of(faces, rows, device, size=_CHUNK):
                centred = images.flatten(1) - mean
                coefficients = centred @ basis
                product += centred.T @ coefficients
                projected += coefficients.T @ coefficients
                done += len(images)
                progress("Fitting eigenfaces", done, total)
            values, vectors = _eigh(projected / (len(rows) - 1))
            previous, captured = captured, float(values[-latent_dim:].sum())
            if captured - previous <= _CONVERGED * captured or number + 1 == _MAX_PASSES:
                break
            basis = torch.linalg.qr(product).Q
        if done < total:
            progress("Fitting eigenfaces", total, total)
        components = (basis @ vectors[:, -latent_dim:]).T.flip(0).contiguous()
        deviations = values[-latent_dim:].flip(0).clamp_min(0).sqrt()
        return Eigenfaces(mean, components, deviations, faces.size)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; computed on the CPU, since MPS cannot."""
    values, vectors = torch.linalg.eigh(matrix.cpu())
    return values.to(matrix.device), vectors.to(matrix.device)


def autoencoder_run(
    bundle: Bundle,
    faces: Faces,
    folder: Path,
    device: torch.device,
    *,
    epochs: int | None = None,
) -> Run:
    """A run that trains the model's network as a plain autoencoder, in a subfolder of `folder`.

    Network, training settings and prior are those of the model, as far as its provenance states
    them. Three things differ: there is no KL divergence, there is no finish, and the prior N(0, I),
    which an autoencoder's latents do not follow, is replaced by a fitted Gaussian. `epochs`
    replaces the model's number of epochs.
    """
    settings = bundle.provenance.get("train")
    settings = settings if isinstance(settings, dict) else {}
    names = {field.name for field in dataclasses.fields(TrainConfig)} - {"stages", "max_seconds"}
    train = TrainConfig(**{key: value for key, value in settings.items() if key in names})
    # where time was the budget, the number of epochs is what was reached
    reached = bundle.provenance.get("epochs") if settings.get("max_seconds") else None
    train = dataclasses.replace(
        train,
        epochs=epochs or reached or train.epochs,
        kl_weight=0.0,
        prior="gaussian" if train.prior == "normal" else train.prior,
    )
    run = Run(folder, bundle.config, train, faces, device, preset="ae")
    name = f"ae-{digest(repr(sorted(run.identity().items())))[:10]}"
    return dataclasses.replace(run, folder=folder / name)
