"""The command `train`."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from facevae.cli import options
from facevae.cli.estimate import print_estimate
from facevae.cli.runs import ConsoleListener, Data, describe_run, source_name, typed_command
from facevae.cli.session import report_result
from facevae.cli.settings import check_stages, configure, load_init
from facevae.config import PRESETS, Preset, preset
from facevae.system.console import Console

if TYPE_CHECKING:
    from facevae.models.bundle import Bundle

_PRESETS = "; ".join(f"{name}: {p.summary}" for name, p in PRESETS.items())


def _defaults(read: Callable[[Preset], object]) -> str:
    """The default of an option in each preset, for its help: `default: 30; compact: 80`."""
    base = read(PRESETS["base"])
    others = [f"{name}: {read(p)}" for name, p in PRESETS.items() if read(p) != base]
    return "; ".join([f"default: {base}", *others])


_EPOCHS = _defaults(lambda preset: preset.train.epochs)
_BATCH_SIZE = _defaults(lambda preset: preset.train.batch_size)
_LEARNING_RATE = _defaults(lambda preset: preset.train.learning_rate)
_LATENT_DIM = _defaults(lambda preset: preset.model.latent_dim)
_PRIOR_EPOCHS = _defaults(lambda preset: preset.train.prior_epochs)
_FINISH_EPOCHS = _defaults(lambda preset: preset.train.finish_epochs)
_STAGES = _defaults(lambda preset: ",".join(preset.train.stages))


def train(
    data: Data,
    *,
    preset_name: Annotated[
        str, typer.Option("--preset", help=f"What to train. {_PRESETS}.")
    ] = "base",
    size: Annotated[
        int | None, typer.Option("--size", help="Side in pixels: 32, 64, 128 (default) or 256.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help=f"Passes over the faces ({_EPOCHS}).")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help=f"Faces per training step ({_BATCH_SIZE}).")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", help=f"Learning rate of Adam ({_LEARNING_RATE})."),
    ] = None,
    latent_dim: Annotated[
        int | None,
        typer.Option("--latent-dim", help=f"Number of latent dimensions ({_LATENT_DIM})."),
    ] = None,
    r_loss_factor: Annotated[
        str | None,
        typer.Option(
            "--r-loss-factor",
            metavar="FLOAT|auto",
            help="The paper's weight on the mean squared error; auto calibrates it.",
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            "--dropout", help="Dropout after each activation (the original notebooks: 0.25)."
        ),
    ] = None,
    prior: Annotated[
        Literal["flow", "gaussian", "normal"] | None,
        typer.Option(
            "--prior",
            help="What is fitted to the latents; normal is the paper's N(0, I), which is not.",
        ),
    ] = None,
    prior_epochs: Annotated[
        int | None,
        typer.Option(
            "--prior-epochs", help=f"Passes over the latents to fit a flow ({_PRIOR_EPOCHS})."
        ),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            "--stages",
            metavar="vae,prior,finish",
            help=f"Stages to go through ({_STAGES}).",
        ),
    ] = None,
    finish_epochs: Annotated[
        int | None,
        typer.Option(
            "--finish-epochs", help=f"Passes over the faces in the finish ({_FINISH_EPOCHS})."
        ),
    ] = None,
    finish_weight: Annotated[
        float | None,
        typer.Option(
            "--finish-weight",
            help="Weight of the discriminators: more is more texture and less likeness (default: 1).",
        ),
    ] = None,
    perceptual: Annotated[
        bool,
        typer.Option(
            "--perceptual",
            help="Add LPIPS on VGG-16 to the finish (extra eval, and its weights in torch's cache).",
        ),
    ] = False,
    max_time: Annotated[
        str | None,
        typer.Option(
            "--max-time",
            metavar="8m|90s|1h30m",
            help="Train for this long, all stages together, instead of by epochs.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help="A CelebA list, a CSV, a folder of FFHQ features, or Parquet such as DATA itself.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="MODEL",
            help="Start from another model; without the stage vae its network stays.",
        ),
    ] = None,
    terms: Annotated[
        str,
        typer.Option(
            "--terms", help="What others may do with the weights, kept in the model file."
        ),
    ] = "",
    half: Annotated[
        bool, typer.Option("--half", help="Store the model at half precision: half the bytes.")
    ] = False,
    seed: options.TrainSeed = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The run's folder (default: runs/<data>-<preset>)."),
    ] = None,
    cache_dir: options.CacheDir = None,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write event files for TensorBoard into the folder."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate time, disk and memory.")
    ] = False,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model on a folder of faces. The same command again goes on where it stopped.

    Examples:

      facevae train ./ffhq

      facevae train celeba/ --size 64 --epochs 10 --labels list_attr_celeba.txt -o runs/celeba

      facevae train hf://datasets/owner/faces
    """
    from facevae.data.pictures import check_there

    # Check
    console = Console(quiet=quiet, as_json=json)
    check_there([*data, *([labels] if labels else [])])
    base = preset(preset_name)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "prior": prior,
        "prior_epochs": prior_epochs,
        "stages": options.parse_stages(stages) if stages is not None else None,
        "finish_epochs": finish_epochs,
        "finish_weight": finish_weight,
        "perceptual": perceptual or None,
        "max_seconds": options.parse_duration(max_time) if max_time is not None else None,
        "seed": seed,
    }
    init_model = load_init(console, init)
    chosen = configure(
        base,
        init_model,
        model={"size": size, "latent_dim": latent_dim, "dropout": dropout},
        train=settings,
        r_loss_factor=r_loss_factor,
    )
    check_stages(
        chosen,
        vae_options={"--learning-rate": learning_rate, "--r-loss-factor": r_loss_factor},
        epochs=epochs,
        prior_epochs=prior_epochs,
        finish_epochs=finish_epochs,
        finish_weight=finish_weight,
        perceptual=perceptual,
        has_init=init_model is not None,
    )

    # no earlier: torch takes seconds to import
    from facevae.data.dataset import load_faces
    from facevae.latent_space.learning import find_labels
    from facevae.measures.perceptual import load_perceptual
    from facevae.system import memory, parallel, runtime
    from facevae.training.events import require_tensorboard
    from facevae.training.run_folders import RunFolder
    from facevae.training.runs import Run, left_out, settings_of
    from facevae.training.training import follow
    from facevae.training.training import train as train_run

    target = runtime.select_device(device)
    if chosen.train.perceptual:
        load_perceptual(target)  # raises now, not at the finish, if it is not available
    table = find_labels(labels) if labels else None
    if tensorboard:
        require_tensorboard()
    folder = output or Path("runs") / f"{_data_name(data)}-{preset_name}"
    if dry_run:
        print_estimate(
            console, data, chosen, target, labels=table, folder=folder, cache_dir=cache_dir
        )
        return

    identity = settings_of(chosen.model, chosen.train)
    ignored, is_given = left_out(chosen.train), init_model is not None
    RunFolder(folder).check(identity, ignored, chosen.train.stages, is_given=is_given)

    # Prepare
    memory.keep_freed_memory()
    with parallel.joined(target):
        with parallel.first_on_node():
            faces = load_faces(data, chosen.model.size, cache=cache_dir, progress=console.progress)
        run = Run(
            folder,
            chosen.model,
            chosen.train,
            faces,
            target,
            preset=preset_name,
            sources=[source_name(source) for source in data],
            labels=table,
            init=init_model,
            init_name=source_name(init) if init else "",
            terms=terms,
            half=half,
            tensorboard=tensorboard,
            command=typed_command(),
        )
        if parallel.is_lead():
            describe_run(console, run)

        # Run
        if not parallel.is_lead():
            follow(run)
            return
        bundle = train_run(run, ConsoleListener(console))

    # Report
    _report(console, folder, bundle, tensorboard=tensorboard)


