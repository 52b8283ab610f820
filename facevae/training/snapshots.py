"""Measurements, pictures and models of a training in progress."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facevae.attributes.interactions import no_axes
from facevae.charts import latent_plots, plots
from facevae.config import WHOLE_TEXTURE, PriorConfig
from facevae.data.batches import batches_of, evenly
from facevae.data.image_tensors import to_pixels
from facevae.data.images import grid, save_picture
from facevae.latent_space.latents import decode, latents_of_seeds, posteriors
from facevae.measures import losses, metrics
from facevae.measures.figures import reconstruct
from facevae.models.bundle import Bundle, Provenance
from facevae.networks.prior import GaussianPrior, NormalPrior
from facevae.networks.vae import VAE, draw_posteriors
from facevae.stages.network_stage import NetworkStage
from facevae.system.runtime import full_precision
from facevae.training.run_folders import RunFolder
from facevae.training.runs import Run

# faces for figures during training, batch-norm statistics, and priors of progress pictures
NUM_PROBES = 1024
_PROBE_BATCH = 128
_NUM_PICTURES = 16


def measure(run: Run, vae: VAE, most: int | None = None) -> dict[str, float]:
    """Figures of held-out faces, at most `most` of them, decoded from their posterior means.

    `psnr` (dB), `mse`, `sharpness` relative to that of the faces themselves, `kl_nats` per image,
    `active_units`, and the figures of `implied`.
    """
    rows = run.faces.held_out if most is None else evenly(run.faces.held_out, most)
    batches = batches_of(run.faces, rows, run.device)
    found = reconstruct(vae, batches)
    mse, kl_nats = found.average("mse"), found.kl_nats
    return {
        "psnr": found.average("psnr"),
        "mse": mse,
        "sharpness": found.sharpness,
        "kl_nats": kl_nats,
        "active_units": found.active_units,
        **implied(run, mse, kl_nats),
    }


def implied(run: Run, mse: float, kl_nats: float) -> dict[str, float]:
    """KL divergence per dimension, and the r_loss_factor and σ that the errors imply."""
    factor = run.train.r_loss_factor or losses.calibrated_factor(mse, run.model.num_pixels)
    return {
        "kl_nats_per_dim": kl_nats / run.model.latent_dim,
        "r_loss_factor": factor,
        "sigma": losses.implied_sigma(factor, run.model.num_pixels),
    }


def snapshot(run: Run, stage: NetworkStage) -> VAE:
    """A copy of the network with the weights to use.

    Batch-norm statistics of averaged weights are measured anew, on training faces.
    """
    vae = copy.deepcopy(stage.averaged).eval()
    if stage.averaged is stage.vae:
        return vae
    norms = [m for m in vae.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return vae
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches that follow
        norm.train()
    with full_precision():
        probes = evenly(run.faces.train, NUM_PROBES)
        num_batches = -(
            -len(probes) // _PROBE_BATCH
        )  # of equal size, since all batches have the same weight
        for rows in np.array_split(probes, num_batches):
            (images,) = batches_of(run.faces, rows, run.device, size=_PROBE_BATCH)
            vae.decode(vae.encode(images)[0])
    for norm in norms:
        norm.momentum = 0.1
    return vae.eval()


def new_bundle(run: Run, vae: VAE, mean: Tensor, images: int) -> Bundle:
    """A model with these weights and the prior N(0, I).

    `mean` (N, D) are posterior means of training faces; `images` counts those that the network was
    trained on.
    """
    latent_dim = mean.shape[1]
    covariance = torch.cov(mean.T) if len(mean) > 1 else torch.eye(latent_dim).to(mean)
    covariance = covariance.reshape(latent_dim, latent_dim)
    provenance: Provenance = {
        **run.provenance(),
        "epochs": images // len(run.faces.train),
        "stage_seconds": {"vae": run.train.seconds_for("vae")},
        "images_seen": images,
    }
    return Bundle(
        run.model,
        vae,
        NormalPrior(),
        PriorConfig(),
        mean.mean(0),
        (covariance + covariance.T) / 2,  # exactly symmetric in spite of rounding
        no_axes(latent_dim),
        provenance=provenance,
    )


def probe(run: Run, vae: VAE) -> tuple[Tensor, Tensor]:
    """Posterior means and log-variances, each (N, D), of some training faces."""
    rows = evenly(run.faces.train, NUM_PROBES)
    return posteriors(vae, batches_of(run.faces, rows, run.device))


def latent_histograms(mean: Tensor, logvar: Tensor) -> dict[str, Any]:
    """Histograms of samples of the posteriors (N, D), and of the KL divergence of each dimension."""
    return {
        "latents": metrics.histogram(draw_posteriors(mean, logvar, 0)),
        "kl_nats_of_dimensions": metrics.histogram(losses.kl_divergence(mean, logvar).mean(0)),
    }


def progress_model(run: Run, vae: VAE, mean: Tensor, logvar: Tensor, images: int) -> Bundle:
    """A model for use while training goes on.

    If a prior will be fitted at the end, this one has a Gaussian, fitted to the posteriors with means
    `mean` and log-variances `logvar`, each (N, D).
    """
    bundle = new_bundle(run, vae, mean, images)
    if run.train.prior != "normal":
        prior = GaussianPrior(run.model.latent_dim).to(run.device)
        prior.fit(mean, logvar)
        bundle.set_prior(prior, PriorConfig("gaussian"))
    return bundle


# ---------------------------------------------------------------- pictures


def draw_progress(
    run: Run, folder: RunFolder, bundle: Bundle, epoch: float, stage: str = ""
) -> dict[str, str]:
    """Draw held-out faces above their reconstructions, and samples of fixed seeds.

    Returns the names of the pictures by kind; `stage` and the epoch are part of the names.
    """
    when = stage + (f"{epoch:04d}" if isinstance(epoch, int) else f"{epoch:011.6f}")
    rows = evenly(run.faces.held_out, _NUM_PICTURES)
    images = next(batches_of(run.faces, rows, run.device))
    mean, _ = posteriors(bundle.vae, [images])
    pairs = torch.stack([images.cpu(), decode(bundle.vae, mean)]).flatten(0, 1)
    latents = latents_of_seeds(bundle, list(range(_NUM_PICTURES)))
    samples = decode(bundle.vae, latents, WHOLE_TEXTURE)
    names = {kind: f"{kind}-{when}.png" for kind in ("reconstructions", "samples")}
    save_picture(folder.pictures / names["reconstructions"], grid(to_pixels(pairs), len(images)))
    save_picture(folder.pictures / names["samples"], grid(to_pixels(samples)))
    return names


def draw_latents(folder: RunFolder, mean: Tensor, logvar: Tensor) -> None:
    """Draw histograms of samples of the posteriors (N, D), if matplotlib is installed."""
    if not plots.is_available():
        return
    shown = evenly(np.arange(len(mean)), latent_plots.MAX_LATENTS)
    latents = draw_posteriors(mean[shown], logvar[shown], 0).cpu()
    plots.save(latent_plots.draw_histograms(latents), folder.pictures / "latents.png")


def draw_plane(folder: RunFolder, bundle: Bundle) -> None:
    """Draw a decoded two-dimensional latent space.

    It spans two standard deviations to either side; the second axis points up.
    """
    offsets = torch.linspace(-2, 2, 15, device=bundle.device)
    across, up = torch.meshgrid(offsets, offsets.flip(0), indexing="xy")
    points = torch.stack([across, up], -1).flatten(0, 1)
    plane = bundle.latent_mean + points * bundle.latent_spread
    save_picture(folder.pictures / "plane.png", grid(to_pixels(decode(bundle.vae, plane))))
