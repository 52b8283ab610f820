"""The stages of a training run in order: from faces to a finished model in the run's folder."""

import gc
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from facevae.charts import curves, plots
from facevae.config import STAGES, WHOLE_TEXTURE
from facevae.data.batches import evenly
from facevae.data.image_tensors import to_pixels
from facevae.data.images import grid, save_picture
from facevae.errors import ModelError, RunError, Stopped, UsageError
from facevae.faces.alignment import measure_framing
from facevae.faces.framing import Framing
from facevae.latent_space.latents import decode, latents_of_seeds
from facevae.latent_space.learning import add_attributes, examples_of_faces
from facevae.models.bundle import Bundle, load, save
from facevae.networks.prior import build_prior
from facevae.networks.vae import VAE
from facevae.stages.stage import Stage
from facevae.stages.states import strip_prefix
from facevae.system import parallel
from facevae.system.files import locked
from facevae.system.memory import is_out_of_memory
from facevae.system.runtime import environment, kernels_by_trial
from facevae.system.signals import stop_requests
from facevae.training.earlier import (
    initial_model,
    is_complete,
    is_fitted,
    is_satisfied,
    loses_attributes,
    must_restart,
    update_terms,
)
from facevae.training.estimate import fitting_batch_size
from facevae.training.finish_fit import finish, finish_stage
from facevae.training.network_fit import fit_network, network_stage
from facevae.training.prior_fit import fit_prior, prior_stage
from facevae.training.run_folders import RunFolder, stages_before
from facevae.training.runs import Run, left_out
from facevae.training.snapshots import draw_plane, measure
from facevae.training.steps import Listener, StageStart, Work, progress_of

_NUM_FRAMED = 128  # faces on which the framing is measured
_NUM_SAMPLES = 64  # in the picture of a complete model


def train(run: Run, listener: Listener) -> Bundle:
    """Start, resume or extend the run in its folder; returns the finished model.

    With several processes, the first one calls this function, and the others call `follow`.
    Raises `RunError` for a folder of another run, for figures that are not finite, or if most steps
    are skipped, and `Stopped` after Ctrl-C or SIGTERM, once everything is saved.
    """
    try:
        bundle = _lead(run, listener)
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, run.folder) from stopped
    parallel.from_lead(None)  # the end of the run, for `follow`
    return bundle


def follow(run: Run) -> None:
    """Take this process's share of every step of the first process, and write nothing.

    Raises `Stopped` after Ctrl-C or SIGTERM.
    """
    with stop_requests() as stop_signal, kernels_by_trial():
        while start := _next_stage():
            state = parallel.tensors_from_lead({}, run.device)
            stage = _build_stage(run, start, state)
            stage.restore(state)
            del state
            accord, index = parallel.Accord(run.device), start.first_step
            with _memory_advice(run, lambda: "lower --batch-size"):
                while index < stage.budget.num_steps:
                    stage.step(index)
                    index += 1
                    if stop := accord(stop_signal()):
                        raise Stopped(stop, run.folder)


def _next_stage() -> StageStart | None:
    """The next stage that the first process starts; None at the end of the run."""
    ignored: StageStart | None = None
    return parallel.from_lead(ignored)


def _build_stage(run: Run, start: StageStart, inputs: Mapping[str, Tensor]) -> Stage:
    """The stage that the first process starts; `inputs` are what the stage is fitted to."""
    if start.stage_name == "network":
        return network_stage(run)
    if start.stage_name == "prior":
        mean, logvar, changes = (inputs[f"posterior.{n}"] for n in ("mean", "logvar", "changes"))
        return prior_stage(run, mean, logvar, changes)
    assert start.prior_config is not None  # noqa: S101 - sent with every finish
    vae, prior = VAE(run.model), build_prior(start.prior_config, run.model.latent_dim)
    vae.load_state_dict(strip_prefix(inputs, "fitted.vae."))
    prior.load_state_dict(strip_prefix(inputs, "fitted.prior."))
    return finish_stage(run, vae.to(run.device), prior.to(run.device))


def _lead(run: Run, listener: Listener) -> Bundle:
    """Train as the first process, which alone reports and writes, with the folder locked."""
    with (
        locked(run.folder, "this run"),
        stop_requests() as stop_signal,
        kernels_by_trial(),
        closing(RunFolder(run.folder, tensorboard=run.tensorboard)) as folder,
    ):
        if parallel.size() > 1 and run.train.max_seconds is not None:
            msg = "--max-time is the time of one process; where several train, say --epochs"
            raise UsageError(msg)
        folder.claim(run.identity(), run.about(), left_out(run.train))
        return _fit_and_finish(Work(run, folder, listener, stop_signal))


