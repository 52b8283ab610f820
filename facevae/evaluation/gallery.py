"""Pictures and histograms of an evaluation, written as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facevae.charts import latent_plots, plots
from facevae.data.images import Pixels, grid, paired_grid, save_picture
from facevae.evaluation.evaluation import Result
from facevae.evaluation.novelty import Novelty
from facevae.measures.losses import kl_divergence
from facevae.networks.vae import draw_posteriors


def draw(folder: Path, results: Sequence[Result], novelty: Novelty | None) -> list[Path]:
    """Write pictures of the model and its baselines into `folder`, and return their paths.

    The model is the first of `results`. Histograms are drawn only if matplotlib is installed.
    """
    model = results[0]
    pictures = {
        "reconstructions": paired_grid(model.originals, *(r.reconstructions for r in results)),
        "samples": grid(model.samples),
        **{f"samples-{r.name}": grid(r.samples) for r in results[1:]},
        "interpolations": _strips(results),
    }
    if novelty is not None:
        shown = model.samples[: len(novelty.neighbours)]
        pictures["neighbours"] = paired_grid(shown, novelty.neighbours)
    paths = []
    for name, pixels in pictures.items():
        paths.append(folder / f"{name}.png")
        save_picture(paths[-1], pixels)
    if plots.is_available():
        paths += _draw_histograms(folder, model, novelty)
    return paths


def _strips(results: Sequence[Result]) -> Pixels:
    """A grid of interpolations: for each pair of faces, a row for each candidate."""
    # axes: pairs, candidates, steps, then those of a picture
    rows = np.stack([r.interpolations for r in results], axis=1)
    return grid(rows.reshape(-1, *rows.shape[3:]), columns=rows.shape[2])


def _draw_histograms(folder: Path, model: Result, novelty: Novelty | None) -> list[Path]:
    paths = [folder / "kl.png", folder / "latents.png"]
    divergence = kl_divergence(model.mean, model.logvar).mean(0).cpu()
    plots.save(latent_plots.draw_divergence(divergence), paths[0])
    latents = draw_posteriors(model.mean, model.logvar, 0).cpu()
    plots.save(latent_plots.draw_histograms(latents, "the measured faces"), paths[1])
    if novelty is not None:
        paths.append(folder / "novelty.png")
        plots.save(latent_plots.draw_novelty(novelty.samples, novelty.held_out), paths[-1])
    return paths
