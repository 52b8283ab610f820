"""A run: faces in, a folder with a model out, whatever happens on the way."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from facevae import curves
from facevae.adversary import FinishStage
from facevae.batches import Batches, batches_of, evenly, watched
from facevae.bundle import Bundle, load, save
from facevae.config import STAGES, PriorConfig
from facevae.errors import ModelError, RunError
from facevae.faces import measure_framing
from facevae.files import locked
from facevae.framing import Framing
from facevae.guard import Counts
from facevae.images import grid, save_picture, to_pixels
from facevae.latents import decode, latents_of_seeds, posteriors
from facevae.learning import add_attributes, examples_of_faces
from facevae.model import VAE, remove_variance
from facevae.perceptual import load_perceptual
from facevae.prior import FlowPrior, GaussianPrior, build_prior
from facevae.runs import Run, RunFolder, left_out, weights_digest
from facevae.runtime import environment, memory_bytes, seeded, stop_requests
from facevae.snapshots import (
    draw_latents,
    draw_plane,
    draw_progress,
    implied,
    latent_histograms,
    measure,
    new_bundle,
    probe,
    progress_model,
    snapshot,
)
from facevae.stages import NetworkStage, PriorStage, Stage

_STEPS_A_RECORD = 20
_SECONDS_A_STATE = 300.0
_NUM_FRAMED = 128  # faces by which the framing is measured
_NETWORK_ADVICE = "start anew in another folder with a lower --learning-rate"
_ALL_STAGES = "add the stages before with --stages vae,prior,finish"
_FINISH_ADVICE = "go on without it: --stages vae,prior"
_PRIOR_ADVICE = "start anew in another folder with --prior gaussian, which takes no steps"


class Listener(Protocol):
    """What a run tells while it goes on."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts of `task`; `note` has figures in a few words."""

    def epoch(self, figures: Mapping[str, Any]) -> None:
        """An epoch's record, as in `metrics.jsonl`."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""


class Stopped(Exception):
    """The run was asked to stop, and its state is saved. Carries the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


@dataclass(frozen=True)
class _Work:
    """A run, where it is kept, who is told, and whether it was asked to stop."""

    run: Run
    folder: RunFolder
    listener: Listener
    stop_signal: Callable[[], int]
    skipped: dict[str, int] = field(default_factory=dict)  # steps, by stage
    save_progress: bool = True  # a finished model stays in place until the longer run's takes it

    def check_stop(self) -> None:
        """Raise `Stopped` if that was asked for; whoever calls this has nothing to save."""
        if stop := self.stop_signal():
            raise Stopped(stop)

    def progress(self, task: str, done: int, total: int) -> None:
        """Tell how far something is that has nothing to save, and stop if that was asked for."""
        self.listener.progress(task, done, total)
        self.check_stop()


def train(run: Run, listener: Listener) -> Bundle:
    """Start, continue or extend the run in its folder; returns the finished model.

    Raises `RunError` for a folder of another run, for figures that are no longer finite, or where
    most steps have to be skipped, and `Stopped` after Ctrl-C or SIGTERM, with everything saved.
    """
    with (
        locked(run.folder, "this run"),
        stop_requests() as stop_signal,
        closing(RunFolder(run.folder, tensorboard=run.tensorboard)) as folder,
    ):
        work = _Work(run, folder, listener, stop_signal)
        folder.claim(run.identity(), run.about(), left_out(run.train))
        earlier = _complete_model(work)
        if earlier and _is_enough(run, earlier):
            folder.write_events()
            epochs = earlier.provenance["epochs"]
            listener.notice(f"{run.folder}: finished already, at epoch {epochs}; nothing to do")
            return earlier
        if earlier and _forgets(run, earlier):
            listener.notice("without --labels, the longer run's model will know no attributes")
        if earlier and "finish" in earlier.provenance and "finish" not in run.train.stages:
            listener.notice("without the stage finish, the longer run's model will not be finished")
        folder.begin(run.command, environment(run.device))
        work = dataclasses.replace(work, save_progress=earlier is None)
        del earlier  # nothing of the file may be in use when it is replaced
        try:
            bundle = _fit(work)
            if "finish" in run.train.stages:
                _finish(work, bundle)
        except torch.OutOfMemoryError as error:
            msg = f"{run.folder}: {run.device} has too little memory; lower --batch-size or --size"
            raise RunError(msg) from error
        _complete(work, bundle)
        return bundle


