"""The command `eval`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from facevae.cli import options, scores
from facevae.cli.runs import Data, source_name, typed_command
from facevae.cli.session import find_model, open_model
from facevae.config import MAX_SEED
from facevae.errors import FacevaeError, UsageError
from facevae.system.console import Console

if TYPE_CHECKING:
    import torch

    from facevae.data.dataset import Faces
    from facevae.evaluation.evaluation import Candidate, Result, Split
    from facevae.evaluation.novelty import Novelty
    from facevae.measures.figures import Score
    from facevae.measures.perceptual import Features
    from facevae.models.bundle import Bundle

_BASELINES = ("pca", "ae")


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="default, a file, a folder, or user/repo(@revision)."),
    ],
    data: Data,
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
        typer.Option(
            "--baseline-epochs", min=1, help="Epochs of the autoencoder (default: the model's)."
        ),
    ] = None,
    baseline_dir: Annotated[
        Path | None,
        typer.Option(
            "--baseline-dir", help="Where the autoencoder's run folder is kept (default: runs)."
        ),
    ] = None,
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
    from facevae.data.pictures import check_there

    # Check
    console = Console(quiet=quiet, as_json=json)
    names = _parse_baselines(baselines, split)
    _check_autoencoder_options(names, baseline_epochs, baseline_dir)
    folder = _output_folder(output, data)
    if seed + num_samples - 1 > MAX_SEED:
        msg = f"--seed {seed}: the last of {num_samples} seeds exceeds {MAX_SEED}; choose a smaller seed"
        raise UsageError(msg)
    check_there(data)
    located = find_model(console, model)

    # no earlier: torch takes seconds to import
    from facevae.data.dataset import load_faces
    from facevae.evaluation.evaluation import Candidate, Evaluation, choose_rows, is_training_set
    from facevae.evaluation.novelty import measure_novelty
    from facevae.system import memory

    bundle, used = open_model(console, located, device)
    features, lpips, reasons = _networks(bundle.device, fid)

    # Choose the faces
    memory.keep_freed_memory()
    faces = load_faces(data, bundle.config.size, cache=cache_dir, progress=console.progress)
    known = is_training_set(bundle, faces)
    _check_baselines(names, split, known=known)
    chosen: Split = split if split != "auto" else "held-out" if known else "all"
    rows = choose_rows(faces, chosen)
    about = scores.describe(console, bundle, faces, rows, chosen, data, known=known)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)  # fails before the long part if it cannot be made

    # Measure
    dim = bundle.config.latent_dim
    candidates = [Candidate(used["name"], bundle.vae, bundle.prior, dim, has_posteriors=True)]
    if "ae" in names:  # first, since it takes longest
        runs = baseline_dir or Path("runs")
        candidates.append(_autoencoder(console, bundle, faces, data, runs, baseline_epochs))
    if "pca" in names:
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
    novelty = (
        measure_novelty(bundle.vae, faces, results[0].latents, seed=seed, progress=console.progress)
        if known
        else None
    )

    # Report
    about["features"] = scores.feature_spaces(features, lpips)
    about["novelty"] = novelty.figures() if novelty else None
    values = scores.values({"model": used, **about}, evaluation, results, reasons)
    values["outputs"] = _write(console, folder, values, results, novelty)
    scores.print_table(console, values, results)
    console.result(values["outputs"], values)


# ---------------------------------------------------------------- checks


def _parse_baselines(text: str | None, split: str) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in _BASELINES]:
        msg = f"--baselines {text}: '{unknown[0]}' is not a baseline; name pca, ae or pca,ae"
        raise UsageError(msg)
    if names and split in ("train", "all"):
        msg = f"--baselines are fitted to the training faces, so --split {split} would favour them; use --split held-out"
        raise UsageError(msg)
    return names


def _check_autoencoder_options(
    baselines: Sequence[str], epochs: int | None, folder: Path | None
) -> None:
    for option, value in {"--baseline-epochs": epochs, "--baseline-dir": folder}.items():
        if value is not None and "ae" not in baselines:
            msg = f"{option} {value}: is for the autoencoder; add --baselines ae"
            raise UsageError(msg)


def _check_baselines(baselines: Sequence[str], split: str, *, known: bool) -> None:
    """Refuse baselines on other DATA than the training set, unless --split is held-out."""
    if baselines and not known and split != "held-out":
        msg = "--baselines: DATA is not what the model was trained on; add --split held-out to fit them to the rest of DATA"
        raise UsageError(msg)


def _output_folder(output: Path | None, data: Sequence[str]) -> Path | None:
    from facevae.cli.outputs import choose_output

    if output is None:
        return None
    folder = choose_output(f"{output}/", "").path
    if parents := [d for d in data if folder.resolve().is_relative_to(Path(d).resolve())]:
        msg = f"-o {folder}: is within {parents[0]}, so its pictures would become faces of DATA; name another -o"
        raise UsageError(msg)
    return folder


def _networks(
    device: "torch.device",
    fid: bool | None,  # noqa: FBT001 - yes, no, or if it is available
) -> "tuple[Features | None, Score | None, dict[str, str]]":
    """Inception and LPIPS, or None, and by figure the reasons why it cannot be measured.

    Raises `FacevaeError` if `fid` is true and Inception is not available.
    """
    from facevae.measures.perceptual import load_inception, load_lpips

    features = lpips = None
    reasons: dict[str, str] = {}
    try:
        lpips = load_lpips(device)
    except FacevaeError as error:
        reasons["lpips"] = str(error)
    if fid is False:
        return None, lpips, reasons | dict.fromkeys(("fid", "kid"), "--no-fid")
    try:
        features = load_inception(device)
    except FacevaeError as error:
        if fid:
            msg = f"--fid: {error}"
            raise type(error)(msg) from error
        reasons |= dict.fromkeys(("fid", "kid"), str(error))
    return features, lpips, reasons


# ---------------------------------------------------------------- baselines


def _eigenfaces(console: Console, bundle: "Bundle", faces: "Faces") -> "Candidate":
    from facevae.evaluation.baselines import fit_eigenfaces
    from facevae.evaluation.evaluation import Candidate

    dim = bundle.config.latent_dim
    fitted = fit_eigenfaces(faces, faces.train, dim, bundle.device, console.progress)
    found = len(fitted.components)
    if found < dim:
        console.say(f"pca: {found} components, not {dim}, of {len(faces.train):,} training faces")
    return Candidate("pca", fitted, fitted.prior(), found)


def _autoencoder(
    console: Console,
    bundle: "Bundle",
    faces: "Faces",
    data: Sequence[str],
    runs: Path,
    epochs: int | None,
) -> "Candidate":
    """Train the autoencoder in a folder within `runs`, unless it is trained already."""
    from facevae.evaluation.baselines import autoencoder_run
    from facevae.evaluation.evaluation import Candidate
    from facevae.training.training import train

    run = autoencoder_run(bundle, faces, runs, bundle.device, epochs=epochs)
    sources = [source_name(source) for source in data]
    run = dataclasses.replace(run, sources=sources, command=typed_command())
    console.close()
    console.say(f"autoencoder: {run.train.epochs} epochs in {run.folder}")
    trained = train(run, _BaselineListener(console)).to(run.device)
    if (done := trained.provenance["epochs"]) != run.train.epochs:
        msg = f"{run.folder}: has been trained for {done} epochs, not {run.train.epochs}; name another --baseline-dir"
        raise UsageError(msg)
    return Candidate("ae", trained.vae, trained.prior, run.model.latent_dim)


class _BaselineListener:
    """Shows the progress of a baseline's training, with its held-out PSNR but without notices."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:  # noqa: ARG002 - figures of its steps are not shown
        self.console.progress(f"Autoencoder: {task.lower()}", done, total)

    def epoch(self, figures: Mapping[str, Any]) -> None:
        epoch, psnr = figures["epoch"], figures["psnr"]
        self.console.say(f"autoencoder, epoch {epoch:.0f}: held-out PSNR {psnr:.2f} dB")

    def notice(self, text: str) -> None:
        """Ignore notices: they are about the run, not the evaluation."""


# ---------------------------------------------------------------- output


def _write(
    console: Console,
    folder: Path | None,
    values: dict[str, Any],
    results: "Sequence[Result]",
    novelty: "Novelty | None",
) -> list[str]:
    """Write pictures and figures into the folder, if one is given, and return their paths."""
    from facevae.charts import plots
    from facevae.evaluation.gallery import draw
    from facevae.system.files import write_json

    if folder is None:
        return []
    if not plots.is_available():
        console.say("no histograms: they need the extra 'plot': pip install 'facevae[plot]'")
    paths = [str(path) for path in (*draw(folder, results, novelty), folder / "figures.json")]
    write_json(folder / "figures.json", {**values, "outputs": paths})
    return paths
