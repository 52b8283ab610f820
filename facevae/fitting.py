"""The stages of a run: what each is fitted to, what it records on the way, and what comes of it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from facevae.adversary import FinishStage
from facevae.batches import Batches, batches_of, watched
from facevae.bundle import Bundle, save
from facevae.config import STAGES, PriorConfig
from facevae.errors import RunError
from facevae.framing import Framing
from facevae.latents import posteriors
from facevae.model import VAE, remove_variance
from facevae.perceptual import load_perceptual
from facevae.prior import FlowPrior, GaussianPrior, Prior, build_prior
from facevae.runs import Run, weights_digest
from facevae.runtime import seeded
from facevae.snapshots import (
    NUM_PROBES,
    draw_latents,
    draw_progress,
    implied,
    latent_histograms,
    measure,
    new_bundle,
    probe,
    progress_model,
    snapshot,
)
from facevae.stages import NetworkStage, PriorStage, Stage, Warn
from facevae.states import part
from facevae.steps import (
    Pace,
    Watch,
    Work,
    check_finite,
    cost_of,
    counted,
    resume,
    skipped_words,
    take_steps,
)

_STEPS_A_RECORD = 20
_NETWORK_ADVICE = "start anew in another folder with a lower --learning-rate"
_FINISH_ADVICE = "go on without it: --stages vae,prior"
_PRIOR_ADVICE = "start anew in another folder with --prior gaussian, which takes no steps"


def stage_of(
    run: Run, name: str, inputs: Mapping[str, Tensor], prior_config: PriorConfig | None
) -> Stage:
    """The stage that the first process has begun, with what it is fitted to."""
    if name == "network":
        return _network_stage(run)
    if name == "prior":
        return _prior_stage(run, inputs["posterior.mean"], inputs["posterior.logvar"])
    assert prior_config is not None  # noqa: S101 - a finish has one
    vae, prior = VAE(run.model), build_prior(prior_config, run.model.latent_dim)
    vae.load_state_dict(part(inputs, "fitted.vae."))
    prior.load_state_dict(part(inputs, "fitted.prior."))
    return _finish_stage(run, vae.to(run.device), prior.to(run.device))


def _network_stage(run: Run, warn: Warn = lambda _: None) -> NetworkStage:
    batches = Batches(run.faces, run.train.batch_size, run.train.seed, run.device)
    return NetworkStage(_new_vae(run), batches, run.train, warn)


def _prior_stage(run: Run, mean: Tensor, logvar: Tensor, warn: Warn = lambda _: None) -> PriorStage:
    """The fitting of a flow to posteriors, `mean` and `logvar` (N, D)."""
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


def _finish_stage(run: Run, vae: VAE, prior: Prior) -> FinishStage:
    perceptual = load_perceptual(run.device) if run.train.perceptual else None
    batches = Batches(run.faces, run.train.batch_size, run.train.seed, run.device)
    return FinishStage(vae, prior, batches, run.train, perceptual)


def _new_vae(run: Run) -> VAE:
    with seeded(run.train.seed):
        vae = VAE(run.model)
    if run.init:
        vae.load_state_dict(run.init.vae.state_dict())
    if not run.train.kl_weight:
        remove_variance(vae)
    return vae.to(run.device)


def fit_network(work: Work, framing: Framing | None) -> tuple[VAE, int]:
    """Fit encoder and decoder, with held-out figures and pictures at the ends of epochs.

    Returns the weights to be used, and how many images they have seen.
    """
    run, folder, pace = work.run, work.folder, Pace()

    # Go on from where an earlier process stopped
    stage = _network_stage(run, work.listener.notice)
    batches = stage.batches
    first = resume(work, "network", stage)
    if first > stage.budget.num_steps:
        epochs = first * batches.size // batches.num_faces
        msg = f"{folder.path}: has been trained for {epochs} epochs; --epochs cannot be fewer"
        raise RunError(msg)
    folder.recall(first)
    watch = Watch(folder.records[-1]["seconds"] if folder.records else 0.0)
    sums, num_steps = torch.zeros(len(stage.terms), device=run.device), 0
    counts = stage.guard.counts()

    # Step
    for index, terms in take_steps(work, "network", stage, first):
        sums += terms
        num_steps += 1
        images = (index + 1) * batches.size
        is_last = index + 1 == stage.budget.num_steps
        is_epoch = is_last or images % batches.num_faces < batches.size
        if is_epoch or ((index + 1) % _STEPS_A_RECORD == 0 and watch.is_time()):
            earlier, counts = counts, counted(folder, stage, index, _NETWORK_ADVICE)
            where = {"step": index + 1, "images": images, "seconds": watch.seconds()}
            if num_sound := counts.num_sound - earlier.num_sound:
                means = _means(run, stage, sums / num_sound)
                check_finite(folder, means)
                means |= cost_of(run, num_steps * batches.size, watch.lap())
                skipped = {"skipped_steps": counts.num_skipped}
                folder.record({"event": "steps", **where, **means, **skipped})
            note = _note(folder.records)
            work.listener.progress("Training", *stage.budget.progress(index), note)
            sums.zero_()
            num_steps = 0

        # Measure what would be saved
        if is_last or (is_epoch and pace.is_due()):
            with pace.taken():
                found = _measure_network(work, stage, framing, images, is_last=is_last)
                where["seconds"] = watch.seconds()
                folder.record({"event": "epoch", "stage": "vae", **where, **found})
                folder.save_state("network", stage.state(), index + 1)
                work.listener.epoch(folder.records[-1])
            watch.lap()
    work.skipped["network"] = stage.guard.counts().num_skipped
    return snapshot(run, stage), stage.budget.num_steps * batches.size


def _measure_network(
    work: Work, stage: NetworkStage, framing: Framing | None, images: int, *, is_last: bool
) -> dict[str, Any]:
    """Figures and pictures of what would be saved after so many images, which it is meanwhile."""
    run, folder = work.run, work.folder
    averaged = snapshot(run, stage)
    figures = measure(run, averaged, None if is_last else NUM_PROBES)
    check_finite(folder, figures)
    epoch = images // len(run.faces.train)
    mean, logvar = probe(run, averaged)
    progress = progress_model(run, averaged, mean, logvar, images)
    progress.framing = framing
    if work.save_progress:
        save(progress, folder.model, half=run.half)
    pictures = draw_progress(run, folder, progress, f"{epoch:04d}")
    histograms = latent_histograms(mean, logvar)
    return {"epoch": epoch, **figures, **pictures, "histograms": histograms}


def _means(run: Run, stage: NetworkStage, terms: Tensor) -> dict[str, float]:
    """The stage's mean terms by their names, and what they amount to."""
    means = dict(zip(stage.terms, terms.tolist(), strict=True))
    return means | implied(run, means["mse"], means["kl_nats"])