def _measure_framing(work: _Work) -> Framing | None:
    faces = work.run.faces
    framing = measure_framing(faces.pixels[evenly(faces.train, _NUM_FRAMED)])
    if framing is None:
        work.listener.notice(
            "the faces are not framed alike, or none are found: the model will not align photos; "
            "`facevae align DATA -o DIR` makes a training set that is"
        )
    return framing


def _complete_model(work: _Work) -> Bundle | None:
    """The model of this run where it has come to its end."""
    bundle = _model_in(work, work.folder.model)
    return bundle if bundle and bundle.provenance.get("complete") else None


def _model_in(work: _Work, path: Path) -> Bundle | None:
    if not path.exists():
        return None
    try:
        return load(path)
    except ModelError as error:
        work.listener.notice(f"{error}; making it again")
        return None


def _is_enough(run: Run, earlier: Bundle) -> bool:
    """Whether the complete model is all that was asked for; no labels means those it has."""
    known = earlier.provenance
    labels = run.labels.fingerprint if run.labels else known.get("labels")
    same = {"weight": run.train.finish_weight, "perceptual": run.train.perceptual}
    is_finished = "finish" not in run.train.stages or _covers(
        run, known.get("finish"), run.train.finish_epochs, **same
    )
    is_fitted = _is_fitted(run, earlier)
    return is_finished and is_fitted and known.get("labels") == labels


def _forgets(run: Run, earlier: Bundle) -> bool:
    """Whether the run changes the latents that attributes were learned of, and learns no new ones."""
    is_changed = "vae" in run.train.stages and not _is_fitted(run, earlier)
    return bool(earlier.attributes) and is_changed and not run.labels


def _is_fitted(run: Run, earlier: Bundle) -> bool:
    """Whether that is all that the stages before the finish were asked for."""
    is_trained = _covers(run, earlier.provenance, run.train.epochs)
    has_prior = earlier.prior_config.kind == run.train.prior
    return (is_trained or "vae" not in run.train.stages) and (
        has_prior or "prior" not in run.train.stages
    )


def _covers(run: Run, done: Any, epochs: int, **same: object) -> bool:
    """Whether what a model says was done is as much as the run asks for, by time or epochs."""
    if not isinstance(done, dict) or any(done.get(key) != value for key, value in same.items()):
        return False
    if run.train.max_seconds is not None:
        return bool((done.get("max_seconds") or 0) >= run.train.max_seconds)
    return bool(done.get("epochs", 0) >= epochs)


# ---------------------------------------------------------------- the stages


def _fit(work: _Work) -> Bundle:
    """The model before its finish: as an earlier process left it, or fitted now."""
    run, folder = work.run, work.folder
    earlier = _model_in(work, folder.unfinished) or _complete_model(work)
    if earlier and "finish" in earlier.provenance:
        earlier = None  # and what it was before is lost
    if earlier and "finish" in run.train.stages and _is_fitted(run, earlier):
        return _keep_unfinished(work, earlier.to(run.device))
    if "vae" in run.train.stages:
        framing = _measure_framing(work)
        vae, num_images = _fit_network(work, framing)
    elif earlier is None:
        msg = f"{folder.path}: holds nothing to go on from; {_ALL_STAGES}"
        raise RunError(msg)
    else:
        framing, num_images = earlier.framing, earlier.provenance["images_seen"]
        vae = earlier.vae.to(run.device)
    bundle = _fit_prior(work, vae, num_images)
    bundle.framing = framing
    if earlier and "vae" not in run.train.stages:  # the latents are the same
        bundle.attributes, bundle.directions = earlier.attributes, earlier.directions
        bundle.scorers = earlier.scorers
        bundle.provenance["labels"] = earlier.provenance.get("labels")
    return _keep_unfinished(work, bundle)


