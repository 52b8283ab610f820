"""What the paper compares a VAE with: eigenfaces (PCA), and the same network as a plain autoencoder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facevae.batches import batches_of, evenly
from facevae.bundle import Bundle
from facevae.config import TrainConfig
from facevae.conversion import Progress
from facevae.data import Faces, Rows
from facevae.errors import DataError
from facevae.files import digest
from facevae.model import LOGVAR_RANGE
from facevae.prior import GaussianPrior
from facevae.runs import Run
from facevae.runtime import full_precision

_OVERSAMPLING = 16  # directions beyond those asked for, with which the power iteration converges
_NUM_FIRST = 1024  # faces whose own principal components it begins with
_MAX_PASSES = 12
_CONVERGED = 1e-4  # of the variance, gained by one more pass
_CHUNK = 256


@dataclass(frozen=True)
class Eigenfaces:
    """Principal components of faces: a linear `Coder`. P = 3 · size · size.

    `mean` (P,); `components` (D, P), orthonormal; `deviations` (D,) of the faces along them.
    """

    mean: Tensor
    components: Tensor
    deviations: Tensor
    size: int

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (B, D), with a log-variance that is as good as none."""
        coefficients = (images.flatten(1) - self.mean) @ self.components.T
        return coefficients, torch.full_like(coefficients, LOGVAR_RANGE[0])

    def decode(self, latents: Tensor, texture: float = 0.0) -> Tensor:  # noqa: ARG002 - there is none
        """latents (B, D) → images (B, 3, size, size), clipped to [0, 1]."""
        flat = self.mean + latents @ self.components
        return flat.clamp(0, 1).view(-1, 3, self.size, self.size)

    def prior(self) -> GaussianPrior:
        """The Gaussian of the faces' coefficients."""
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
    """The first components of the faces at `rows`: `latent_dim`, or as many as the faces have.

    Block power iteration with Rayleigh and Ritz's step (Halko et al. 2011, section 4.5), begun
    with the components of some of the faces, and ended when a pass over all of them gains
    less than a ten-thousandth of the variance. One batch is in memory at a time. Raises
    `DataError` for fewer than two faces.
    """
    if len(rows) < 2:  # noqa: PLR2004 - a direction
        msg = "eigenfaces need two training faces or more"
        raise DataError(msg)
    with full_precision():
        # The mean
        total = torch.zeros(faces.pixels[0].size, device=device)
        for images in batches_of(faces, rows, device, size=_CHUNK):
            total += images.flatten(1).sum(0)
        mean = total / len(rows)
        latent_dim = min(latent_dim, len(rows) - 1, len(mean))

        # A first guess
        some = evenly(rows, max(_NUM_FIRST, 2 * latent_dim))
        centred = torch.cat([x.flatten(1) for x in batches_of(faces, some, device)]) - mean
        width = min(latent_dim + _OVERSAMPLING, len(rows), len(mean))
        _, vectors = _eigh(centred @ centred.T)
        basis = torch.linalg.qr(centred.T @ vectors[:, -width:].flip(1)).Q
        del centred

        # Passes
        captured, done, num_all = 0.0, 0, _MAX_PASSES * len(rows)
        for number in range(_MAX_PASSES):
            turned = torch.zeros_like(basis)
            inner = torch.zeros(width, width, device=device)
            for images in batches_of(faces, rows, device, size=_CHUNK):
                centred = images.flatten(1) - mean
                coefficients = centred @ basis
                turned += centred.T @ coefficients
                inner += coefficients.T @ coefficients
                done += len(images)
                progress("Fitting eigenfaces", done, num_all)
            values, vectors = _eigh(inner / (len(rows) - 1))
            before, captured = captured, float(values[-latent_dim:].sum())
            if captured - before <= _CONVERGED * captured or number + 1 == _MAX_PASSES:
                break
            basis = torch.linalg.qr(turned).Q
        if done < num_all:
            progress("Fitting eigenfaces", num_all, num_all)
        components = (basis @ vectors[:, -latent_dim:]).T.flip(0).contiguous()
        deviations = values[-latent_dim:].flip(0).clamp_min(0).sqrt()
        return Eigenfaces(mean, components, deviations, faces.size)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors, on the CPU: MPS finds none."""
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
    """The run that trains the model's network as a plain autoencoder, in a folder within `folder`.

    Network, training and prior are the model's own, as far as it says how it was trained; only
    the KL divergence is left out, and a finish, and a model with the prior N(0, I), which no
    autoencoder's latents have, gives way to one fitted Gaussian.
    """
    known = bundle.provenance.get("train")
    known = known if isinstance(known, dict) else {}
    names = {field.name for field in dataclasses.fields(TrainConfig)} - {"stages", "max_seconds"}
    train = TrainConfig(**{key: value for key, value in known.items() if key in names})
    # a training by time says how many there were
    made = bundle.provenance.get("epochs") if known.get("max_seconds") else None
    train = dataclasses.replace(
        train,
        epochs=epochs or made or train.epochs,
        kl_weight=0.0,
        prior="gaussian" if train.prior == "normal" else train.prior,
    )
    run = Run(folder, bundle.config, train, faces, device, preset="ae")
    name = f"ae-{digest(repr(sorted(run.identity().items())))[:10]}"
    return dataclasses.replace(run, folder=folder / name)
