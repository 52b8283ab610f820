"""Fitting the prior to a network's posteriors: what is recorded on the way, and what comes of it."""

from typing import Any

from torch import Tensor

from facevae.batches import batches_of, watched
from facevae.bundle import Bundle
from facevae.config import PriorConfig
from facevae.latents import posteriors
from facevae.model import VAE
from facevae.prior import FlowPrior, GaussianPrior, Prior, build_prior
from facevae.runs import Run, weights_digest
from facevae.runtime import seeded
from facevae.snapshots import draw_latents, new_bundle
from facevae.stages import PriorStage, Warn
from facevae.steps import Fitting, Work, fit, last_figures, skipped_words


def fit_prior(work: Work, vae: VAE, num_images: int) -> Bundle:
    """Fit the prior to the posteriors of the training faces and their mirror images.

    Where that stage is left out, the prior is one Gaussian, which takes no steps. `num_images` are
    those that the network has seen.
    """
    run = work.run
    batches = batches_of(run.faces, run.faces.train, run.device, mirrored=True)
    count = 2 * len(run.faces.train)
    mean, logvar = posteriors(vae, watched(batches, "Encoding", count, work.progress))
    config = run.train.prior_config
    if "prior" not in run.train.stages and config.kind == "flow":
        config = PriorConfig("gaussian")
    if config.kind == "flow":
        # a flow that was fitted to other latents, or that means something else, is of no use
        fitting = _PriorFitting(work, mean, logvar, f"{weights_digest(vae)} residual")
        fit(work, fitting)
        prior: Prior = fitting.stage.prior
    else:
        prior = build_prior(config, run.model.latent_dim).to(run.device)
    if isinstance(prior, GaussianPrior):
        prior.fit(mean, logvar)
    bundle = new_bundle(run, vae, mean, num_images)
    bundle.prior, bundle.prior_config = prior.eval(), config
    draw_latents(work.folder, mean, logvar)
    return bundle


def prior_stage(run: Run, mean: Tensor, logvar: Tensor, warn: Warn = lambda _: None) -> PriorStage:
    """The steps of a flow, from the first on, which is fitted to `mean` and `logvar` (N, D)."""
    with seeded(run.train.seed):
        prior = build_prior(run.train.prior_config, run.model.latent_dim).to(run.device)
    assert isinstance(prior, FlowPrior)  # noqa: S101 - no other is fitted by steps
    return PriorStage(
        prior,
        mean,
        logvar,
        epochs=run.train.prior_epochs,
        seed=run.train.seed,
        seconds=run.train.seconds_for("prior"),
        warn=warn,
    )


class _PriorFitting(Fitting):
    """What fitting a flow has of its own; see `steps.Fitting`."""

    name, part, event = "prior", "prior", "prior"
    task, unit = "Fitting the prior", "latents"
    advice = "start anew in another folder with --prior gaussian, which takes no steps"
    stage: PriorStage

    def __init__(self, work: Work, mean: Tensor, logvar: Tensor, key: str) -> None:
        self.stage, self.key = prior_stage(work.run, mean, logvar, work.listener.notice), key
        self.size = self.stage.batch_size

    def note(self, records: list[dict[str, Any]]) -> str:
        """The last figures in a few words."""
        last = last_figures(records, self.event)
        if not last:
            return ""
        parts = [
            f"flow-matching loss {last['flow_loss']:.3f}",
            *skipped_words(last["skipped_steps"]),
            f"{last['latents_per_second']:,.0f} latents/s",
        ]
        return " · ".join(parts)