def _keep_unfinished(work: _Work, bundle: Bundle) -> Bundle:
    """Where a finish follows, keep the model before it, to use meanwhile and to begin it again."""
    if "finish" in work.run.train.stages:
        bundle.provenance.pop("complete", None)
        if work.save_progress:
            save(bundle, work.folder.model, half=work.run.half)
        save(bundle, work.folder.unfinished)
    return bundle


def _fit_network(work: _Work, framing: Framing | None) -> tuple[VAE, int]:
    """Fit encoder and decoder, with held-out figures and pictures at each epoch.

    Returns the weights to be used, and how many images they have seen.
    """
    run, folder = work.run, work.folder

    # Build
    vae = _new_vae(run)
    batches = Batches(run.faces, run.train.batch_size, run.train.seed, run.device)
    stage = NetworkStage(vae, batches, run.train)

    # Go on from where an earlier process stopped
    first = _resume(work, "network", stage)
    if first > stage.budget.num_steps:
        epochs = first * batches.size // batches.num_faces
        msg = f"{folder.path}: has been trained for {epochs} epochs; --epochs cannot be fewer"
        raise RunError(msg)
    folder.recall(first)
    watch = _Watch(folder.records[-1]["seconds"] if folder.records else 0.0)
    sums, num_steps = torch.zeros(len(stage.terms), device=run.device), 0
    counts = stage.guard.counts()

    # Step
    for index, terms in _steps(work, "network", stage, first):
        sums += terms
        num_steps += 1
        images = (index + 1) * batches.size
        is_last = index + 1 == stage.budget.num_steps
        is_epoch = is_last or images % batches.num_faces < batches.size
        if (index + 1) % _STEPS_A_RECORD == 0 or is_epoch:
            earlier, counts = counts, _counted(folder, stage, index, _NETWORK_ADVICE)
            where = {"step": index + 1, "images": images, "seconds": watch.seconds()}
            if num_sound := counts.num_sound - earlier.num_sound:
                means = _means(run, stage, sums / num_sound)
                _check_finite(folder, means)
                means |= _cost(run, num_steps * batches.size, watch.lap())
                skipped = {"skipped_steps": counts.num_skipped}
                folder.record({"event": "steps", **where, **means, **skipped})
            note = _note(folder.records)
            work.listener.progress("Training", *stage.budget.progress(index), note)
            sums.zero_()
            num_steps = 0

        # Measure what would be saved
        if is_epoch:
            found = _measure_network(work, stage, framing, images)
            where["seconds"] = watch.seconds()
            folder.record({"event": "epoch", "stage": "vae", **where, **found})
            watch.lap()
            folder.save_state("network", stage.state(), index + 1)
            work.listener.epoch(folder.records[-1])
    work.skipped["network"] = stage.guard.counts().num_skipped
    return snapshot(run, stage), stage.budget.num_steps * batches.size


def _measure_network(
    work: _Work, stage: NetworkStage, framing: Framing | None, images: int
) -> dict[str, Any]:
    """Figures and pictures of what would be saved after so many images, which it is meanwhile."""
    run, folder = work.run, work.folder
    averaged = snapshot(run, stage)
    figures = measure(run, averaged)
    _check_finite(folder, figures)
    epoch = images // len(run.faces.train)
    mean, logvar = probe(run, averaged)
    progress = progress_model(run, averaged, mean, logvar, images)
    progress.framing = framing
    if work.save_progress:
        save(progress, folder.model, half=run.half)
    pictures = draw_progress(run, folder, progress, f"{epoch:04d}")
    histograms = latent_histograms(mean, logvar)
    return {"epoch": epoch, **figures, **pictures, "histograms": histograms}


