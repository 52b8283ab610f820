"""The fit of the prior to a network's posteriors: measurements, records and the fitted model."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from facevae.config import WHOLE_TEXTURE, PriorConfig
from facevae.data.augment import NUM_CHANGED, NUM_CHANGES, change, draw_changes
from facevae.data.batches import batches_of, evenly, watched
from facevae.data.conversion import Progress
from facevae.data.dataset import Faces
from facevae.latent_space.latents import posteriors
from facevae.measures import losses
from facevae.measures.swd import SlicedWasserstein
from facevae.models.bundle import Bundle
from facevae.networks.prior import FlowPrior, GaussianPrior, Prior, build_prior, sample_latents
from facevae.networks.vae import VAE, sample_posterior
from facevae.stages.fast import Warn
from facevae.stages.flow_matching import PriorStage
from facevae.system.runtime import (
    Stream,
    face_noise,
    full_precision,
    generator,
    seeded,
    training_precision,
)
from facevae.training.runs import Run, weights_digest
from facevae.training.snapshots import draw_latents, new_bundle
from facevae.training.steps import Fitting, Work, fit, last_figures, skipped_words

# change whenever saved states of the prior become incompatible
_STATE_VERSION = "residual, told of changes"
_STEPS_A_MEASUREMENT = 100  # a measurement costs less than one step
_CHUNK = 64  # latents decoded at a time
_NUM_MEASURED = 1024  # draws on which the flow's loss is measured
GUIDANCES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0)  # the choices of `best_guidance`
_NUM_GUIDED = 1024  # samples, and faces, that it compares
_FEWEST_GUIDED = 256  # training faces; fewer do not represent faces well enough to choose
_COARSE_SIDE = 32  # pixels of the finest level that it compares
# of the held-out loss over its minimum, before a warning; a flow gains about 3 % in all
MOST_RISE = 1.005

Posteriors = tuple[Tensor, Tensor]
"""Means and log-variances, each (N, D)."""


def fit_prior(work: Work, vae: VAE, num_images: int) -> Bundle:
    """Fit the prior to the posteriors of the training faces and their mirror images.

    Without the stage `prior`, a Gaussian takes the place of a flow. `num_images` is the number of
    images that the network was trained on. Returns the model, on the run's device.
    """
    run = work.run
    batches = batches_of(run.faces, run.faces.train, run.device, mirrored=True)
    count = 2 * len(run.faces.train)
    mean, logvar = posteriors(vae, watched(batches, "Encoding", count, work.progress))
    config = run.train.prior_config
    if "prior" not in run.train.stages and config.kind == "flow":
        config = PriorConfig("gaussian")
    if config.kind == "flow":
        # the state of a flow that was fitted to other latents is not resumed
        key = f"{weights_digest(vae)} {_STATE_VERSION}"
        rows = evenly(run.faces.held_out, _NUM_MEASURED // 2)
        held_out = posteriors(vae, batches_of(run.faces, rows, run.device, mirrored=True))
        changed = changed_posteriors(vae, run.faces, run.device, run.train.seed, work.progress)
        plain = (mean, logvar, mean.new_zeros(len(mean), NUM_CHANGES))
        examples = tuple(torch.cat(both) for both in zip(plain, changed, strict=True))
        # views, so that the latents of many faces are not held twice
        mean, logvar = (part[: len(mean)] for part in examples[:2])
        del plain, changed
        fitting = _PriorFitting(work, examples, (mean, logvar), held_out, key)
        fit(work, fitting)
        _warn_of_memorising(work, len(mean))
        flow = fitting.stage.prior
        if len(run.faces.train) >= _FEWEST_GUIDED:
            flow.guidance = best_guidance(work, flow, vae)
        elif run.init is not None and _flow_of_init(run) is not None:
            flow.guidance = run.init.prior_config.guidance
        config = replace(config, guidance=flow.guidance)
        prior: Prior = flow
    else:
        prior = build_prior(config, run.model.latent_dim).to(run.device)
    if isinstance(prior, GaussianPrior):
        prior.fit(mean, logvar)
    bundle = new_bundle(run, vae, mean, num_images)
    bundle.set_prior(prior.eval(), config)
    if config.kind == "flow":
        bundle.provenance["stage_seconds"]["prior"] = run.train.seconds_for("prior")
    draw_latents(work.folder, mean, logvar)
    return bundle


def changed_posteriors(
    vae: VAE, faces: Faces, device: torch.device, seed: int, progress: Progress = lambda *_: None
) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior means and log-variances (M, D) of changed training faces, and their changes.

    The changes are (M, NUM_CHANGES). They augment the training of a flow, which otherwise soon
    memorises its faces.
    """
    all_changes: list[Tensor] = []

    def changed() -> Iterator[Tensor]:
        for number in range(NUM_CHANGED):
            rng = generator(seed, Stream.CHANGES, number)
            for images in batches_of(faces, faces.train, device):
                is_mirrored = torch.rand(len(images), generator=rng) < 0.5  # noqa: PLR2004 - half
                changes = draw_changes(len(images), rng).to(device)
                all_changes.append(changes)
                sides = is_mirrored.to(device).view(-1, 1, 1, 1)
                yield change(torch.where(sides, images.flip(-1), images), changes)

    count = NUM_CHANGED * len(faces.train)
    batches = watched(changed(), "Encoding changed faces", count, progress)
    # in a third of the time of full precision, with errors of a fifth of a posterior's deviation
    found = posteriors(vae, batches, lambda: training_precision(device))
    return *found, torch.cat(all_changes)


