"""Output of `eval`, as JSON values and as a table: the figures, and what they were measured on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from facevae.cli.runs import source_name, warn_of_skipped
from facevae.system.console import Console

if TYPE_CHECKING:
    from facevae.data.dataset import Faces, Rows
    from facevae.evaluation.evaluation import Evaluation, Result, Split
    from facevae.models.bundle import Bundle

_SPLITS = {"held-out": "held-out faces", "train": "training faces", "all": "faces"}


def describe(
    console: Console,
    bundle: "Bundle",
    faces: "Faces",
    rows: "Rows",
    split: "Split",
    data: Sequence[str],
    *,
    known: bool,
) -> dict[str, Any]:
    """Describe the measured faces, as JSON values and to the user.

    `known` is whether they are the model's training set. Warns of skipped faces, and of faces that
    are not framed as the model expects.
    """
    from facevae.evaluation.evaluation import framing_problem

    crop = f"largest centred square, scaled to {faces.size} × {faces.size} px"
    names = ", ".join(map(source_name, data))
    origin = "the model's training set" if known else "not its training set"
    console.say(f"{len(rows):,} {_SPLITS[split]} of {names} ({origin}); {crop}")
    warn_of_skipped(console, faces)
    if problem := framing_problem(bundle, faces, rows):
        console.warn(problem)
    return {
        "split": split,
        "is_training_set": known,
        "num_images": len(rows),
        "crop": crop,
        "skipped": faces.skipped,
    }


def feature_spaces(features: object, lpips: object) -> dict[str, str | None]:
    """Feature space of each figure that compares more than pixels; None for one not measured."""
    from facevae.measures.perceptual import ALEXNET, INCEPTION

    return {
        "swd": "7 × 7 patches of a Laplacian pyramid, standardised by the real faces",
        "novelty": "latents, whitened by those of the training faces",
        "fid": INCEPTION if features else None,
        "lpips": ALEXNET if lpips else None,
    }


def values(
    about: dict[str, Any],
    evaluation: "Evaluation",
    results: "Sequence[Result]",
    reasons: dict[str, str],
) -> dict[str, Any]:
    """JSON values of an evaluation: the model's figures, which come first, and the baselines'."""
    model, *others = results
    if evaluation.swd_floor is None:
        reasons = {**reasons, "swd_floor": "there is only one real face; comparing needs two"}
    if about["novelty"] is None:
        reason = "DATA is not the model's training set, by its fingerprint"
        reasons = {**reasons, "novelty": reason}
    return {
        **about,
        "num_samples": evaluation.num_samples,
        "num_swd": len(evaluation.order),
        **model.figures,
        "swd_floor": evaluation.swd_floor,
        "num_floor": evaluation.num_floor,
        "reasons": {**reasons, **model.reasons},
        "baselines": {r.name: {**r.figures, "reasons": r.reasons} for r in others},
    }


def print_table(console: Console, values: dict[str, Any], results: "Sequence[Result]") -> None:
    """Print a row for each figure and a column for each candidate, unless the output is JSON."""
    if console.as_json:
        return
    spaces, novelty = values["features"], values["novelty"]
    title = [
        f"{values['num_images']:,} {_SPLITS[values['split']]}, {values['crop']}",
        f"{values['num_samples']:,} samples",
        f"SWD × 1000: {values['num_swd']:,} and as many; {spaces['swd']}",
    ]
    if spaces["fid"]:
        title.append(f"FID, KID: {spaces['fid']}")
    if spaces["lpips"]:
        title.append(f"LPIPS: {spaces['lpips']}")
    if novelty:
        title.append(f"novelty: distance to the nearest; {spaces['novelty']}")
    columns = ("", *(result.name for result in results), "real")
    rows = _rows([result.figures for result in results], values["swd_floor"] or {}, novelty)
    console.table("\n".join(title), columns, rows)
    for name, reason in values["reasons"].items():
        console.say(f"no {name}: {reason}")


def _rows(
    figures: Sequence[dict[str, Any]],
    floor: dict[str, float],
    novelty: dict[str, float] | None,
) -> list[tuple[object, ...]]:
    """Table rows: label, the figure of each candidate, that of real faces; without empty rows."""
    levels = [key for key in figures[0]["swd"] if key != "mean"]
    thousandfold = [f["kid"] and 1000 * f["kid"] for f in figures]
    rows: list[tuple[object, ...]] = [
        ("latent dimensions", *_each(figures, "latent_dim"), None),
        ("reconstruction: PSNR, dB", *_each(figures, "psnr"), None),
        ("reconstruction: SSIM", *_each(figures, "ssim"), 1.0),
        ("reconstruction: LPIPS", *_each(figures, "lpips"), 0.0),
        ("reconstruction: sharpness", *_each(figures, "sharpness"), 1.0),
        ("reconstruction: SWD", *_each(figures, "swd_reconstructions", "mean"), floor.get("mean")),
        ("face to face, midway: SWD", *_each(figures, "swd_midpoints", "mean"), floor.get("mean")),
        ("samples: FID", *_each(figures, "fid"), None),
        ("samples: KID × 1000", *thousandfold, None),
        ("samples: SWD", *_each(figures, "swd", "mean"), floor.get("mean")),
        *((f"  at {key} px", *_each(figures, "swd", key), floor.get(key)) for key in levels),
        ("samples: sharpness", *_each(figures, "sharpness_samples"), 1.0),
        ("KL, nats a dimension", *_each(figures, "kl"), None),
        ("active units", *_each(figures, "active_units"), None),
        ("distance from N(0, I)", *_each(figures, "posterior_distance"), None),
    ]
    if novelty:
        blank = [None] * (len(figures) - 1)
        rows.append(("samples: novelty", novelty["samples"], *blank, novelty["held_out"]))
    return [row for row in rows if any(value is not None for value in row[1:-1])]


def _each(figures: Sequence[dict[str, Any]], key: str, level: str | None = None) -> list[Any]:
    """One figure, or one level of it, for each candidate."""
    return [f[key] if level is None else f[key][level] for f in figures]