def _new_vae(run: Run) -> VAE:
    with seeded(run.train.seed):
        vae = VAE(run.model)
    if run.init:
        vae.load_state_dict(run.init.vae.state_dict())
    if not run.train.kl_weight:
        remove_variance(vae)
    return vae.to(run.device)


def _fit_prior(work: _Work, vae: VAE, num_images: int) -> Bundle:
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
    with seeded(run.train.seed):
        prior = build_prior(config, run.model.latent_dim).to(run.device)
    if isinstance(prior, GaussianPrior):
        prior.fit(mean, logvar)
    elif isinstance(prior, FlowPrior):
        # a flow that was fitted to other latents, or that means something else, is of no use
        key = f"{weights_digest(vae)} residual"
        epochs = run.train.prior_epochs
        seconds = run.train.seconds_for("prior")
        stage = PriorStage(prior, mean, logvar, epochs=epochs, seed=run.train.seed, seconds=seconds)
        first = _resume(work, "prior", stage, key)
        sums, counts = torch.zeros(1, device=run.device), stage.guard.counts()
        for index, loss in _steps(work, "prior", stage, first, key):
            sums += loss
            if (index + 1) % _STEPS_A_RECORD == 0 or index + 1 == stage.budget.num_steps:
                earlier, counts = counts, _counted(work.folder, stage, index, _PRIOR_ADVICE)
                mean_loss = sums.item() / max(counts.num_sound - earlier.num_sound, 1)
                parts = [f"flow-matching loss {mean_loss:.3f}", *_skipped(counts.num_skipped)]
                note = " · ".join(parts)
                work.listener.progress("Fitting the prior", *stage.budget.progress(index), note)
                sums.zero_()
        work.skipped["prior"] = stage.guard.counts().num_skipped
        work.folder.save_state("prior", stage.state(), stage.budget.num_steps, key)
    bundle = new_bundle(run, vae, mean, num_images)
    bundle.prior, bundle.prior_config = prior.eval(), config
    draw_latents(work.folder, mean, logvar)
    return bundle


def _finish(work: _Work, bundle: Bundle) -> None:
    """Finish the decoder, in place, with held-out figures and pictures at each epoch."""
    run, folder = work.run, work.folder

    # Build, and go on from where an earlier process stopped
    fitted = weights_digest(bundle.vae), weights_digest(bundle.prior)
    key = " ".join([*fitted, str(run.train.finish_weight), *["LPIPS"] * run.train.perceptual])
    perceptual = load_perceptual(run.device) if run.train.perceptual else None
    batches = Batches(run.faces, run.train.batch_size, run.train.seed, run.device)
    stage = FinishStage(bundle.vae, bundle.prior, batches, run.train, perceptual)
    first = _resume(work, "finish", stage, key)
    if first > stage.budget.num_steps:
        epochs = first * batches.size // batches.num_faces
        msg = (
            f"{folder.path}: has been finished for {epochs} epochs; --finish-epochs cannot be fewer"
        )
        raise RunError(msg)
    before = folder.recall_finish(first)
    watch = _Watch(folder.records[-1]["seconds"] if folder.records else 0.0)
    sums, num_steps = torch.zeros(len(stage.terms), device=run.device), 0
    counts = stage.guard.counts()

    # Step
    for index, terms in _steps(work, "finish", stage, first, key):
        sums += terms
        num_steps += 1
        images = (index + 1) * batches.size
        is_last = index + 1 == stage.budget.num_steps
        is_epoch = is_last or images % batches.num_faces < batches.size
        if (index + 1) % _STEPS_A_RECORD == 0 or is_epoch:
            earlier, counts = counts, _counted(folder, stage, index, _FINISH_ADVICE)
            where = {
                "step": before["step"] + index + 1,
                "images": before["images"] + images,
                "seconds": watch.seconds(),
            }
            means = (sums / max(counts.num_sound - earlier.num_sound, 1)).tolist()
            shown = dict(zip(stage.terms, means, strict=True))
            cost = _cost(run, num_steps * batches.size, watch.lap())
            skipped = {"skipped_steps": counts.num_skipped}
            folder.record({"event": "finish", **where, **shown, **cost, **skipped})
            note = _finish_note(folder.records)
            work.listener.progress("Finishing", *stage.budget.progress(index), note)
            sums.zero_()
            num_steps = 0

        # Measure what would be saved
        if is_epoch:
            found = _measure_finish(work, bundle, images)
            where["seconds"] = watch.seconds()
            folder.record({"event": "epoch", "stage": "finish", **where, **found})
            watch.lap()
            folder.save_state("finish", stage.state(), index + 1, key)
            work.listener.epoch(folder.records[-1])
    work.skipped["finish"] = stage.guard.counts().num_skipped


