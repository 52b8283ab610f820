"""`eval`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from facevae.cli import options
from facevae.cli.session import open_model
from facevae.cli.train import train_or_exit
from facevae.config import MAX_SEED
from facevae.console import Console
from facevae.errors import FacevaeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from facevae.bundle import Bundle
    from facevae.data import Faces, Rows
    from facevae.evaluation import Candidate, Result

_BASELINES = ("pca", "ae")
_SPLITS = {"held-out": "held-out faces", "train": "training faces", "all": "faces"}


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="default, a file, a folder, or user/repo\\[@revision]."
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Argument(metavar="DATA…", help="Folders, pictures, or .tar shards of real faces."),
    ],
    *,
    split: Annotated[
        Literal["auto", "held-out", "train", "all"],
        typer.Option(
            "--split",
            help="Which faces count; auto: the held-out ones of the model's training set, else all.",
        ),
    ] = "auto",
    num_samples: Annotated[
        int,
        typer.Option("--num-samples", min=1, max=options.MAX_PICTURES, help="How many samples."),
    ] = 2000,
    baselines: Annotated[
        str | None,
        typer.Option(
            "--baselines", help="pca, ae or pca,ae: what the paper compares with, fitted to DATA."
        ),
    ] = None,
    baseline_epochs: Annotated[
        int | None,
        typer.Option("--baseline-epochs", min=1, help="Of the autoencoder (default: the model's)."),
    ] = None,
    baseline_dir: Annotated[
        Path, typer.Option("--baseline-dir", help="Where the autoencoder's run folder is kept.")
    ] = Path("runs"),
    fid: Annotated[
        bool | None,
        typer.Option(
            "--fid/--no-fid", help="FID and KID (default: where the extra 'eval' is installed)."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder for pictures, histograms and figures.json."),
    ] = None,
    seed: options.Seed = 0,
    cache_dir: options.CacheDir = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model: reconstructions, samples, latents, and whether it copies.

    Examples:

      facevae eval default ./celeba128

      facevae eval runs/ffhq-base ./ffhq --baselines pca,ae -o report/
    """
    from facevae import runtime
    from facevae.data import load_faces
    from facevae.evaluation import (
        Candidate,
        Evaluation,
        choose_rows,
        framing_problem,
        is_training_set,
    )
    from facevae.files import write_json

    # Check
    console = Console(quiet=quiet, as_json=json)
    wanted = _parse_baselines(baselines, split)
    folder = _output_folder(output, data)
    if seed + num_samples - 1 > MAX_SEED:
        msg = f"--seed {seed}: the last of {num_samples} seeds would be more than {MAX_SEED}"
        raise UsageError(msg)
    bundle, used = open_model(console, model, device)
    reasons: dict[str, str] = {}
    features, lpips = _networks(bundle.device, fid, reasons)

    # Choose the faces
    runtime.keep_freed_memory()
    faces = load_faces(data, bundle.config.size, cache=cache_dir, progress=console.progress)
    known = is_training_set(bundle, faces)
    rows = choose_rows(bundle, faces, split)
    if wanted and not known and split != "held-out":
        msg = "--baselines: DATA is not what the model was trained on; --split held-out fits them to the rest of DATA all the same"
        raise UsageError(msg)
    about = _about(faces, rows, split, is_training=known)
    _describe(console, about, data, faces)
    if problem := framing_problem(bundle, faces, rows):
        console.warn(problem)

    # Measure
    dim = bundle.config.latent_dim
    candidates = [Candidate(used["name"], bundle.vae, bundle.prior, dim, has_posteriors=True)]
    if "ae" in wanted:  # the long one comes first
        trained = _autoencoder(console, bundle, faces, baseline_dir, baseline_epochs, data)
        candidates.append(trained)
    if "pca" in wanted:
        candidates.append(_eigenfaces(console, bundle, faces))
    evaluation = Evaluation(
        faces,
        rows,
        bundle.device,
        num_samples=num_samples,
        seed=seed,
        features=features,
        lpips=lpips,
        progress=console.progress,
    )
    results = [evaluation.measure(candidate) for candidate in candidates]
    novelty = evaluation.novelty(candidates[0], results[0].latents) if known else None
    if novelty is None:
        reasons["novelty"] = "DATA is not the model's training set, by its fingerprint"
    if evaluation.swd_floor is None:
        reasons["swd_floor"] = "one real face has no other to be compared with"

    # Report
    values = {
        "model": used,
        **about,
        "num_samples": num_samples,
        "num_swd": len(evaluation.order),
        "num_floor": evaluation.num_floor,
        "features": _feature_spaces(features is not None, lpips is not None),
        **results[0].figures,
        "swd_floor": evaluation.swd_floor,
        "novelty": novelty.figures() if novelty else None,
        "reasons": {**reasons, **results[0].reasons},
        "baselines": {r.name: r.figures for r in results[1:]},
    }
    written = _draw(console, folder, results, novelty) if folder else []
    values["outputs"] = [str(path) for path in written]
    if folder:
        values["outputs"].append(str(folder / "figures.json"))
        write_json(folder / "figures.json", values)
    if json:
        console.result([], values)
        return
    _print_tables(console, values, results)
    for name, reason in values["reasons"].items():
        console.say(f"no {name}: {reason}")
    console.result(values["outputs"], {})


