"""Curves and histograms, drawn from what a run recorded. Needs the extra `plot` (matplotlib)."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from facevae.errors import FacevaeError
from facevae.files import replacing

NUM_HISTOGRAMS = 50  # as in the notebooks of the lineage
NUM_THUMBNAILS = 8


def is_available() -> bool:
    """Whether matplotlib is there to draw with."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its caches are its own affair
    try:
        import matplotlib as mpl  # noqa: F401 - an extra
    except ImportError:
        return False
    return True


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order; a last line that was cut off is passed over."""
    records = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            msg = f"{path}: line {number} is damaged; restore the file or remove the line"
            raise FacevaeError(msg) from error
    return records


def draw_curves(records: list[dict[str, Any]], pictures: Path, path: Path) -> None:
    """The loss terms over training, with samples along the KL curve (the paper's figure 8).

    `records` are those of `metrics.jsonl`; the samples they name are taken from `pictures`.
    """
    plt = _pyplot()
    steps = [r for r in records if r["event"] == "steps"]
    epochs = [r for r in records if r["event"] == "epoch"]
    with plt.style.context("default"):
        figure, axes = plt.subplots(3, 1, figsize=(11, 10), height_ratios=(2, 1, 1), sharex=True)
        kl, error, quality = axes
        kl.plot([r["images"] for r in steps], [r["kl_nats"] for r in steps], color="tab:blue")
        kl.set(ylabel="KL divergence, nats an image", title="KL divergence, with samples along it")
        top = max((r["kl_nats"] for r in steps), default=1)
        kl.set_ylim(0, top * 1.75)
        kl.margins(x=0.08)  # room for the pictures at both ends
        _pin_pictures(kl, epochs, steps, pictures, top)
        error.plot([r["images"] for r in steps], [r["mse"] for r in steps], color="tab:red")
        error.set(ylabel="mean squared error", yscale="log")
        quality.plot(
            [r["images"] for r in epochs],
            [r["psnr"] for r in epochs],
            "o-",
            ms=3,
            color="tab:green",
        )
        quality.set(ylabel="held-out PSNR, dB", xlabel="images seen")
        quality.xaxis.set_major_formatter("{x:,.0f}")
        for ax in axes:
            ax.grid(alpha=0.3)
        _save(figure, path)


def _pin_pictures(
    axes: Any,
    epochs: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    pictures: Path,
    top: float,
) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    there = [r for r in epochs if (pictures / r["samples"]).exists()]
    if not there or not steps:
        return
    wanted = np.linspace(0, len(there) - 1, min(NUM_THUMBNAILS, len(there))).round().astype(int)
    for record in (there[i] for i in sorted(set(wanted.tolist()))):
        with Image.open(pictures / record["samples"]) as sheet:
            corner = sheet.convert("RGB").crop((0, 0, sheet.width // 2, sheet.height // 2))
        box = OffsetImage(np.asarray(corner), zoom=80 / corner.width)
        on_curve = min(steps, key=lambda r: abs(r["images"] - record["images"]))
        point = (on_curve["images"], on_curve["kl_nats"])
        arrow = {"arrowstyle": "-", "color": "grey", "lw": 0.7}
        place = (record["images"], top * 1.42)
        axes.add_artist(AnnotationBbox(box, point, place, frameon=False, arrowprops=arrow))


def draw_histograms(latents: Tensor, path: Path, whose: str = "training faces") -> None:
    """Histograms of posterior samples (N, D), the most varied dimensions first, over N(0, 1)."""
    plt = _pyplot()
    order = latents.var(0, correction=0).argsort(descending=True)[:NUM_HISTOGRAMS]
    columns = min(10, len(order))
    rows = -(-len(order) // columns)
    grid = np.linspace(-4, 4, 200)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    with plt.style.context("default"):
        figure, axes = plt.subplots(
            rows, columns, figsize=(1.5 * columns, 1.2 * rows + 0.6), squeeze=False, sharey=True
        )
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, dim in zip(axes.flat, order.tolist(), strict=False):
            ax.hist(latents[:, dim].numpy(), bins=40, range=(-4, 4), density=True, color="tab:blue")
            ax.plot(grid, density, color="tab:orange", lw=1)
            ax.set_title(f"z{dim}", fontsize=7)
        figure.suptitle(f"Latents of {whose} (blue) over N(0, 1) (orange)", fontsize=9)
        _save(figure, path)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    _pyplot().close(figure)


def draw_divergence(divergence: Tensor, path: Path) -> None:
    """The KL divergence of each latent dimension (D,), the largest first."""
    plt = _pyplot()
    with plt.style.context("default"):
        figure, axes = plt.subplots(figsize=(8, 4))
        ordered = divergence.sort(descending=True).values.numpy()
        axes.bar(np.arange(1, len(ordered) + 1), ordered, width=1.0, color="tab:blue")
        axes.set(
            title=f"KL divergence of {len(ordered)} latent dimensions",
            xlabel="dimension, by size",
            ylabel="nats",
        )
        axes.grid(alpha=0.3)
        _save(figure, path)


def draw_novelty(samples: Tensor, held_out: Tensor, path: Path) -> None:
    """Histograms of distances to the nearest training latent, each (N,)."""
    plt = _pyplot()
    both = np.concatenate([samples.numpy(), held_out.numpy()])
    edges = np.linspace(both.min(), both.max(), 41) if np.ptp(both) else 41
    with plt.style.context("default"):
        figure, axes = plt.subplots(figsize=(8, 4))
        for name, distances in (("held-out faces", held_out), ("samples", samples)):
            label = f"{name}, median {float(distances.median()):.2f}"
            axes.hist(distances.numpy(), bins=edges, density=True, alpha=0.6, label=label)
        axes.set(
            title="To the nearest training face: samples left of held-out faces would be copies",
            xlabel="distance, in deviations of the training latents",
            yticks=[],
        )
        axes.legend()
        _save(figure, path)