def _measure_finish(work: _Work, bundle: Bundle, images: int) -> dict[str, Any]:
    """Figures and pictures of the model after so many images of its finish."""
    run, folder = work.run, work.folder
    figures = measure(run, bundle.vae)
    _check_finite(folder, figures)
    epoch = images // len(run.faces.train)
    done = {"epochs": epoch, "max_seconds": run.train.max_seconds}
    how = {"weight": run.train.finish_weight, "perceptual": run.train.perceptual}
    bundle.provenance["finish"] = {**done, **how}
    settings, train = bundle.provenance["train"], run.train
    settings["stages"] = [
        s for s in STAGES if s in (*settings.get("stages", ("vae", "prior")), *train.stages)
    ]
    settings |= {"finish_epochs": train.finish_epochs, "finish_weight": train.finish_weight}
    settings["perceptual"] = train.perceptual
    if work.save_progress:
        save(bundle, folder.model, half=run.half)
    pictures = draw_progress(run, folder, bundle, f"finish-{epoch:04d}")
    return {"epoch": epoch, **figures, **pictures}


def _complete(work: _Work, bundle: Bundle) -> None:
    """Learn directions, measure, draw, and at last save the model, which makes the run complete."""
    run, folder = work.run, work.folder
    if run.labels and (examples := examples_of_faces(bundle, run.faces, run.labels)):
        add_attributes(bundle, examples)
    known = bundle.provenance.get("labels") if bundle.attributes else None
    bundle.provenance |= {
        "complete": True,
        "figures": measure(run, bundle.vae),
        "labels": run.labels.fingerprint if run.labels else known,
        "skipped_steps": sum(work.skipped.values()),
        "train_seconds": folder.records[-1]["seconds"] if folder.records else None,
    }
    pixels = to_pixels(decode(bundle.vae, latents_of_seeds(bundle, list(range(64)))))
    save_picture(folder.pictures / "samples.png", grid(pixels))
    if run.model.latent_dim == 2:  # noqa: PLR2004 - a plane can be shown whole
        draw_plane(folder, bundle)
    if curves.is_available():
        drawn = curves.draw_curves(folder.records, folder.pictures)
        curves.save(drawn, folder.pictures / "curves.png")
    save(bundle, folder.model, half=run.half)


def _means(run: Run, stage: NetworkStage, terms: Tensor) -> dict[str, float]:
    """The stage's mean terms by their names, and what they amount to."""
    means = dict(zip(stage.terms, terms.tolist(), strict=True))
    return means | implied(run, means["mse"], means["kl_nats"])


def _cost(run: Run, images: int, seconds: float) -> dict[str, float]:
    """What training on so many images in so many seconds takes."""
    held = {f"{of}_bytes": count for of, count in memory_bytes(run.device).items()}
    return {"images_per_second": images / seconds, **held}