def _fit_and_finish(work: Work) -> Bundle:
    """The complete model of the run: the one in its folder if that is as requested, or a new one."""
    run, folder = work.run, work.folder
    found = _model_in(work, folder.model)
    if found and is_complete(found):
        if is_satisfied(run, found):
            _report_satisfied(work, found)
            return found
        _check_extension(work, found)
        # a complete model stays in place until the extended run is complete
        work.saved_progress = (math.inf, math.inf)
    else:
        work.saved_progress = progress_of(found)
    folder.begin(run.command, environment(run.device))
    # a model whose network another run trained has the framing of other faces
    framing = found.framing if found and folder.has_state("network") else None
    del found  # a file cannot be replaced everywhere while its tensors are in use
    bundle = _fit(work, framing)
    if "finish" in run.train.stages:
        with _memory_advice(run, lambda: "lower --batch-size"):
            finish(work, bundle)
    _complete(work, bundle)
    return bundle


def _report_satisfied(work: Work, model: Bundle) -> None:
    """Update the terms, precision and event files of a model that needs no training."""
    run, folder = work.run, work.folder
    folder.write_events()
    done = update_terms(run, model, folder.model) or "nothing to do"
    where = f", at epoch {model.provenance['epochs']}" if "vae" in run.train.stages else ""
    work.listener.notice(f"{run.folder}: finished already{where}; {done}")


def _check_extension(work: Work, model: Bundle) -> None:
    """Warn of what a complete model loses if its run is extended.

    Raises `RunError` if the extended training would have to start from the first step.
    """
    run, folder = work.run, work.folder
    if must_restart(run, folder, model):
        msg = (
            f"{run.folder}: its state/ is gone, so that more epochs would begin anew and replace "
            f"its model; name another folder with -o, and --init {run.folder} to begin with its weights"
        )
        raise RunError(msg)
    if loses_attributes(run, model):
        work.listener.notice("without --labels, the longer run's model will know no attributes")
    if "finish" in model.provenance and "finish" not in run.train.stages:
        work.listener.notice(
            "without the stage finish, the longer run's model will not be finished"
        )


@contextmanager
def _memory_advice(run: Run, advice: Callable[[], str]) -> Iterator[None]:
    """Turn a lack of memory inside the block into a `RunError` with advice.

    `advice` is called once the memory is free again.
    """
    is_short = False
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        is_short = True
        traceback.clear_frames(error.__traceback__)  # whose variables hold what was allocated
    finally:
        # a recorded step and its stage refer to each other, and hold memory of the device
        gc.collect()
    if is_short:
        msg = f"{run.folder}: {run.device} has too little memory; {advice()}, in another folder"
        raise RunError(msg)


def _batch_advice(run: Run) -> str:
    """What to do if the network's training does not fit into memory."""
    if parallel.size() > 1:  # measuring would need steps, which all processes take together
        return "lower --batch-size or --size"
    fitting = fitting_batch_size(run.model, run.train, len(run.faces.train), run.device)
    return f"--batch-size {fitting} should fit" if fitting else "lower --batch-size or --size"


def _measure_framing(work: Work) -> Framing | None:
    """The framing that the training faces share; None, with a notice, if they share none."""
    faces = work.run.faces
    pixels = faces.pixels[evenly(faces.train, _NUM_FRAMED)]
    framing = measure_framing(pixels, partial(work.progress, "Looking at framing"))
    if framing is None:
        work.listener.notice(
            "the faces are not framed alike, or none are found: the model will not align photos; "
            "`facevae align DATA -o DIR` makes a training set that is"
        )
    return framing


def _model_in(work: Work, path: Path) -> Bundle | None:
    """The model in a file; None if there is no file, or, with a notice, no sound one."""
    if not path.exists():
        return None
    try:
        return load(path)
    except ModelError as error:
        work.listener.notice(f"{error}; making it again")
        return None


