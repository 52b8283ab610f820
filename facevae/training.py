"""A run: faces in, a folder with a model out, whatever happens on the way."""

import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from facevae import curves, parallel
from facevae.batches import Batches, batches_of, evenly, watched
from facevae.bundle import Bundle, load, save
from facevae.errors import ModelError, RunError, Stopped
from facevae.estimate import fitting_batch_size
from facevae.faces import measure_framing
from facevae.files import locked
from facevae.framing import Framing
from facevae.guard import Counts
from facevae.images import grid, save_picture, to_pixels
from facevae.latents import decode, latents_of_seeds, posteriors
from facevae.learning import add_attributes, examples_of_faces
from facevae.model import VAE, remove_variance
from facevae.prior import FlowPrior, GaussianPrior, Prior, build_prior
from facevae.runs import Run, RunFolder, weights_digest
from facevae.runtime import environment, is_out_of_memory, memory_bytes, seeded, stop_requests
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
_PRIOR_ADVICE = "start anew in another folder with --prior gaussian, which takes no steps"


class Listener(Protocol):
    """What a run tells while it goes on."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts of `task`; `note` has figures in a few words."""

    def epoch(self, figures: Mapping[str, Any]) -> None:
        """An epoch's record, as in `metrics.jsonl`."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class _Work:
    """A run, where it is kept, who is told, and whether it was asked to stop."""

    run: Run
    folder: RunFolder
    listener: Listener
    stop_signal: Callable[[], int]
    skipped: dict[str, int] = field(default_factory=dict)  # steps, by stage

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

    Where several processes train, this is what the first of them does, and the others `follow`.
    Raises `RunError` for a folder of another run, for figures that are no longer finite, or where
    most steps have to be skipped, and `Stopped` after Ctrl-C or SIGTERM, with everything saved.
    """
    bundle = _lead(run, listener)
    parallel.from_lead(None)  # there is no further stage to follow
    return bundle


def follow(run: Run) -> None:
    """Take this process's share of every step that the first process takes, and write nothing.

    Raises `Stopped` as `train` does.
    """
    with stop_requests() as stop_signal:
        while stage_and_step := parallel.from_lead():
            name, step = stage_and_step
            state = parallel.tensors_from_lead({}, run.device)
            if name == "network":
                stage: Stage = _network_stage(run)
            else:
                stage = _prior_stage(run, state["posterior.mean"], state["posterior.logvar"])
            stage.restore(state)
            accord = parallel.Accord(run.device)
            for index in range(step, stage.num_steps):
                stage.step(index)
                if stop := accord(stop_signal()):
                    raise Stopped(stop)


def _lead(run: Run, listener: Listener) -> Bundle:
    with (
        locked(run.folder, "this run"),
        stop_requests() as stop_signal,
        closing(RunFolder(run.folder, tensorboard=run.tensorboard)) as folder,
    ):
        work = _Work(run, folder, listener, stop_signal)
        work.folder.claim(run.identity(), run.about())
        earlier = _earlier_model(work)
        if earlier and _is_enough(run, earlier):
            folder.write_events()
            epochs = earlier.provenance["epochs"]
            listener.notice(f"{run.folder}: finished already, at epoch {epochs}; nothing to do")
            return earlier
        if earlier and earlier.attributes and not run.labels:
            listener.notice("without --labels, the longer run's model will know no attributes")
        folder.begin(run.command, environment(run.device))
        framing = _measure_framing(work)
        # a finished model stays in place until the longer run's takes it
        save_progress = earlier is None
        del earlier  # nothing of the file may be in use when it is replaced
        with _memory_advice(run, lambda: _batch_advice(run)):
            vae = _fit_network(work, framing, save_progress=save_progress)
        with _memory_advice(run, lambda: "--prior gaussian needs less"):
            bundle = _fit_prior(work, vae)
        bundle.framing = framing
        _finish(work, bundle)
        return bundle


