"""Shared by commands that train: the DATA argument, and messages about a run."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facevae.errors import DataError
from facevae.system.console import Console, counted

if TYPE_CHECKING:
    from facevae.data.dataset import Faces
    from facevae.data.labels import Labels
    from facevae.training.runs import Run

_FEW_FACES = 1_000  # fewer of them get a remark
_INSTALL_PLOT = "no curves or histograms: they need the extra 'plot': pip install 'facevae[plot]'"

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA…",
        help="Folders, pictures, .tar shards, Parquet, or hf://datasets/owner/name(/split).",
    ),
]


class ConsoleListener:
    """Shows a run's progress, figures and notices on the console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = console.progress

    def epoch(self, figures: Mapping[str, Any]) -> None:
        """Print the figures of held-out faces."""
        if figures.get("stage") == "finish":
            self.console.say(
                f"finish, epoch {figures['epoch']:.6g}: held-out PSNR {figures['psnr']:.2f} dB, "
                f"sharpness {figures['sharpness']:.2f}"
            )
            return
        self.console.say(
            f"epoch {figures['epoch']:.6g}: held-out PSNR {figures['psnr']:.2f} dB, "
            f"KL {figures['kl_nats']:,.0f} nats, σ {figures['sigma']:.3f}"
        )

    def notice(self, text: str) -> None:
        """Print a notice."""
        self.console.say(text)


def source_name(source: str) -> str:
    """The name of a source of DATA in messages and metadata: a URL, or a path's last part."""
    from facevae.data.hub_files import is_url

    return source if is_url(source) else Path(source).name or source


def typed_command() -> str:
    """The command of this process, quoted for a shell."""
    return shlex.join(["facevae", *sys.argv[1:]])


def warn_of_skipped(console: Console, faces: "Faces") -> None:
    """Warn of pictures that cannot be read, naming the first three."""
    if faces.skipped:
        shown = "; ".join(faces.skipped[:3])
        nouns = ("picture cannot be read and is", "pictures cannot be read and are")
        console.warn(f"{counted(len(faces.skipped), *nouns)} left out: {shown}")


def _check_labels(console: Console, labels: "Labels", stems: Sequence[str]) -> None:
    """Warn of attributes that do not vary. Raises `DataError` if none of them does."""
    constant = labels.constant_for(stems)
    if len(constant) == len(labels.names):
        msg = (
            f"--labels: nothing to learn, since all training faces have the same value of "
            f"{', '.join(constant[:3])}; use labels that vary"
        )
        raise DataError(msg)
    if constant:
        console.warn(
            f"not learned, since all training faces have the same value: {', '.join(constant)}"
        )


def describe_run(console: Console, run: "Run") -> None:
    """Print the data, device and model of a run.

    Raises `DataError` if no label belongs to a face, or if none can be learned.
    """
    from facevae.charts import plots
    from facevae.system.runtime import describe

    faces = run.faces
    model = f"preset {run.preset}"
    if run.init_name:
        trains_network = "vae" in run.train.stages
        init = run.init_name
        model = f"{model}, from {init}" if trains_network else f"the network of {init}"
    console.close()
    console.say(
        f"{counted(len(faces.train), 'face')} to train on, {len(faces.held_out):,} held out, at "
        f"{faces.size} × {faces.size} px, on {describe(run.device)}; {model}; "
        f"run folder {run.folder}"
    )
    warn_of_skipped(console, faces)
    if len(faces.train) < _FEW_FACES and not run.init_name:
        console.say(
            f"fewer than {_FEW_FACES:,} faces teach a network little; --init default begins with the "
            "packaged model's"
        )
    if run.labels:
        count = run.labels.count_among(
            [faces.stems[row] for row in (*faces.train, *faces.held_out)]
        )
        console.say(
            f"{counted(count, 'face is', 'faces are')} labelled, with "
            f"{counted(len(run.labels.names), 'attribute')}"
        )
        if run.labels.ignored:
            console.warn(
                f"labels that are neither yes-or-no nor numbers are left out: {', '.join(run.labels.ignored)}"
            )
        _check_labels(console, run.labels, [faces.stems[row] for row in faces.train])
    if run.preset == "base" and not run.init_name and run.device.type == "cuda":
        console.say("on a GPU, --preset compact makes much sharper faces")
    if not plots.is_available():
        console.say(_INSTALL_PLOT)