def _fit(work: Work, framing: Framing | None) -> Bundle:
    """The model before its finish: one from an earlier session, or a newly fitted one.

    `framing` is that of the training faces, None if it has not been measured or they share none.
    """
    run, folder = work.run, work.folder
    earlier = _latest_unfinished(work)
    if earlier and "finish" in run.train.stages and is_fitted(run, earlier):
        work.skipped["before"] = earlier.provenance.get("skipped_steps", 0)
        return _keep_unfinished(work, earlier.to(run.device))
    if "vae" in run.train.stages:
        framing = framing or _measure_framing(work)
        with _memory_advice(run, lambda: _batch_advice(run)):
            vae, num_images = fit_network(work, framing)
    elif earlier is None:
        msg = f"{folder.path}: holds nothing to go on from; {stages_before(run.train.stages)}"
        raise RunError(msg)
    else:
        framing, num_images = earlier.framing, earlier.provenance["images_seen"]
        vae = earlier.to(run.device).vae
    with _memory_advice(run, lambda: "--prior gaussian needs less"):
        bundle = fit_prior(work, vae, num_images)
    bundle.framing = framing
    if earlier and "vae" not in run.train.stages:
        _copy_knowledge(work, bundle, earlier)
    _keep_unfinished(work, bundle)
    if "finish" in run.train.stages:
        work.save_progress(bundle)
    return bundle


def _latest_unfinished(work: Work) -> Bundle | None:
    """The model of the run without a finish that was trained longest.

    If there is none yet, the initial model, provided that the run keeps its network.
    """
    complete = _model_in(work, work.folder.model)
    if complete and not is_complete(complete):
        complete = None
    unfinished = _model_in(work, work.folder.unfinished)
    models = [m for m in (complete, unfinished) if m and "finish" not in m.provenance]
    latest = max(models, key=lambda model: model.provenance["images_seen"], default=None)
    return latest or initial_model(work.run)


def _copy_knowledge(work: Work, bundle: Bundle, earlier: Bundle) -> None:
    """Copy attributes and provenance of an unchanged network to the model with a new prior."""
    bundle.attributes, bundle.directions = earlier.attributes, earlier.directions
    bundle.scorers, bundle.interactions = earlier.scorers, earlier.interactions
    bundle.axes = earlier.axes
    provenance, old = bundle.provenance, earlier.provenance
    provenance["labels"] = old.get("labels")
    provenance["epochs"] = old.get("epochs", 0)
    provenance["preset"] = old.get("preset", "")
    provenance["stage_seconds"]["vae"] = old.get("stage_seconds", {}).get("vae")
    train, old_train = provenance["train"], old.get("train", {})
    train["epochs"] = old_train.get("epochs", train["epochs"])
    stages = (*old_train.get("stages", ()), *train["stages"])
    train["stages"] = [stage for stage in STAGES if stage in stages]
    work.skipped["before"] = old.get("skipped_steps", 0)


def _keep_unfinished(work: Work, bundle: Bundle) -> Bundle:
    """Learn attributes, and save the model if a finish follows, so that it can be redone.

    The attributes stay valid after a finish, which does not change the encoder.
    """
    run = work.run
    if run.labels and bundle.provenance.get("labels") != run.labels.fingerprint:
        if examples := examples_of_faces(bundle, run.faces, run.labels):
            add_attributes(bundle, examples)
        bundle.provenance["labels"] = run.labels.fingerprint
    if "finish" in run.train.stages:
        bundle.provenance.pop("complete", None)
        bundle.provenance["skipped_steps"] = sum(work.skipped.values())
        save(bundle, work.folder.unfinished)
    return bundle


def _complete(work: Work, bundle: Bundle) -> None:
    """Measure the model, draw pictures, and save it last, which completes the run."""
    run, folder = work.run, work.folder
    bundle.provenance |= {
        "complete": True,
        "figures": measure(run, bundle.vae),
        "labels": bundle.provenance.get("labels"),
        "skipped_steps": sum(work.skipped.values()),
        "train_seconds": folder.records[-1]["seconds"] if folder.records else None,
    }
    samples = decode(bundle.vae, latents_of_seeds(bundle, list(range(_NUM_SAMPLES))), WHOLE_TEXTURE)
    save_picture(folder.pictures / "samples.png", grid(to_pixels(samples)))
    if run.model.latent_dim == 2:  # noqa: PLR2004 - a plane, which a picture can show
        draw_plane(folder, bundle)
    if plots.is_available():
        drawn = curves.draw_curves(folder.records, folder.pictures)
        plots.save(drawn, folder.pictures / "curves.png")
    save(bundle, folder.model, half=run.half)
