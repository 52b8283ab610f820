"""Curves of the metrics that a run recorded. Needs the extra `plot` (matplotlib)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facevae.charts.plots import new_figure, pin, plain_style
from facevae.data.images import open_picture
from facevae.errors import ImageError
from facevae.system.files import inside

NUM_THUMBNAILS = 8
_THUMBNAIL = 80  # width in points


class _Panel(NamedTuple):
    """A plot of one key of `metrics.jsonl`, over all records that have it."""

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
    _Panel("generator_loss", "finish: generator loss"),
    _Panel("discriminator_loss", "finish: discriminator loss"),
    _Panel("projected_loss", "finish: projected discriminator loss"),
    _Panel("feature_loss", "finish: feature matching"),
    _Panel("active_units", "active units"),
    _Panel("images_per_second", "images/s"),
    _Panel("process_bytes", "memory, GB", unit=1e9),
    _Panel("gpu_bytes", "peak GPU memory, GB", unit=1e9),
)

# for the records of each event: label, colour, style
_LINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "steps": ("training", "tab:blue", {"lw": 1.2}),
    "finish": ("finish", "tab:green", {"lw": 1.2}),
    "epoch": ("held-out faces", "tab:orange", {"ls": "", "marker": "o", "ms": 3.5}),
}


def draw_curves(records: list[dict[str, Any]], pictures: Path) -> Any:
    """A figure of the loss terms over training, with samples along the KL curve.

    `records` are those of `metrics.jsonl`. The pictures of samples that they name are read from the
    folder `pictures`.
    """
    with plain_style():
        figure = new_figure(11, 10)
        axes = figure.subplots(3, 1, height_ratios=(2, 1, 1), sharex=True)
        _kl_panel(axes[0], records, pictures)
        _panel(axes[1], records, _Panel("mse", "mean squared error", is_log=True))
        _panel(axes[2], records, _Panel("psnr", "held-out PSNR, dB"))
        axes[2].set_xlabel("images seen")
        return figure


def draw_kl(records: list[dict[str, Any]], pictures: Path) -> Any:
    """A figure of the KL divergence over training, with samples along it (the paper's figure 8)."""
    with plain_style():
        figure = new_figure(11, 5)
        axes = figure.subplots()
        _kl_panel(axes, records, pictures)
        axes.set_xlabel("images seen")
        return figure


def draw_figures(records: list[dict[str, Any]]) -> Any:
    """A figure with a panel per recorded metric: lines for training, dots for held-out faces."""
    panels = [p for p in _PANELS if any(p.key in r for r in records)]
    with plain_style():
        rows = max(1, -(-len(panels) // 2))
        figure = new_figure(11, 2.4 * rows + 0.4)
        axes = figure.subplots(rows, 2, sharex=True, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, panel in zip(axes.flat, panels, strict=False):
            _panel(ax, records, panel)
        for ax in axes.flat[: len(panels)][-2:]:
            ax.set_xlabel("images seen")
            ax.xaxis.set_tick_params(labelbottom=True)
        return figure


def draw_prior(records: list[dict[str, Any]]) -> Any:
    """A figure of a flow's loss while it is fitted, on training faces and on held-out ones."""
    lines = (
        ("flow_loss", "training steps", {"color": "tab:grey", "lw": 0.8}),
        ("train_flow_loss", "training faces", {"color": "tab:blue", "marker": "o", "ms": 3}),
        ("held_out_flow_loss", "held-out faces", {"color": "tab:orange", "marker": "o", "ms": 3}),
    )
    with plain_style():
        figure = new_figure(11, 3)
        axes = figure.subplots()
        for key, label, style in lines:
            found = [r for r in records if r["event"] == "prior" and key in r]
            axes.plot([r["latents"] for r in found], [r[key] for r in found], label=label, **style)
        axes.set(xlabel="latents seen", ylabel="flow-matching loss")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        return figure


def _panel(axes: Any, records: list[dict[str, Any]], panel: _Panel) -> None:
    for event, (label, colour, style) in _LINES.items():
        found = [r for r in records if r["event"] == event and panel.key in r]
        if found:
            values = [r[panel.key] / panel.unit for r in found]
            axes.plot([r["images"] for r in found], values, color=colour, label=label, **style)
    axes.set(ylabel=panel.label, yscale="log" if panel.is_log else "linear")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def _kl_panel(axes: Any, records: list[dict[str, Any]], pictures: Path) -> None:
    steps = [r for r in records if r["event"] == "steps"]
    _panel(axes, steps, _Panel("kl_nats", "KL divergence, nats per image"))
    axes.set_title("KL divergence, with samples along it")
    top = max((r["kl_nats"] for r in steps), default=1)
    axes.set_ylim(0, top * 1.75)
    axes.margins(x=0.08)  # room for the pictures at both ends
    # the finish does not change the divergence
    epochs = [r for r in records if r["event"] == "epoch" and r.get("stage") != "finish"]
    pictured = [r for r in epochs if inside(pictures, r.get("samples")).is_file()]
    if not pictured or not steps:
        return
    count = min(NUM_THUMBNAILS, len(pictured))
    chosen = np.linspace(0, len(pictured) - 1, count).round().astype(int)
    shown = [pictured[i] for i in sorted(set(chosen.tolist()))]
    # evenly spaced, with lines to their points on the curve
    places = np.linspace(shown[0]["images"], shown[-1]["images"], len(shown)).tolist()
    for record, place in zip(shown, places, strict=True):
        try:
            sheet = open_picture(inside(pictures, record["samples"]))
        except ImageError:
            continue  # leave out a damaged picture
        corner = np.asarray(sheet.crop((0, 0, sheet.width // 2, sheet.height // 2)))
        on_curve = min(steps, key=lambda r: abs(r["images"] - record["images"]))
        point = (on_curve["images"], on_curve["kl_nats"])
        pin(axes, corner, point, (place, top * 1.42), _THUMBNAIL)