# ---------------------------------------------------------------- checks


def _parse_baselines(text: str | None, split: str) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in _BASELINES]:
        msg = f"--baselines {text}: '{unknown[0]}' is none; name pca, ae or pca,ae"
        raise UsageError(msg)
    if names and split in ("train", "all"):
        msg = f"--baselines are fitted to the training faces, so --split {split} would favour them"
        raise UsageError(msg)
    return names


def _output_folder(output: Path | None, data: Sequence[Path]) -> Path | None:
    from facevae.outputs import choose_output

    if output is None:
        return None
    folder = choose_output(f"{output}/", "").path
    if inside := [d for d in data if folder.resolve().is_relative_to(d.resolve())]:
        msg = f"{folder}: is within {inside[0]}, whose faces these pictures would join; name another -o"
        raise UsageError(msg)
    return folder


def _networks(
    device: "torch.device",
    wanted: bool | None,  # noqa: FBT001 - yes, no, or where it can be
    reasons: dict[str, str],
) -> "tuple[Callable[..., torch.Tensor] | None, Callable[..., torch.Tensor] | None]":
    """Inception and LPIPS, or why they are not there. Raises `FacevaeError` if they must be."""
    from facevae.perceptual import load_inception, load_lpips

    features = lpips = None
    try:
        lpips = load_lpips(device)
    except FacevaeError as error:
        reasons["lpips"] = str(error)
    if wanted is False:
        reasons |= dict.fromkeys(("fid", "kid"), "--no-fid")
        return None, lpips
    try:
        features = load_inception(device)
    except FacevaeError as error:
        if wanted:
            msg = f"--fid: {error}"
            raise type(error)(msg) from error
        reasons |= dict.fromkeys(("fid", "kid"), str(error))
    return features, lpips


# ---------------------------------------------------------------- baselines


def _eigenfaces(console: Console, bundle: "Bundle", faces: "Faces") -> "Candidate":
    from facevae.baselines import fit_eigenfaces
    from facevae.evaluation import Candidate

    dim = bundle.config.latent_dim
    fitted = fit_eigenfaces(faces, faces.train, dim, bundle.device, console.progress)
    found = len(fitted.components)
    if found < dim:
        console.say(f"{len(faces.train):,} faces have {found} components, not {dim}")
    return Candidate("pca", fitted, fitted.prior(), found)


def _autoencoder(
    console: Console,
    bundle: "Bundle",
    faces: "Faces",
    folder: Path,
    epochs: int | None,
    data: Sequence[Path],
) -> "Candidate":
    from facevae.baselines import autoencoder_run
    from facevae.evaluation import Candidate

    sources = [path.name or str(path) for path in data]
    run = autoencoder_run(bundle, faces, folder, bundle.device, epochs=epochs, sources=sources)
    console.close()
    console.say(f"autoencoder: {run.train.epochs} epochs in {run.folder}")
    trained = train_or_exit(run, console).to(bundle.device)
    return Candidate("ae", trained.vae, trained.prior, bundle.config.latent_dim)


