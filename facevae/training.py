"""A run: faces in, a folder with a model out, whatever happens on the way."""

import dataclasses
import gc
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from facevae import curves, parallel, plots
from facevae.batches import evenly
from facevae.bundle import Bundle, load, save
from facevae.config import STAGES, WHOLE_TEXTURE, PriorConfig
from facevae.earlier import begins_anew, begun_with, forgets, is_enough, is_fitted, restate
from facevae.errors import ModelError, RunError, Stopped, UsageError
from facevae.estimate import fitting_batch_size
from facevae.faces import measure_framing
from facevae.files import locked
from facevae.finish_fit import finish, finish_stage
from facevae.framing import Framing
from facevae.images import grid, save_picture, to_pixels
from facevae.latents import decode, latents_of_seeds
from facevae.learning import add_attributes, examples_of_faces
from facevae.memory import is_out_of_memory
from facevae.model import VAE
from facevae.network_fit import fit_network, network_stage
from facevae.prior import build_prior
from facevae.prior_fit import fit_prior, prior_stage
from facevae.run_folders import RunFolder, stages_before
from facevae.runs import Run, left_out
from facevae.runtime import environment, kernels_by_trial
from facevae.signals import stop_requests
from facevae.snapshots import draw_plane, measure
from facevae.stages import Stage
from facevae.states import strip_prefix
from facevae.steps import Listener, Work, progress_of

_NUM_FRAMED = 128  # faces by which the framing is measured


def train(run: Run, listener: Listener) -> Bundle:
    """Start, continue or extend the run in its folder; returns the finished model.

    Where several processes train, this is what the first of them does, and the others `follow`.
    Raises `RunError` for a folder of another run, for figures that are no longer finite, or where
    most steps have to be skipped, and `Stopped` after Ctrl-C or SIGTERM, with everything saved.
    """
    try:
        bundle = _lead(run, listener)
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, run.folder) from stopped
    parallel.from_lead(None)  # there is no further stage to follow
    return bundle


def follow(run: Run) -> None:
    """Take this process's share of every step that the first process takes, and write nothing.

    Raises `Stopped` as `train` does.
    """
    with stop_requests() as stop_signal, kernels_by_trial():
        while stage_and_step := parallel.from_lead():
            name, index, prior_config = stage_and_step
            state = parallel.tensors_from_lead({}, run.device)
            stage = _stage_of(run, name, state, prior_config)
            stage.restore(state)
            del state
            accord = parallel.Accord(run.device)
            with _memory_advice(run, lambda: "lower --batch-size"):
                while index < stage.budget.num_steps:
                    stage.step(index)
                    index += 1
                    if stop := accord(stop_signal()):
                        raise Stopped(stop, run.folder)


def _stage_of(
    run: Run, name: str, inputs: Mapping[str, Tensor], prior_config: PriorConfig | None
) -> Stage:
    """The stage that the first process has begun, with what it is fitted to."""
    if name == "network":
        return network_stage(run)
    if name == "prior":
        mean, logvar, changes = (inputs[f"posterior.{n}"] for n in ("mean", "logvar", "changes"))
        return prior_stage(run, mean, logvar, changes)
    assert prior_config is not None  # noqa: S101 - a finish has one
    vae, prior = VAE(run.model), build_prior(prior_config, run.model.latent_dim)
    vae.load_state_dict(strip_prefix(inputs, "fitted.vae."))
    prior.load_state_dict(strip_prefix(inputs, "fitted.prior."))
    return finish_stage(run, vae.to(run.device), prior.to(run.device))


def _lead(run: Run, listener: Listener) -> Bundle:
    with (
        locked(run.folder, "this run"),
        stop_requests() as stop_signal,
        kernels_by_trial(),
        closing(RunFolder(run.folder, tensorboard=run.tensorboard)) as folder,
    ):
        if parallel.size() > 1 and run.train.max_seconds is not None:
            msg = "--max-time is the time of one process; where several train, say --epochs"
            raise UsageError(msg)
        work = Work(run, folder, listener, stop_signal)
        folder.claim(run.identity(), run.about(), left_out(run.train))
        there = _model_in(work, folder.model)
        earlier = there if there and there.provenance.get("complete") else None
        if earlier and is_enough(run, earlier):
            folder.write_events()
            done = restate(run, earlier, folder.model) or "nothing to do"
            is_trained = "vae" in run.train.stages
            where = f", at epoch {earlier.provenance['epochs']}" if is_trained else ""
            listener.notice(f"{run.folder}: finished already{where}; {done}")
            return earlier
        if earlier and begins_anew(run, folder, earlier):
            msg = (
                f"{run.folder}: its state/ is gone, so that more epochs would begin anew and replace "
                f"its model; name another folder with -o, and --init {run.folder} to begin with its weights"
            )
            raise RunError(msg)
        if earlier and forgets(run, earlier):
            listener.notice("without --labels, the longer run's model will know no attributes")
        if earlier and "finish" in earlier.provenance and "finish" not in run.train.stages:
            listener.notice("without the stage finish, the longer run's model will not be finished")
        folder.begin(run.command, environment(run.device))
        # a complete model stays until the longer run is complete
        in_place = (math.inf, math.inf) if earlier else progress_of(there)
        work = dataclasses.replace(work, in_place=in_place)
        del earlier, there  # nothing of the file may be in use when it is replaced
        bundle = _fit(work)
        if "finish" in run.train.stages:
            with _memory_advice(run, lambda: "lower --batch-size"):
                finish(work, bundle)
        _complete(work, bundle)
        return bundle


