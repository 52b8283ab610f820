"""Curves, histograms and maps of what a run recorded. Needs the extra `plot` (matplotlib)."""

import io
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from facevae.errors import ImageError, UsageError
from facevae.files import replacing
from facevae.images import Pixels, centred_square, open_picture

NUM_HISTOGRAMS = 50  # as in the notebooks of the lineage
MAX_LATENTS = 20_000  # of which more would take longer and look alike
NUM_THUMBNAILS = 8
_THUMBNAIL = 80  # points
# ink that is read on paper and on a dark page, and between them where a viewer cannot tell which
_INK = (
    "svg{color:#777;fill:currentColor}"
    "@media (prefers-color-scheme:light){svg{color:#222}}"
    "@media (prefers-color-scheme:dark){svg{color:#ddd}}"
)


class _Panel(NamedTuple):
    """A figure of `metrics.jsonl`, in whichever records it is."""

    key: str
    label: str
    is_log: bool = False
    unit: float = 1.0


_PANELS = (
    _Panel("reconstruction_nats", "reconstruction term, nats"),
    _Panel("kl_nats", "KL divergence, nats"),
    _Panel("mse", "mean squared error", is_log=True),
    _Panel("psnr", "PSNR, dB"),
    _Panel("r_loss_factor", "r_loss_factor", is_log=True),
    _Panel("sigma", "σ, of pixels in [0, 1]"),
    _Panel("sharpness", "sharpness (real = 1)"),
    _Panel("generator_loss", "finish: loss of what is made"),
    _Panel("discriminator_loss", "finish: loss of who tells it"),
    _Panel("feature_loss", "finish: feature matching"),
    _Panel("active_units", "active units"),
    _Panel("images_per_second", "images/s"),
    _Panel("process_bytes", "memory, GB", unit=1e9),
    _Panel("gpu_bytes", "most GPU memory, GB", unit=1e9),
)


# how the records of each kind are drawn: name, colour, style
_LINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "steps": ("training", "tab:blue", {"lw": 1.2}),
    "finish": ("finish", "tab:green", {"lw": 1.2}),
    "epoch": ("held-out faces", "tab:orange", {"ls": "", "marker": "o", "ms": 3.5}),
}


