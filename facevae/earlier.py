"""What a run makes of the model that its folder holds already: enough, to go on from, or neither."""

import copy
from pathlib import Path
from typing import Any

from facevae.bundle import Bundle, save
from facevae.config import PriorConfig, StageName
from facevae.prior import NormalPrior
from facevae.run_folders import RunFolder
from facevae.runs import Run


def is_enough(run: Run, earlier: Bundle) -> bool:
    """Whether the complete model is all that was asked for; no labels means those it has."""
    known = earlier.provenance
    labels = run.labels.fingerprint if run.labels else known.get("labels")
    same = {"weight": run.train.finish_weight, "perceptual": run.train.perceptual}
    finish = known.get("finish") or {}
    is_finished = "finish" not in run.train.stages or (
        same.items() <= finish.items()
        and _is_long_enough(run, known, "finish", finish.get("epochs", 0), run.train.finish_epochs)
    )
    return is_finished and is_fitted(run, earlier) and known.get("labels") == labels


def restate(run: Run, earlier: Bundle, path: Path) -> str:
    """Write a complete model anew where it is asked for with other terms, or at half precision.

    Returns what was done, empty where nothing was.
    """
    known = earlier.provenance.get("terms") or ""
    terms, half = run.terms or known, run.half or earlier.half
    if (terms, half) == (known, earlier.half):
        return ""
    earlier.provenance["terms"] = terms
    save(earlier, path, half=half)
    return "its model is written anew, as asked for"


def begun_with(run: Run) -> Bundle | None:
    """The model that the run was given, as one of its own, where it goes on from that network.

    Its prior is N(0, I) where the run is to fit one, and it is not finished, texture or not.
    """
    if run.init is None or "vae" in run.train.stages:
        return None
    bundle = copy.deepcopy(run.init)
    if "prior" in run.train.stages:
        bundle.prior, bundle.prior_config = NormalPrior(), PriorConfig()
    told = {"images_seen": 0, "epochs": 0, **run.provenance(), **_of_network(run.init.provenance)}
    bundle.provenance = told
    return bundle


def _of_network(provenance: dict[str, Any]) -> dict[str, Any]:
    """What stays true of a model's network, whatever is done to its prior and in its finish."""
    names = ("preset", "images_seen", "epochs", "labels", "train")
    return {name: provenance[name] for name in names if name in provenance}


def begins_anew(run: Run, folder: RunFolder, earlier: Bundle) -> bool:
    """Whether a longer training of the network has no state to go on from."""
    known = earlier.provenance
    is_longer = "vae" in run.train.stages and not _is_long_enough(
        run, known, "vae", known.get("epochs", 0), run.train.epochs
    )
    return is_longer and not folder.has_state("network")


def forgets(run: Run, earlier: Bundle) -> bool:
    """Whether the run changes the latents that attributes were learned of, and learns no new ones."""
    is_changed = "vae" in run.train.stages and not is_fitted(run, earlier)
    return bool(earlier.attributes) and is_changed and not run.labels


def is_fitted(run: Run, earlier: Bundle) -> bool:
    """Whether that is all that the stages before the finish were asked for."""
    known, train = earlier.provenance, run.train
    has_prior = earlier.prior_config.kind == train.prior
    if train.prior == "flow":  # whose epochs are a setting of the run, which does not change
        has_prior = has_prior and _is_long_enough(run, known, "prior", 0, 0)
    is_trained = _is_long_enough(run, known, "vae", known.get("epochs", 0), train.epochs)
    return (is_trained or "vae" not in train.stages) and (has_prior or "prior" not in train.stages)


def _is_long_enough(run: Run, known: Any, stage: StageName, epochs: int, asked: int) -> bool:
    """Whether a stage has had the time that the run asks for, or, where that counts, the epochs."""
    seconds = run.train.seconds_for(stage)
    if seconds is None:
        return epochs >= asked
    had = known.get("stage_seconds") or {}
    return bool((had.get(stage) or 0) >= seconds)