@contextmanager
def _memory_advice(run: Run, advice: Callable[[], str]) -> Iterator[None]:
    """Turn a lack of memory into one `RunError` with advice, asked for when all is freed again."""
    is_short = False
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        is_short = True
        traceback.clear_frames(error.__traceback__)  # which hold what was allocated
    if is_short:
        gc.collect()
        msg = f"{run.folder}: {run.device} has too little memory; {advice()}, in another folder"
        raise RunError(msg)


def _batch_advice(run: Run) -> str:
    fitting = fitting_batch_size(run.model, run.train, len(run.faces.train), run.device)
    return f"--batch-size {fitting} should fit" if fitting else "lower --batch-size or --size"


def _measure_framing(work: _Work) -> Framing | None:
    faces = work.run.faces
    framing = measure_framing(faces.pixels[evenly(faces.train, _NUM_FRAMED)])
    if framing is None:
        work.listener.notice(
            "the faces are not framed alike, or none are found: the model will not align photos; "
            "`facevae align DATA -o DIR` makes a training set that is"
        )
    return framing


def _earlier_model(work: _Work) -> Bundle | None:
    """The finished model of this run, if there is one."""
    if not work.folder.model.exists():
        return None
    try:
        bundle = load(work.folder.model)
    except ModelError as error:
        work.listener.notice(f"{error}; making it again")
        return None
    return bundle if bundle.provenance.get("complete") else None


def _is_enough(run: Run, earlier: Bundle) -> bool:
    """Whether the finished model is all that was asked for; no labels means those it has."""
    known = earlier.provenance
    labels = run.labels.fingerprint if run.labels else known.get("labels")
    return known.get("epochs", 0) >= run.train.epochs and known.get("labels") == labels


# ---------------------------------------------------------------- the stages


def _fit_network(work: _Work, framing: Framing | None, *, save_progress: bool) -> VAE:
    """Fit encoder and decoder, with held-out figures and pictures at each epoch."""
    run, folder = work.run, work.folder

    # Go on from where an earlier process stopped
    stage = _network_stage(run)
    batches = stage.batches
    first = _resume(work, "network", stage)
    if first > stage.num_steps:
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
        is_last = index + 1 == stage.num_steps
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
            work.listener.progress("Training", index + 1, stage.num_steps, note)
            sums.zero_()
            num_steps = 0

        # Measure what would be saved
        if is_epoch:
            averaged = snapshot(run, stage)
            figures = measure(run, averaged)
            _check_finite(folder, figures)
            epoch = images // batches.num_faces
            mean, logvar = probe(run, averaged)
            progress = progress_model(run, averaged, mean, logvar, images)
            progress.framing = framing
            if save_progress:
                save(progress, folder.model, half=run.half)
            pictures = draw_progress(run, folder, progress, epoch)
            shown = {**pictures, "histograms": latent_histograms(mean, logvar)}
            where["seconds"] = watch.seconds()
            folder.record({"event": "epoch", **where, "epoch": epoch, **figures, **shown})
            watch.lap()
            folder.save_state("network", stage.state(), index + 1)
            work.listener.epoch(folder.records[-1])
    work.skipped["network"] = stage.guard.counts().num_skipped
    return snapshot(run, stage)


def _network_stage(run: Run) -> NetworkStage:
    batches = Batches(run.faces, run.train.batch_size, run.train.seed, run.device)
    return NetworkStage(_new_vae(run), batches, run.train)


def _prior_stage(run: Run, mean: Tensor, logvar: Tensor) -> PriorStage:
    """The fitting of a flow to posteriors, `mean` and `logvar` (N, D)."""
    config = run.train.prior_config
    with seeded(run.train.seed):
        prior = FlowPrior(run.model.latent_dim, config.width, config.blocks).to(run.device)
    return PriorStage(prior, mean, logvar, epochs=run.train.prior_epochs, seed=run.train.seed)


def _new_vae(run: Run) -> VAE:
    with seeded(run.train.seed):
        vae = VAE(run.model)
    if run.init:
        vae.load_state_dict(run.init.vae.state_dict())
    if not run.train.kl_weight:
        remove_variance(vae)
    return vae.to(run.device)