def best_guidance(work: Work, flow: FlowPrior, vae: VAE) -> float:
    """The largest of `GUIDANCES` up to which samples keep becoming more like training faces.

    The measure is the sliced Wasserstein distance at levels of at most 32 pixels: finer levels
    depend on the decoder, which a finish may change. Samples of an unguided flow are too much alike.
    """
    faces, device, config = work.run.faces, work.run.device, work.run.model
    rows = evenly(faces.train, _NUM_GUIDED)
    distance = SlicedWasserstein(batches_of(faces, rows, device), config.size)
    noise = face_noise(list(range(len(rows))), config.latent_dim).to(device)
    best, least = GUIDANCES[0], math.inf
    for i, guidance in enumerate(GUIDANCES):
        with full_precision():
            latents = sample_latents(flow, noise, guidance=guidance)
            # with the texture that samples have, if the decoder has one
            levels = distance(vae.decode(part, WHOLE_TEXTURE) for part in latents.split(_CHUNK))
        work.progress("Guiding", i + 1, len(GUIDANCES))
        coarse = sum(d for side, d in levels.items() if int(side) <= _COARSE_SIDE)
        if not coarse < least:
            break
        best, least = guidance, coarse
    work.progress("Guiding", len(GUIDANCES), len(GUIDANCES))
    return best


def prior_stage(
    run: Run, mean: Tensor, logvar: Tensor, changes: Tensor, warn: Warn = lambda _: None
) -> PriorStage:
    """The training steps of a flow, from its initial weights on.

    It is fitted to posteriors with means `mean` and log-variances `logvar`, each (N, D), of faces
    that were changed by `changes` (N, NUM_CHANGES), 0 for unchanged ones.
    """
    with seeded(run.train.seed):
        prior = build_prior(run.train.prior_config, run.model.latent_dim).to(run.device)
    assert isinstance(prior, FlowPrior)  # noqa: S101 - only flows are fitted in steps
    earlier = _flow_of_init(run)
    if earlier is not None:
        prior.load_state_dict(earlier.state_dict())
    return PriorStage(
        prior,
        mean,
        logvar,
        changes,
        epochs=run.train.prior_epochs,
        seed=run.train.seed,
        seconds=run.train.seconds_for("prior"),
        goes_on=earlier is not None,
        warn=warn,
    )


def _flow_of_init(run: Run) -> FlowPrior | None:
    """The initial model's flow, if it can be trained further; else None.

    It must have the configuration of this run, which must keep the network: training that would
    change the latents.
    """
    if run.init is None or "vae" in run.train.stages or not isinstance(run.init.prior, FlowPrior):
        return None
    wanted = run.train.prior_config
    config = replace(run.init.prior_config, guidance=1.0, guided_until=wanted.guided_until)
    return run.init.prior if config == wanted else None