def _note(records: list[dict[str, Any]]) -> str:
    """The last figures in a few words, in parts between " · "."""
    last = next((r for r in reversed(records) if r["event"] == "steps"), None)
    if last is None:
        return ""
    terms = f"reconstruction {last['reconstruction_nats']:,.0f} + KL {last['kl_nats']:,.0f} nats"
    measured = next((r for r in reversed(records) if r["event"] == "epoch"), None)
    parts = [
        terms,
        *skipped_words(last.get("skipped_steps", 0)),
        f"held-out PSNR {measured['psnr']:.2f} dB" if measured else "",
        f"{last['images_per_second']:,.0f} images/s",
        f"memory {last['process_bytes'] / 1e9:.1f} GB" if "process_bytes" in last else "",
        f"GPU {last['gpu_bytes'] / 1e9:.1f} GB" if "gpu_bytes" in last else "",
    ]
    return " · ".join(filter(None, parts))


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
        key = f"{weights_digest(vae)} residual"
        prior: Prior = _fit_flow(work, mean, logvar, key)
    else:
        prior = build_prior(config, run.model.latent_dim).to(run.device)
    if isinstance(prior, GaussianPrior):
        prior.fit(mean, logvar)
    bundle = new_bundle(run, vae, mean, num_images)
    bundle.prior, bundle.prior_config = prior.eval(), config
    draw_latents(work.folder, mean, logvar)
    return bundle


def _fit_flow(work: Work, mean: Tensor, logvar: Tensor, key: str) -> FlowPrior:
    stage = _prior_stage(work.run, mean, logvar, work.listener.notice)
    first = resume(work, "prior", stage, key)
    sums, counts = torch.zeros(1, device=mean.device), stage.guard.counts()
    watch = Watch(0.0)
    for index, loss in take_steps(work, "prior", stage, first, key):
        sums += loss
        is_last = index + 1 == stage.budget.num_steps
        if is_last or ((index + 1) % _STEPS_A_RECORD == 0 and watch.is_time()):
            earlier, counts = counts, counted(work.folder, stage, index, _PRIOR_ADVICE)
            mean_loss = sums.item() / max(counts.num_sound - earlier.num_sound, 1)
            parts = [f"flow-matching loss {mean_loss:.3f}", *skipped_words(counts.num_skipped)]
            note = " · ".join(parts)
            work.listener.progress("Fitting the prior", *stage.budget.progress(index), note)
            sums.zero_()
            watch.lap()
    work.skipped["prior"] = stage.guard.counts().num_skipped
    work.folder.save_state("prior", stage.state(), stage.budget.num_steps, key)
    return stage.prior


