"""Fitting the prior to a network's posteriors: what is recorded on the way, and what comes of it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from facevae import losses
from facevae.augment import NUM_CHANGED, NUM_CHANGES, change, draw_changes
from facevae.batches import batches_of, evenly, watched
from facevae.bundle import Bundle
from facevae.config import WHOLE_TEXTURE, PriorConfig
from facevae.conversion import Progress
from facevae.data import Faces
from facevae.fast import Warn
from facevae.flow_matching import PriorStage
from facevae.latents import posteriors
from facevae.model import VAE, sample_posterior
from facevae.prior import FlowPrior, GaussianPrior, Prior, build_prior, sample_latents
from facevae.runs import Run, weights_digest
from facevae.runtime import face_noise, full_precision, generator, seeded, training_precision
from facevae.snapshots import draw_latents, new_bundle
from facevae.steps import Fitting, Work, fit, last_figures, skipped_words
from facevae.swd import SlicedWasserstein

# what a generator's numbers are for, so that no two uses share them
_MEASURE, _CHANGES = 7, 8

_STEPS_A_MEASUREMENT = 100  # which costs less than one of them
_CHUNK = 64  # latents that are decoded at a time
_NUM_MEASURED = 1024  # draws; of as many faces, with their mirror images, as there are
GUIDANCES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0)  # among which `best_guidance` chooses
_NUM_GUIDED = 1024  # samples by which it does
_FEWEST_GUIDED = 256  # faces, of which fewer say too little of all that there could be
_COARSE_SIDE = 32  # in pixels of the finest level that counts there
MOST_RISE = 1.005  # of the loss on held-out faces over its least: all that a flow gains is some 3 %

Posteriors = tuple[Tensor, Tensor]
"""Means and log-variances, each (N, D)."""


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
        rows = evenly(run.faces.held_out, _NUM_MEASURED // 2)
        held_out = posteriors(vae, batches_of(run.faces, rows, run.device, mirrored=True))
        key = f"{weights_digest(vae)} residual, told of changes"
        changed = changed_posteriors(vae, run.faces, run.device, run.train.seed, work.progress)
        plain = (mean, logvar, mean.new_zeros(len(mean), NUM_CHANGES))
        told = tuple(torch.cat(both) for both in zip(plain, changed, strict=True))
        # views, so that the latents of many faces are not held twice
        mean, logvar = (part[: len(mean)] for part in told[:2])
        del plain, changed
        fitting = _PriorFitting(work, told, (mean, logvar), held_out, key)
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
    bundle.prior, bundle.prior_config = prior.eval(), config
    if config.kind == "flow":
        bundle.provenance["stage_seconds"]["prior"] = run.train.seconds_for("prior")
    draw_latents(work.folder, mean, logvar)
    return bundle


def changed_posteriors(
    vae: VAE, faces: Faces, device: torch.device, seed: int, progress: Progress = lambda *_: None
) -> tuple[Tensor, Tensor, Tensor]:
    """Means and log-variances (M, D) of training faces that are changed, and how (M, NUM_CHANGES).

    A flow has too much room for its faces alone, and soon learns them by heart.
    """
    drawn: list[Tensor] = []

    def changed() -> Iterator[Tensor]:
        for number in range(NUM_CHANGED):
            draw = generator(seed, _CHANGES, number)
            for images in batches_of(faces, faces.train, device):
                is_mirrored = torch.rand(len(images), generator=draw) < 0.5  # noqa: PLR2004 - half
                changes = draw_changes(len(images), draw).to(device)
                drawn.append(changes)
                sides = is_mirrored.to(device).view(-1, 1, 1, 1)
                yield change(torch.where(sides, images.flip(-1), images), changes)

    count = NUM_CHANGED * len(faces.train)
    batches = watched(changed(), "Encoding changed faces", count, progress)
    # a third of the time, and what it costs is a fifth of a posterior's deviation
    found = posteriors(vae, batches, lambda: training_precision(device))
    return *found, torch.cat(drawn)


def best_guidance(work: Work, flow: FlowPrior, vae: VAE) -> float:
    """Of `GUIDANCES`, the last up to which samples become more like training faces, but for detail.

    By the sliced Wasserstein distance of the levels of at most 32 pixels: finer ones hang on the
    decoder, which a finish may change. What a flow has not learned leaves its samples too much alike.
    """
    faces, device, config = work.run.faces, work.run.device, work.run.model
    rows = evenly(faces.train, _NUM_GUIDED)
    distance = SlicedWasserstein(batches_of(faces, rows, device), config.size)
    noise = face_noise(list(range(len(rows))), config.latent_dim).to(device)
    best, least = GUIDANCES[0], math.inf
    for i, guidance in enumerate(GUIDANCES):
        with full_precision():
            latents = sample_latents(flow, noise, guidance=guidance)
            # with the texture of samples, where there is some
            levels = distance(vae.decode(part, WHOLE_TEXTURE) for part in latents.split(_CHUNK))
        work.progress("Guiding", i + 1, len(GUIDANCES))
        miss = sum(d for side, d in levels.items() if int(side) <= _COARSE_SIDE)
        if not miss < least:
            break
        best, least = guidance, miss
    work.progress("Guiding", len(GUIDANCES), len(GUIDANCES))
    return best


def prior_stage(
    run: Run, mean: Tensor, logvar: Tensor, changes: Tensor, warn: Warn = lambda _: None
) -> PriorStage:
    """The steps of a flow, from the first on, which is fitted to `mean` and `logvar` (N, D).

    Of faces that were changed by `changes` (N, NUM_CHANGES), where these are not 0.
    """
    with seeded(run.train.seed):
        prior = build_prior(run.train.prior_config, run.model.latent_dim).to(run.device)
    assert isinstance(prior, FlowPrior)  # noqa: S101 - no other is fitted by steps
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
    """The flow of the model that the run was given, where its network stays and it is of this shape.

    Latents of a network that is trained are others.
    """
    if run.init is None or "vae" in run.train.stages or not isinstance(run.init.prior, FlowPrior):
        return None
    wanted = run.train.prior_config
    known = replace(run.init.prior_config, guidance=1.0, guided_until=wanted.guided_until)
    return run.init.prior if known == wanted else None


class _PriorFitting(Fitting):
    """What fitting a flow has of its own; see `steps.Fitting`."""

    name, stage_name, event = "prior", "prior", "prior"
    task, unit = "Fitting the prior", "latents"
    advice = "start anew in another folder with --prior gaussian, which takes no steps"
    stage: PriorStage

    def __init__(
        self,
        work: Work,
        told: tuple[Tensor, ...],
        train: Posteriors,
        held_out: Posteriors,
        key: str,
    ) -> None:
        """The flow is fitted to `told`: means, log-variances, and how the faces were changed.

        It is measured by those of `train` and `held_out`.
        """
        mean, logvar, changes = told
        self.stage = prior_stage(work.run, mean, logvar, changes, work.listener.notice)
        self.key = key
        self.size, self._next_measured = self.stage.batch_size, _STEPS_A_MEASUREMENT - 1
        self._draws = {
            name: _Draws(*found, work.run.train.seed)
            for name, found in (("train", train), ("held_out", held_out))
        }

    def figures(self, means: dict[str, float], index: int) -> dict[str, float]:
        """The loss, and now and then that on faces the flow is fitted to, and held-out ones."""
        is_last = index + 1 == self.stage.budget.num_steps
        if not is_last and index < self._next_measured:
            return means
        self._next_measured = index + _STEPS_A_MEASUREMENT
        prior = self.stage.prior
        found = {f"{name}_flow_loss": d.loss(prior) for name, d in self._draws.items()}
        return means | found

    def note(self, records: list[dict[str, Any]]) -> str:
        """The last figures in a few words."""
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
    """Samples of posteriors, noise and times, by which a flow is measured: always the same ones.

    Of different posteriors they differ in nothing else, so that losses can be compared.
    """

    def __init__(self, mean: Tensor, logvar: Tensor, seed: int) -> None:
        rows = torch.arange(_NUM_MEASURED) * len(mean) // _NUM_MEASURED
        draw = generator(seed, _MEASURE)
        shape = (2, _NUM_MEASURED, mean.shape[1])
        posterior_noise, self._noise = torch.randn(shape, generator=draw).to(mean.device)
        self._times = torch.randn(_NUM_MEASURED, 1, generator=draw).sigmoid().to(mean.device)
        self._latents = sample_posterior(mean[rows], logvar[rows], posterior_noise)

    def loss(self, flow: FlowPrior) -> float:
        """The mean flow-matching loss."""
        noise, times = self._noise, self._times
        with full_precision():
            target = flow.whitening.whiten(self._latents)
            velocity = flow.velocity((1 - times) * noise + times * target, times)
            return losses.flow_matching(velocity, noise, target).mean().item()


def _measured(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in records if r["event"] == "prior" and "held_out_flow_loss" in r]


def _warn_of_memorising(work: Work, num_latents: int) -> None:
    """Tell the user if the flow has gone on to fit its faces at the cost of others."""
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