def is_available() -> bool:
    """Whether matplotlib is there to draw with."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its caches are its own affair
    try:
        import matplotlib as mpl  # noqa: F401 - an extra
    except ImportError:
        return False
    return True


def require_plots() -> None:
    """Raise `UsageError` where nothing can be drawn."""
    if not is_available():
        msg = "curves need the extra 'plot': pip install 'facevae[plot]'"
        raise UsageError(msg)


# ---------------------------------------------------------------- curves


def draw_curves(records: list[dict[str, Any]], pictures: Path) -> Any:
    """The loss terms over training, with samples along the KL curve: a figure.

    `records` are those of `metrics.jsonl`; the samples they name are taken from `pictures`.
    """
    with _style():
        figure = _figure(11, 10)
        axes = figure.subplots(3, 1, height_ratios=(2, 1, 1), sharex=True)
        _kl_panel(axes[0], records, pictures)
        _panel(axes[1], records, _Panel("mse", "mean squared error", is_log=True))
        _panel(axes[2], records, _Panel("psnr", "held-out PSNR, dB"))
        axes[2].set_xlabel("images seen")
        return figure


def draw_kl(records: list[dict[str, Any]], pictures: Path) -> Any:
    """The KL divergence over training, with samples along it (the paper's figure 8): a figure."""
    with _style():
        figure = _figure(11, 5)
        axes = figure.subplots()
        _kl_panel(axes, records, pictures)
        axes.set_xlabel("images seen")
        return figure


def draw_figures(records: list[dict[str, Any]]) -> Any:
    """Every figure that was recorded, a panel each; lines of training, dots of held-out faces."""
    panels = [p for p in _PANELS if any(p.key in r for r in records)]
    with _style():
        rows = max(1, -(-len(panels) // 2))
        figure = _figure(11, 2.4 * rows + 0.4)
        axes = figure.subplots(rows, 2, sharex=True, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, panel in zip(axes.flat, panels, strict=False):
            _panel(ax, records, panel)
        for ax in axes.flat[: len(panels)][-2:]:
            ax.set_xlabel("images seen")
            ax.xaxis.set_tick_params(labelbottom=True)
        return figure


def _panel(axes: Any, records: list[dict[str, Any]], panel: _Panel) -> None:
    for event, (label, colour, style) in _LINES.items():
        there = [r for r in records if r["event"] == event and panel.key in r]
        if there:
            values = [r[panel.key] / panel.unit for r in there]
            axes.plot([r["images"] for r in there], values, color=colour, label=label, **style)
    axes.set(ylabel=panel.label, yscale="log" if panel.is_log else "linear")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def _kl_panel(axes: Any, records: list[dict[str, Any]], pictures: Path) -> None:
    steps = [r for r in records if r["event"] == "steps"]
    _panel(axes, steps, _Panel("kl_nats", "KL divergence, nats an image"))
    axes.set_title("KL divergence, with samples along it")
    top = max((r["kl_nats"] for r in steps), default=1)
    axes.set_ylim(0, top * 1.75)
    axes.margins(x=0.08)  # room for the pictures at both ends
    # a finish leaves the divergence as it is
    epochs = [r for r in records if r["event"] == "epoch" and r.get("stage") != "finish"]
    # by their own names alone, lest the records of somebody else's run lead out of its folder
    there = [r for r in epochs if (pictures / Path(str(r.get("samples"))).name).is_file()]
    if not there or not steps:
        return
    wanted = np.linspace(0, len(there) - 1, min(NUM_THUMBNAILS, len(there))).round().astype(int)
    shown = [there[i] for i in sorted(set(wanted.tolist()))]
    # side by side, wherever along the curve they belong
    places = np.linspace(shown[0]["images"], shown[-1]["images"], len(shown)).tolist()
    for record, place in zip(shown, places, strict=True):
        try:
            sheet = open_picture(pictures / Path(str(record["samples"])).name)
        except ImageError:
            continue  # damaged since it was drawn: one less
        corner = np.asarray(sheet.crop((0, 0, sheet.width // 2, sheet.height // 2)))
        on_curve = min(steps, key=lambda r: abs(r["images"] - record["images"]))
        point = (on_curve["images"], on_curve["kl_nats"])
        _pin(axes, corner, point, (place, top * 1.42), _THUMBNAIL)


def _pin(
    axes: Any, picture: Pixels, point: tuple[float, float], place: tuple[float, float], size: float
) -> None:
    """Show `picture` at `place`, `size` points wide, with a line to `point` if it is elsewhere."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    box = OffsetImage(picture, zoom=size / picture.shape[1])
    arrow = {"arrowstyle": "-", "color": "grey", "lw": 0.7} if place != point else None
    axes.add_artist(AnnotationBbox(box, point, place, frameon=False, pad=0, arrowprops=arrow))


# ---------------------------------------------------------------- latents


def draw_histograms(latents: Tensor, whose: str = "training faces") -> Any:
    """Histograms of latents (N, D), the most varied dimensions first, over N(0, 1): a figure."""
    latents = latents[:MAX_LATENTS]
    variances = latents.var(0) if len(latents) > 1 else latents[0]
    order = variances.argsort(descending=True)[:NUM_HISTOGRAMS]
    columns = min(10, len(order))
    rows = -(-len(order) // columns)
    grid = np.linspace(-4, 4, 200)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    with _style():
        figure = _figure(1.5 * columns, 1.2 * rows + 0.6)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for ax in axes.flat:
            ax.set_axis_off()
        options: dict[str, Any] = {"range": (-4, 4), "density": True, "histtype": "stepfilled"}
        for ax, dim in zip(axes.flat, order.tolist(), strict=False):
            ax.hist(latents[:, dim].numpy(), bins=40, color="tab:blue", **options)
            ax.plot(grid, density, color="tab:orange", lw=1)
            ax.set_title(f"z{dim}", fontsize=7)
        figure.suptitle(f"Latents of {whose} (blue) over N(0, 1) (orange)", fontsize=9)
        return figure


def draw_divergence(divergence: Tensor) -> Any:
    """The KL divergence of each latent dimension (D,), the largest first: a figure."""
    with _style():
        figure = _figure(8, 4)
        axes = figure.subplots()
        ordered = divergence.sort(descending=True).values.numpy()
        axes.bar(np.arange(1, len(ordered) + 1), ordered, width=1.0, color="tab:blue")
        axes.set(
            title=f"KL divergence of {len(ordered)} latent dimensions",
            xlabel="dimension, by size",
            ylabel="nats",
        )
        axes.grid(alpha=0.3)
        return figure


def draw_novelty(samples: Tensor, held_out: Tensor) -> Any:
    """Histograms of distances to the nearest training latent, each (N,): a figure."""
    both = np.concatenate([samples.numpy(), held_out.numpy()])
    edges = np.linspace(both.min(), both.max(), 41) if np.ptp(both) else 41
    with _style():
        figure = _figure(8, 4)
        axes = figure.subplots()
        for name, distances in (("held-out faces", held_out), ("samples", samples)):
            label = f"{name}, median {float(distances.median()):.2f}"
            axes.hist(distances.numpy(), bins=edges, density=True, alpha=0.6, label=label)
        axes.set(
            title="To the nearest training face: samples left of held-out faces would be copies",
            xlabel="distance, in deviations of the training latents",
            yticks=[],
        )
        axes.legend()
        return figure


def spread_out(places: Tensor, cells: int) -> list[int]:
    """Rows of places (N, 2) that keep apart: in each of cells × cells parts the one in its midst."""
    low, high = places.amin(0), places.amax(0)
    scaled = (places - low) / (high - low).clamp_min(1e-12) * cells
    corners = scaled.floor().clamp_max(cells - 1)
    distances = (scaled - corners - 0.5).norm(dim=1)
    nearest: dict[tuple[float, ...], int] = {}
    for row in distances.argsort().tolist():
        nearest.setdefault(tuple(corners[row].tolist()), row)
    return sorted(nearest.values())


def draw_map(places: Tensor, shares: Tensor, rows: Sequence[int], pictures: Pixels) -> Any:
    """A map of latents at places (N, 2), with the pictures of some rows on it: a figure.

    `shares` (2,) are those of the variance that the two directions have.
    """
    from PIL import Image

    with _style():
        figure = _figure(11, 9)
        axes = figure.subplots()
        axes.scatter(*places.T.numpy(), s=4, color="tab:blue", alpha=0.5)
        side = min(48, pictures.shape[1])
        for row, picture in zip(rows, pictures, strict=True):
            point = (float(places[row, 0]), float(places[row, 1]))
            _pin(axes, centred_square(Image.fromarray(picture), side), point, point, 34)
        axes.set(
            xlabel=f"first principal component ({shares[0]:.0%} of the variance)",
            ylabel=f"second ({shares[1]:.0%})",
        )
        axes.margins(0.06)
        axes.grid(alpha=0.3)
        return figure


# ---------------------------------------------------------------- figures


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the suffix names, atomically."""
    with _style(), replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def to_svg(figure: Any) -> str:
    """A figure as SVG without a background, in ink for light and dark pages."""
    text = io.StringIO()
    unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _style():
        figure.savefig(text, format="svg", transparent=True, metadata=unsaid)
    inked = text.getvalue().replace("#000000", "currentColor")
    return inked.replace('<style type="text/css">', f'<style type="text/css">{_INK}', 1)


def _style() -> AbstractContextManager[None]:
    """No matter how people have set up their own plots; names in an SVG are the same each time."""
    from matplotlib import style

    context: AbstractContextManager[None] = style.context(["default", {"svg.hashsalt": "facevae"}])
    return context


def _figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, which nothing else knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="tight")