class _PriorFitting(Fitting):
    """The fit of a flow, as the training loop sees it."""

    name, stage_name, event = "prior", "prior", "prior"
    task, unit = "Fitting the prior", "latents"
    advice = "start anew in another folder with --prior gaussian, which takes no steps"
    stage: PriorStage

    def __init__(
        self,
        work: Work,
        examples: tuple[Tensor, ...],
        train: Posteriors,
        held_out: Posteriors,
        key: str,
    ) -> None:
        """Fit to `examples`: posterior means, log-variances, and changes of the faces.

        The loss is measured on the posteriors `train` and `held_out`, of unchanged faces.
        """
        mean, logvar, changes = examples
        self.stage = prior_stage(work.run, mean, logvar, changes, work.listener.notice)
        self.key = key
        self.size, self._next_measured = self.stage.batch_size, _STEPS_A_MEASUREMENT - 1
        self._draws = {
            name: _Draws(*posterior, work.run.train.seed)
            for name, posterior in (("train", train), ("held_out", held_out))
        }

    def figures(self, means: dict[str, float], index: int) -> dict[str, float]:
        """The training loss, and at intervals the loss on fixed draws of training and held-out faces."""
        is_last = index + 1 == self.stage.budget.num_steps
        if not is_last and index < self._next_measured:
            return means
        self._next_measured = index + _STEPS_A_MEASUREMENT
        prior = self.stage.prior
        found = {f"{name}_flow_loss": d.loss(prior) for name, d in self._draws.items()}
        return means | found

    def note(self, records: list[dict[str, Any]]) -> str:
        """The last figures, for the progress line."""
        last = last_figures(records, self.event)
        if not last:
            return ""
        measured = _measured(records)
        parts = [
            f"flow-matching loss {last['flow_loss']:.3f}",
            f"held-out {measured[-1]['held_out_flow_loss']:.3f}" if measured else "",
            *skipped_words(last["skipped_steps"]),
            f"{last['latents_per_second']:,.0f} latents/s",
        ]
        return " · ".join(filter(None, parts))


class _Draws:
    """Fixed samples of posteriors, noise and times, on which a flow's loss is measured.

    Noise and times do not depend on the posteriors, so that losses on different faces can be
    compared.
    """

    def __init__(self, mean: Tensor, logvar: Tensor, seed: int) -> None:
        rows = torch.arange(_NUM_MEASURED) * len(mean) // _NUM_MEASURED
        rng = generator(seed, Stream.FLOW_MEASURE)
        shape = (2, _NUM_MEASURED, mean.shape[1])
        posterior_noise, self._noise = torch.randn(shape, generator=rng).to(mean.device)
        self._times = torch.randn(_NUM_MEASURED, 1, generator=rng).sigmoid().to(mean.device)
        self._latents = sample_posterior(mean[rows], logvar[rows], posterior_noise)

    def loss(self, flow: FlowPrior) -> float:
        """The mean flow-matching loss."""
        noise, times = self._noise, self._times
        with full_precision():
            target = flow.whitening.whiten(self._latents)
            velocity = flow.velocity((1 - times) * noise + times * target, times)
            return losses.flow_matching(velocity, noise, target).mean().item()


def _measured(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a flow with a held-out loss."""
    return [r for r in records if r["event"] == "prior" and "held_out_flow_loss" in r]


def _warn_of_memorising(work: Work, num_latents: int) -> None:
    """Warn the user if the flow's held-out loss has risen clearly above its minimum."""
    measured = _measured(work.folder.records)
    best = min(measured, key=lambda r: r["held_out_flow_loss"], default=None)
    if not best or measured[-1]["held_out_flow_loss"] <= MOST_RISE * best["held_out_flow_loss"]:
        return
    least, last = best["held_out_flow_loss"], measured[-1]["held_out_flow_loss"]
    passes = max(1, round(best["latents"] / num_latents))
    is_timed = work.run.train.max_seconds is not None
    instead = "name --epochs instead of --max-time, and " if is_timed else ""
    work.listener.notice(
        f"{work.folder.path}: the prior begins to memorise its faces: its loss on held-out ones has "
        f"risen from {least:.3f} to {last:.3f}; {instead}lower --prior-epochs, in another folder "
        f"(it was best after {passes})"
    )
