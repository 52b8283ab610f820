"""How a run treats an existing model: as all that was requested, or as a start."""

import copy
from pathlib import Path
from typing import cast

from facevae.config import PriorConfig, StageName
from facevae.models.bundle import Bundle, Provenance, save
from facevae.networks.prior import NormalPrior
from facevae.training.run_folders import RunFolder
from facevae.training.runs import Run

_OF_NETWORK = ("preset", "images_seen", "epochs", "labels", "train")  # keys of a provenance


def is_complete(model: Bundle) -> bool:
    """Whether the run of the model has come to its end."""
    return bool(model.provenance.get("complete"))


def is_satisfied(run: Run, model: Bundle) -> bool:
    """Whether a complete model is all that the run asks for. A run without labels accepts any."""
    provenance, train = model.provenance, run.train
    labels = run.labels.fingerprint if run.labels else provenance.get("labels")
    settings = {"weight": train.finish_weight, "perceptual": train.perceptual}
    finish = provenance.get("finish") or {}
    is_finished = "finish" not in train.stages or (
        settings.items() <= finish.items()
        and _is_long_enough(run, provenance, "finish", finish.get("epochs", 0), train.finish_epochs)
    )
    return is_finished and is_fitted(run, model) and provenance.get("labels") == labels


def update_terms(run: Run, model: Bundle, path: Path) -> str:
    """Save a complete model again if the run asks for other terms, or for half precision.

    Returns a message, which is empty if nothing was done.
    """
    old_terms = model.provenance.get("terms") or ""
    terms, half = run.terms or old_terms, run.half or model.half
    if (terms, half) == (old_terms, model.half):
        return ""
    model.provenance["terms"] = terms
    save(model, path, half=half)
    return "its model is written anew, as asked for"


def initial_model(run: Run) -> Bundle | None:
    """A copy of the initial model with this run's provenance; None if the network is trained.

    Its prior is N(0, I) if the run fits one. It counts as not finished, even if it has a texture.
    """
    if run.init is None or "vae" in run.train.stages:
        return None
    bundle = copy.deepcopy(run.init)
    if "prior" in run.train.stages:
        bundle.set_prior(NormalPrior(), PriorConfig())
    bundle.provenance = {
        "images_seen": 0,
        "epochs": 0,
        **run.provenance(),
        **_network_provenance(run.init.provenance),
    }
    return bundle


def _network_provenance(provenance: Provenance) -> Provenance:
    """The part of a model's provenance that stays true if only its prior and finish change."""
    return cast("Provenance", {k: v for k, v in provenance.items() if k in _OF_NETWORK})


def must_restart(run: Run, folder: RunFolder, model: Bundle) -> bool:
    """Whether the network is to be trained longer, but there is no state to resume from."""
    epochs = model.provenance.get("epochs", 0)
    is_longer = "vae" in run.train.stages and not _is_long_enough(
        run, model.provenance, "vae", epochs, run.train.epochs
    )
    return is_longer and not folder.has_state("network")


def loses_attributes(run: Run, model: Bundle) -> bool:
    """Whether the run changes the latents behind the model's attributes, and learns no new ones."""
    is_changed = "vae" in run.train.stages and not is_fitted(run, model)
    return bool(model.attributes) and is_changed and not run.labels


def is_fitted(run: Run, model: Bundle) -> bool:
    """Whether the model is all that the run asks of the stages before the finish."""
    provenance, train = model.provenance, run.train
    has_prior = model.prior_config.kind == train.prior
    if train.prior == "flow":  # a run cannot change the epochs of its flow, but their time
        has_prior = has_prior and _is_long_enough(run, provenance, "prior", 0, 0)
    is_trained = _is_long_enough(run, provenance, "vae", provenance.get("epochs", 0), train.epochs)
    return (is_trained or "vae" not in train.stages) and (has_prior or "prior" not in train.stages)


def _is_long_enough(
    run: Run, provenance: Provenance, stage: StageName, epochs: float, wanted_epochs: int
) -> bool:
    """Whether a stage took the time that the run asks for, or, without a time, the epochs."""
    wanted_seconds = run.train.seconds_for(stage)
    if wanted_seconds is None:
        return epochs >= wanted_epochs
    seconds = (provenance.get("stage_seconds") or {}).get(stage) or 0
    return seconds >= wanted_seconds