def _report(console: Console, folder: Path, bundle: "Bundle", *, tensorboard: bool) -> None:
    """Print the model's figures, commands to try on it, and its path."""
    from facevae.charts import plots
    from facevae.training.run_folders import RunFolder

    console.close()
    figures = bundle.provenance["figures"]
    console.say(
        f"held-out PSNR {figures['psnr']:.2f} dB, KL {figures['kl_nats']:,.0f} nats "
        f"({figures['kl_nats_per_dim']:.2f} a dimension), r_loss_factor "
        f"{figures['r_loss_factor']:,.0f} (σ = {figures['sigma']:.3f})"
        + (f", sharpness {figures['sharpness']:.2f}" if "finish" in bundle.provenance else "")
    )
    quoted = shlex.quote(str(folder))
    console.say(f"try: facevae sample --model {quoted} -o grid.png")
    if plots.is_available():
        console.say(f"see: facevae report {quoted}")
    if tensorboard:
        console.say(f"see: tensorboard --logdir {quoted}")
    path = RunFolder(folder).model
    used = {"name": str(folder), "path": str(path)}
    more = {
        "epochs": bundle.provenance["epochs"],
        "finish_epochs": bundle.provenance.get("finish", {}).get("epochs"),
        "skipped_steps": bundle.provenance.get("skipped_steps", 0),
        "figures": figures,
    }
    report_result(console, used, [path], more)


def _data_name(data: list[str]) -> str:
    """The data's name in the default run folder, without suffix and shard numbers."""
    from facevae.data.hub_files import is_url, repository_of

    first = data[0]
    name = repository_of(first).split("/")[1] if is_url(first) else Path(first).resolve().name
    return re.sub(r"(-\d+)?(-of-\d+)?\.(tar|parquet|arrow)$", "", name) or "faces"
