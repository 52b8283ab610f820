"""Curves of what a run recorded. Needs the extra `plot` (matplotlib)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facevae.errors import ImageError
from facevae.files import inside
from facevae.images import open_picture
from facevae.plots import new_figure, pin, plain_style

NUM_THUMBNAILS = 8
_THUMBNAIL = 80  # points


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
    _Panel("projected_loss", "finish: the same, by features"),
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


def draw_curves(records: list[dict[str, Any]], pictures: Path) -> Any:
    """The loss terms over training, with samples along the KL curve: a figure.

    `records` are those of `metrics.jsonl`; the samples they name are taken from `pictures`.
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
    """The KL divergence over training, with samples along it (the paper's figure 8): a figure."""
    with plain_style():
        figure = new_figure(11, 5)
        axes = figure.subplots()
        _kl_panel(axes, records, pictures)
        axes.set_xlabel("images seen")
        return figure


def draw_figures(records: list[dict[str, Any]]) -> Any:
    """Every figure that was recorded, a panel each; lines of training, dots of held-out faces."""
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
    """The loss of a flow while it is fitted, on its own faces and on held-out ones: a figure."""
    lines = (
        ("flow_loss", "of steps", {"color": "tab:grey", "lw": 0.8}),
        ("train_flow_loss", "training faces", {"color": "tab:blue", "marker": "o", "ms": 3}),
        ("held_out_flow_loss", "held-out faces", {"color": "tab:orange", "marker": "o", "ms": 3}),
    )
    with plain_style():
        figure = new_figure(11, 3)
        axes = figure.subplots()
        for key, label, style in lines:
            there = [r for r in records if r["event"] == "prior" and key in r]
            axes.plot([r["latents"] for r in there], [r[key] for r in there], label=label, **style)
        axes.set(xlabel="latents seen", ylabel="flow-matching loss")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
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
    there = [r for r in epochs if inside(pictures, r.get("samples")).is_file()]
    if not there or not steps:
        return
    wanted = np.linspace(0, len(there) - 1, min(NUM_THUMBNAILS, len(there))).round().astype(int)
    shown = [there[i] for i in sorted(set(wanted.tolist()))]
    # side by side, wherever along the curve they belong
    places = np.linspace(shown[0]["images"], shown[-1]["images"], len(shown)).tolist()
    for record, place in zip(shown, places, strict=True):
        try:
            sheet = open_picture(inside(pictures, record["samples"]))
        except ImageError:
            continue  # damaged since it was drawn: one less
        corner = np.asarray(sheet.crop((0, 0, sheet.width // 2, sheet.height // 2)))
        on_curve = min(steps, key=lambda r: abs(r["images"] - record["images"]))
        point = (on_curve["images"], on_curve["kl_nats"])
        pin(axes, corner, point, (place, top * 1.42), _THUMBNAIL)
