"""Histograms and maps of latents. Needs the extra `plot` (matplotlib)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from facevae.charts.plots import new_figure, pin, plain_style
from facevae.data.images import Pixels, centred_square

NUM_HISTOGRAMS = 50  # as in the original notebooks
MAX_LATENTS = 20_000  # more would take longer and look the same
_RANGE = 4  # histograms extend from -4 to 4


def draw_histograms(latents: Tensor, whose: str = "training faces") -> Any:
    """A figure of histograms of latents (N, D) over N(0, 1), dimensions of most variance first."""
    latents = latents[:MAX_LATENTS]
    variances = latents.var(0) if len(latents) > 1 else latents[0]
    order = variances.argsort(descending=True)[:NUM_HISTOGRAMS]
    columns = min(10, len(order))
    rows = -(-len(order) // columns)
    grid = np.linspace(-_RANGE, _RANGE, 200)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    with plain_style():
        figure = new_figure(1.5 * columns, 1.2 * rows + 0.6)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for ax in axes.flat:
            ax.set_axis_off()
        options: dict[str, Any] = {
            "range": (-_RANGE, _RANGE),
            "density": True,
            "histtype": "stepfilled",
        }
        for ax, dim in zip(axes.flat, order.tolist(), strict=False):
            values = latents[:, dim]
            if bool((values.abs() <= _RANGE).any()):  # an empty histogram has no density
                ax.hist(values.numpy(), bins=40, color="tab:blue", **options)
            ax.plot(grid, density, color="tab:orange", lw=1)
            ax.set_title(f"z{dim}", fontsize=7)
        figure.suptitle(f"Latents of {whose} (blue) over N(0, 1) (orange)", fontsize=9)
        return figure


def draw_divergence(divergence: Tensor) -> Any:
    """A figure of the KL divergence of each latent dimension (D,), the largest first."""
    with plain_style():
        figure = new_figure(8, 4)
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
    """A figure of histograms of distances (N,) to the nearest training face."""
    both = np.concatenate([samples.numpy(), held_out.numpy()])
    edges = np.linspace(both.min(), both.max(), 41) if np.ptp(both) else 41
    with plain_style():
        figure = new_figure(8, 4)
        axes = figure.subplots()
        for name, distances in (("held-out faces", held_out), ("samples", samples)):
            label = f"{name}, median {float(distances.median()):.2f}"
            axes.hist(distances.numpy(), bins=edges, density=True, alpha=0.6, label=label)
        axes.set(
            title="To the nearest training face: samples left of held-out faces would be copies",
            xlabel="distance, in standard deviations of the training latents",
            yticks=[],
        )
        axes.legend()
        return figure


def spread_out(points: Tensor, cells: int) -> list[int]:
    """Rows of points (N, 2) that are spread out: the most central one in each of cells × cells."""
    low, high = points.amin(0), points.amax(0)
    scaled = (points - low) / (high - low).clamp_min(1e-12) * cells
    corners = scaled.floor().clamp_max(cells - 1)
    distances = (scaled - corners - 0.5).norm(dim=1)
    nearest: dict[tuple[float, ...], int] = {}
    for row in distances.argsort().tolist():
        nearest.setdefault(tuple(corners[row].tolist()), row)
    return sorted(nearest.values())


def draw_map(points: Tensor, shares: Tensor, rows: Sequence[int], pictures: Pixels) -> Any:
    """A figure with latents at points (N, 2), and pictures on the points of some `rows`.

    `shares` (2,) of the variance lie along the two directions.
    """
    from PIL import Image

    with plain_style():
        figure = new_figure(11, 9)
        axes = figure.subplots()
        axes.scatter(*points.T.numpy(), s=4, color="tab:blue", alpha=0.5)
        side = min(48, pictures.shape[1])
        for row, picture in zip(rows, pictures, strict=True):
            point = (float(points[row, 0]), float(points[row, 1]))
            pin(axes, centred_square(Image.fromarray(picture), side), point, point, 34)
        axes.set(
            xlabel=f"first principal component ({shares[0]:.0%} of the variance)",
            ylabel=f"second ({shares[1]:.0%})",
        )
        axes.margins(0.06)
        axes.grid(alpha=0.3)
        return figure