@contextmanager
def _memory_advice(run: Run, advice: Callable[[], str]) -> Iterator[None]:
    """Around a stage: a lack of memory becomes one `RunError` with advice, asked for when all is
    freed again.
    """
    is_short = False
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        is_short = True
        traceback.clear_frames(error.__traceback__)  # which hold what was allocated
    finally:
        # a stage's recorded step holds the stage, and that all that it has on the device
        gc.collect()
    if is_short:
        msg = f"{run.folder}: {run.device} has too little memory; {advice()}, in another folder"
        raise RunError(msg)


def _batch_advice(run: Run) -> str:
    if parallel.size() > 1:  # whose steps are taken together
        return "lower --batch-size or --size"
    fitting = fitting_batch_size(run.model, run.train, len(run.faces.train), run.device)
    return f"--batch-size {fitting} should fit" if fitting else "lower --batch-size or --size"


def _measure_framing(work: Work) -> Framing | None:
    faces = work.run.faces
    some = faces.pixels[evenly(faces.train, _NUM_FRAMED)]
    framing = measure_framing(some, partial(work.listener.progress, "Looking at framing"))
    if framing is None:
        work.listener.notice(
            "the faces are not framed alike, or none are found: the model will not align photos; "
            "`facevae align DATA -o DIR` makes a training set that is"
        )
    return framing


def _complete_model(work: Work) -> Bundle | None:
    """The model of this run where it has come to its end."""
    bundle = _model_in(work, work.folder.model)
    return bundle if bundle and bundle.provenance.get("complete") else None


def _model_in(work: Work, path: Path) -> Bundle | None:
    if not path.exists():
        return None
    try:
        return load(path)
    except ModelError as error:
        work.listener.notice(f"{error}; making it again")
        return None


def _fit(work: Work) -> Bundle:
    """The model before its finish: as an earlier process left it, or fitted now."""
    run, folder = work.run, work.folder
    earlier = _latest_unfinished(work)
    if earlier and "finish" in run.train.stages and is_fitted(run, earlier):
        work.skipped["before"] = earlier.provenance.get("skipped_steps", 0)
        return _keep_unfinished(work, earlier.to(run.device))
    if "vae" in run.train.stages:
        framing = _measure_framing(work)
        with _memory_advice(run, lambda: _batch_advice(run)):
            vae, num_images = fit_network(work, framing)
    elif earlier is None:
        msg = f"{folder.path}: holds nothing to go on from; {stages_before(run.train.stages)}"
        raise RunError(msg)
    else:
        framing, num_images = earlier.framing, earlier.provenance["images_seen"]
        vae = earlier.to(run.device).vae  # its attributes may be the new model's
    with _memory_advice(run, lambda: "--prior gaussian needs less"):
        bundle = fit_prior(work, vae, num_images)
    bundle.framing = framing
    if earlier and "vae" not in run.train.stages:
        _take_over(work, bundle, earlier)
    _keep_unfinished(work, bundle)
    if "finish" in run.train.stages:
        work.save_progress(bundle)
    return bundle


def _latest_unfinished(work: Work) -> Bundle | None:
    """The model that has not been through a finish, if there is one; of two the longer trained.

    Where there is none yet, the model that the run was given to go on from.
    """
    there = (_complete_model(work), _model_in(work, work.folder.unfinished))
    found = [bundle for bundle in there if bundle and "finish" not in bundle.provenance]
    latest = max(found, key=lambda bundle: bundle.provenance["images_seen"], default=None)
    return latest or begun_with(work.run)


def _take_over(work: Work, bundle: Bundle, earlier: Bundle) -> None:
    """What was learned and is known of a network that stays as it was, to which a prior was fitted."""
    bundle.attributes, bundle.directions = earlier.attributes, earlier.directions
    bundle.scorers = earlier.scorers
    known, train = earlier.provenance, bundle.provenance["train"]
    before = known.get("train", {})
    bundle.provenance |= {name: known.get(name) for name in ("labels", "epochs", "preset")}
    seconds = bundle.provenance["stage_seconds"]
    seconds["vae"] = known.get("stage_seconds", {}).get("vae")
    train["epochs"] = before.get("epochs", train["epochs"])
    train["stages"] = [s for s in STAGES if s in (*before.get("stages", ()), *train["stages"])]
    work.skipped["before"] = known.get("skipped_steps", 0)


def _keep_unfinished(work: Work, bundle: Bundle) -> Bundle:
    """Learn directions, and where a finish follows, keep the model before it to begin it again.

    A finish leaves the encoder as it is, and so the directions.
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
    """Measure, draw, and at last save the model, which makes the run complete."""
    run, folder = work.run, work.folder
    bundle.provenance |= {
        "complete": True,
        "figures": measure(run, bundle.vae),
        "labels": bundle.provenance.get("labels"),
        "skipped_steps": sum(work.skipped.values()),
        "train_seconds": folder.records[-1]["seconds"] if folder.records else None,
    }
    samples = decode(bundle.vae, latents_of_seeds(bundle, list(range(64))), WHOLE_TEXTURE)
    save_picture(folder.pictures / "samples.png", grid(to_pixels(samples)))
    if run.model.latent_dim == 2:  # noqa: PLR2004 - a plane can be shown whole
        draw_plane(folder, bundle)
    if plots.is_available():
        drawn = curves.draw_curves(folder.records, folder.pictures)
        plots.save(drawn, folder.pictures / "curves.png")
    save(bundle, folder.model, half=run.half)