def _fit_prior(work: _Work, vae: VAE) -> Bundle:
    """Fit the prior to the posteriors of the training faces and their mirror images."""
    run = work.run
    batches = batches_of(run.faces, run.faces.train, run.device, mirrored=True)
    num_images = 2 * len(run.faces.train)
    mean, logvar = posteriors(vae, watched(batches, "Encoding", num_images, work.progress))
    config = run.train.prior_config
    if config.kind == "flow":
        key = weights_digest(vae)  # a flow that was fitted to other latents is of no use
        prior: Prior = _fit_flow(work, mean, logvar, key)
    else:
        prior = build_prior(config, run.model.latent_dim).to(run.device)
    if isinstance(prior, GaussianPrior):
        prior.fit(mean, logvar)
    bundle = new_bundle(run, vae, mean, run.train.epochs * len(run.faces.train))
    bundle.prior, bundle.prior_config = prior.eval(), config
    draw_latents(work.folder, mean, logvar)
    return bundle


def _fit_flow(work: _Work, mean: Tensor, logvar: Tensor, key: str) -> FlowPrior:
    stage = _prior_stage(work.run, mean, logvar)
    first = _resume(work, "prior", stage, key)
    sums, counts = torch.zeros(1, device=mean.device), stage.guard.counts()
    for index, loss in _steps(work, "prior", stage, first, key):
        sums += loss
        if (index + 1) % _STEPS_A_RECORD == 0 or index + 1 == stage.num_steps:
            earlier, counts = counts, _counted(work.folder, stage, index, _PRIOR_ADVICE)
            mean_loss = sums.item() / max(counts.num_sound - earlier.num_sound, 1)
            parts = [f"flow-matching loss {mean_loss:.3f}", *_skipped(counts.num_skipped)]
            work.listener.progress(
                "Fitting the prior", index + 1, stage.num_steps, " · ".join(parts)
            )
            sums.zero_()
    work.skipped["prior"] = stage.guard.counts().num_skipped
    work.folder.save_state("prior", stage.state(), stage.num_steps, key)
    return stage.prior


def _finish(work: _Work, bundle: Bundle) -> None:
    """Learn directions, measure, draw, and at last save the model, which makes the run complete."""
    run, folder = work.run, work.folder
    if run.labels and (examples := examples_of_faces(bundle, run.faces, run.labels)):
        add_attributes(bundle, examples)
    bundle.provenance |= {
        "complete": True,
        "figures": measure(run, bundle.vae),
        "labels": run.labels.fingerprint if run.labels else None,
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


def _skipped(count: int) -> list[str]:
    """How many steps were skipped, in words; nothing where none were."""
    return [f"{count:,} step{'s' if count > 1 else ''} skipped"] if count else []


# ---------------------------------------------------------------- steps and states


def _steps(
    work: _Work, name: str, stage: Stage, first: int, key: str = ""
) -> Iterator[tuple[int, Tensor]]:
    """Take the steps from `first` on; between two, save the state when it is time or asked for.

    Whoever follows takes them too, beginning with the same state.
    """
    device = work.run.device
    parallel.from_lead((name, first))
    parallel.tensors_from_lead(stage.state() | stage.inputs(), device)
    accord, saved = parallel.Accord(device), time.monotonic()
    for index in range(first, stage.num_steps):
        yield index, stage.step(index)
        stop = accord(work.stop_signal())
        if stop or time.monotonic() - saved > _SECONDS_A_STATE:
            work.folder.save_state(name, stage.state(), index + 1, key)
            saved = time.monotonic()
        if stop:
            raise Stopped(stop)


def _resume(work: _Work, name: str, stage: Stage, key: str = "") -> int:
    """Restore the stage's saved state, if there is one; returns the next step to take."""
    saved = work.folder.load_state(name, key, warn=work.listener.notice)
    if saved is None:
        return 0
    state, step = saved
    stage.restore(state)
    if step < stage.num_steps:
        work.listener.notice(f"{work.folder.path}: going on with the {name} after step {step}")
    return step


def _counted(folder: RunFolder, stage: Stage, index: int, advice: str) -> Counts:
    """What has become of the steps up to `index`. Raises `RunError` where most fail, with advice."""
    counts = stage.guard.counts()
    is_last = index + 1 == stage.num_steps
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