def finish(work: Work, bundle: Bundle) -> None:
    """Finish the decoder, in place, with held-out figures and pictures at the ends of epochs."""
    run, folder, pace = work.run, work.folder, Pace()

    # Build, and go on from where an earlier process stopped
    fitted = weights_digest(bundle.vae), weights_digest(bundle.prior)
    key = " ".join([*fitted, str(run.train.finish_weight), *["LPIPS"] * run.train.perceptual])
    stage = _finish_stage(run, bundle.vae, bundle.prior)
    batches = stage.batches
    first = resume(work, "finish", stage, key)
    if first > stage.budget.num_steps:
        epochs = first * batches.size // batches.num_faces
        msg = (
            f"{folder.path}: has been finished for {epochs} epochs; --finish-epochs cannot be fewer"
        )
        raise RunError(msg)
    before = folder.recall_finish(first)
    watch = Watch(folder.records[-1]["seconds"] if folder.records else 0.0)
    sums, num_steps = torch.zeros(len(stage.terms), device=run.device), 0
    counts = stage.guard.counts()

    # Step
    for index, terms in take_steps(work, "finish", stage, first, key, bundle.prior_config):
        sums += terms
        num_steps += 1
        images = (index + 1) * batches.size
        is_last = index + 1 == stage.budget.num_steps
        is_epoch = is_last or images % batches.num_faces < batches.size
        if is_epoch or ((index + 1) % _STEPS_A_RECORD == 0 and watch.is_time()):
            earlier, counts = counts, counted(folder, stage, index, _FINISH_ADVICE)
            where = {
                "step": before["step"] + index + 1,
                "images": before["images"] + images,
                "seconds": watch.seconds(),
            }
            if num_sound := counts.num_sound - earlier.num_sound:
                shown = dict(zip(stage.terms, (sums / num_sound).tolist(), strict=True))
                check_finite(folder, shown)
                cost = cost_of(run, num_steps * batches.size, watch.lap())
                skipped = {"skipped_steps": counts.num_skipped}
                folder.record({"event": "finish", **where, **shown, **cost, **skipped})
            note = _finish_note(folder.records)
            work.listener.progress("Finishing", *stage.budget.progress(index), note)
            sums.zero_()
            num_steps = 0

        # Measure what would be saved
        if is_last or (is_epoch and pace.is_due()):
            with pace.taken():
                found = _measure_finish(work, bundle, images, is_last=is_last)
                where["seconds"] = watch.seconds()
                folder.record({"event": "epoch", "stage": "finish", **where, **found})
                folder.save_state("finish", stage.state(), index + 1, key)
                work.listener.epoch(folder.records[-1])
            watch.lap()
    work.skipped["finish"] = stage.guard.counts().num_skipped
    _tell_finish(run, bundle, stage.budget.num_steps * batches.size)


def _tell_finish(run: Run, bundle: Bundle, images: int) -> None:
    """Keep with the model how it was finished."""
    done = {"epochs": images // len(run.faces.train), "max_seconds": run.train.max_seconds}
    how = {"weight": run.train.finish_weight, "perceptual": run.train.perceptual}
    bundle.provenance["finish"] = {**done, **how}
    settings, train = bundle.provenance["train"], run.train
    settings["stages"] = [
        s for s in STAGES if s in (*settings.get("stages", ("vae", "prior")), *train.stages)
    ]
    settings |= {"finish_epochs": train.finish_epochs, "finish_weight": train.finish_weight}
    settings["perceptual"] = train.perceptual


def _measure_finish(work: Work, bundle: Bundle, images: int, *, is_last: bool) -> dict[str, Any]:
    """Figures and pictures of the model after so many images of its finish."""
    run, folder = work.run, work.folder
    figures = measure(run, bundle.vae, None if is_last else NUM_PROBES)
    check_finite(folder, figures)
    epoch = images // len(run.faces.train)
    _tell_finish(run, bundle, images)
    if work.save_progress:
        save(bundle, folder.model, half=run.half)
    pictures = draw_progress(run, folder, bundle, f"finish-{epoch:04d}")
    return {"epoch": epoch, **figures, **pictures}


def _finish_note(records: list[dict[str, Any]]) -> str:
    """The last figures of the finish in a few words, in parts between " · "."""
    last = next((r for r in reversed(records) if r["event"] == "finish"), None)
    if last is None:
        return ""
    measured = next((r for r in reversed(records) if r["event"] == "epoch"), None)
    parts = [
        f"made {last['generator_loss']:.2f} against {last['discriminator_loss']:.2f}",
        *skipped_words(last["skipped_steps"]),
        f"held-out PSNR {measured['psnr']:.2f} dB" if measured else "",
        f"sharpness {measured['sharpness']:.2f}" if measured else "",
        f"{last['images_per_second']:,.0f} images/s",
    ]
    return " · ".join(filter(None, parts))