def _note(records: list[dict[str, Any]]) -> str:
    """The last figures in a few words, in parts between " · "."""
    last = next((r for r in reversed(records) if r["event"] == "steps"), None)
    if last is None:
        return ""
    terms = f"reconstruction {last['reconstruction_nats']:,.0f} + KL {last['kl_nats']:,.0f} nats"
    measured = next((r for r in reversed(records) if r["event"] == "epoch"), None)
    parts = [
        terms,
        *_skipped(last.get("skipped_steps", 0)),
        f"held-out PSNR {measured['psnr']:.2f} dB" if measured else "",
        f"{last['images_per_second']:,.0f} images/s",
        f"memory {last['process_bytes'] / 1e9:.1f} GB" if "process_bytes" in last else "",
        f"GPU {last['gpu_bytes'] / 1e9:.1f} GB" if "gpu_bytes" in last else "",
    ]
    return " · ".join(filter(None, parts))


def _finish_note(records: list[dict[str, Any]]) -> str:
    """The last figures of the finish in a few words, in parts between " · "."""
    last = records[-1]
    measured = next((r for r in reversed(records) if r["event"] == "epoch"), None)
    parts = [
        f"made {last['generator_loss']:.2f} against {last['discriminator_loss']:.2f}",
        *_skipped(last["skipped_steps"]),
        f"held-out PSNR {measured['psnr']:.2f} dB" if measured else "",
        f"sharpness {measured['sharpness']:.2f}" if measured else "",
        f"{last['images_per_second']:,.0f} images/s",
    ]
    return " · ".join(filter(None, parts))


def _skipped(count: int) -> list[str]:
    """How many steps were skipped, in words; nothing where none were."""
    return [f"{count:,} step{'s' if count > 1 else ''} skipped"] if count else []


# ---------------------------------------------------------------- steps and states


def _steps(
    work: _Work, name: str, stage: Stage, first: int, key: str = ""
) -> Iterator[tuple[int, Tensor]]:
    """Take the steps from `first` on; between two, save the state when it is time or asked for."""
    saved = time.monotonic()
    index = first
    while index < stage.budget.num_steps:
        terms = stage.step(index)
        stage.budget.close_after(index)
        yield index, terms
        index += 1
        if work.stop_signal() or time.monotonic() - saved > _SECONDS_A_STATE:
            work.folder.save_state(name, stage.state(), index, key)
            saved = time.monotonic()
        work.check_stop()


def _resume(work: _Work, name: str, stage: Stage, key: str = "") -> int:
    """Restore the stage's saved state, if there is one; returns the next step to take."""
    saved = work.folder.load_state(name, key, warn=work.listener.notice)
    if saved is None:
        return 0
    state, step = saved
    stage.restore(state)
    stage.budget.close_after(step - 1)
    if step < stage.budget.num_steps:
        work.listener.notice(f"{work.folder.path}: going on with the {name} after step {step}")
    return step


def _counted(folder: RunFolder, stage: Stage, index: int, advice: str) -> Counts:
    """What has become of the steps up to `index`. Raises `RunError` where most fail, with advice."""
    counts = stage.guard.counts()
    is_last = index + 1 == stage.budget.num_steps
    if counts.is_failing or (is_last and counts.num_skipped > counts.num_sound):
        msg = (
            f"{folder.path}: {counts.num_skipped:,} of {index + 1:,} steps were skipped, since their "
            f"gradients were not finite or far too large; the state before is kept; {advice}"
        )
        raise RunError(msg)
    return counts


class _Watch:
    """Seconds of work, over all the processes that a run took."""

    def __init__(self, before: float) -> None:
        self._before, self._begun = before, time.monotonic()
        self._lap = self._begun

    def lap(self) -> float:
        """Seconds since the lap before."""
        before, self._lap = self._lap, time.monotonic()
        return max(self._lap - before, 1e-6)

    def seconds(self) -> float:
        return round(self._before + time.monotonic() - self._begun, 3)


def _check_finite(folder: RunFolder, figures: Mapping[str, float]) -> None:
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        msg = (
            f"{folder.path}: {', '.join(bad)} is no longer finite; the state before is kept; "
            "start anew in another folder with a lower --learning-rate"
        )
        raise RunError(msg)