# ---------------------------------------------------------------- words


def _about(faces: "Faces", rows: "Rows", split: str, *, is_training: bool) -> dict[str, Any]:
    if split == "auto":
        split = "held-out" if is_training else "all"
    return {
        "split": split,
        "is_training_set": is_training,
        "num_images": len(rows),
        "crop": f"largest centred square, scaled to {faces.size} × {faces.size} px",
        "skipped": faces.skipped,
    }


def _describe(
    console: Console, about: dict[str, Any], data: Sequence[Path], faces: "Faces"
) -> None:
    names = ", ".join(path.name or str(path) for path in data)
    whose = "the model's training set" if about["is_training_set"] else "not its training set"
    console.say(
        f"{about['num_images']:,} {_SPLITS[about['split']]} of {names} ({whose}); {about['crop']}"
    )
    if faces.skipped:
        shown = "; ".join(faces.skipped[:3])
        console.warn(f"{len(faces.skipped):,} pictures cannot be read and are left out: {shown}")


def _feature_spaces(has_inception: bool, has_lpips: bool) -> dict[str, str | None]:  # noqa: FBT001 - two answers
    from facevae.perceptual import ALEXNET, INCEPTION

    return {
        "swd": "7 × 7 patches of a Laplacian pyramid's levels, standardised by the real faces",
        "novelty": "latents, whitened by those of the training faces",
        "fid": INCEPTION if has_inception else None,
        "lpips": ALEXNET if has_lpips else None,
    }


def _print_tables(console: Console, values: dict[str, Any], results: "Sequence[Result]") -> None:
    """The figures, a row each and a column for each candidate; real faces last."""
    floor: dict[str, float] = values["swd_floor"] or {}
    rows: list[tuple[object, ...]] = []

    def row(label: str, key: str, real: float | None = None, scale: float = 1) -> None:
        found = [r.figures[key] for r in results]
        scaled = [v * scale if isinstance(v, float) else v for v in found]
        if any(value is not None for value in scaled):
            rows.append((label, *scaled, real))

    def swd(label: str, key: str, levels: Sequence[str]) -> None:
        for level in levels:
            name = f"{label}, mean of levels" if level == "mean" else f"{label}, {level} px"
            rows.append((name, *(r.figures[key][level] for r in results), floor.get(level)))

    row("latent dimensions", "latent_dim")
    row("reconstruction: PSNR, dB", "psnr")
    row("reconstruction: SSIM", "ssim", 1.0)
    row("reconstruction: LPIPS", "lpips", 0.0)
    row("reconstruction: sharpness", "sharpness", 1.0)
    swd("reconstruction: SWD", "swd_reconstructions", ["mean"])
    swd("halfway to another face: SWD", "swd_midpoints", ["mean"])
    row("samples: FID", "fid")
    row("samples: KID × 1000", "kid", scale=1000)
    swd("samples: SWD", "swd", list(results[0].figures["swd"]))
    row("samples: sharpness", "sharpness_samples", 1.0)
    row("latents: KL, nats a dimension", "kl")
    row("latents: active units", "active_units")
    row("latents: distance from N(0, I)", "posterior_distance")
    if novelty := values["novelty"]:
        blank = [None] * (len(results) - 1)
        label = "samples: to the nearest training face"
        rows.append((label, novelty["samples"], *blank, novelty["held_out"]))
    title = [
        f"{values['num_images']:,} {_SPLITS[values['split']]}, {values['crop']}",
        f"{values['num_samples']:,} samples",
        f"SWD × 1000, {values['num_swd']:,} against as many, in {values['features']['swd']}",
    ]
    if values["features"]["fid"]:
        title.append(f"FID and KID in {values['features']['fid']}")
    console.table("\n".join(title), ("", *(r.name for r in results), "real"), rows)


def _draw(console: Console, folder: Path, results: "Sequence[Result]", novelty: Any) -> list[Path]:
    from facevae import report
    from facevae.gallery import draw

    if not report.is_available():
        console.say("no histograms: pip install 'facevae[plot]' draws them")
    return draw(folder, results, novelty)
