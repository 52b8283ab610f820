"""Report on a run or a model: one self-contained HTML page. Needs the extra `plot`."""

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facevae.attributes.directions import Attribute
from facevae.charts import curves, latent_plots
from facevae.config import WHOLE_TEXTURE, setting_text
from facevae.data.batches import batches_of
from facevae.data.conversion import Progress
from facevae.data.dataset import Faces
from facevae.data.image_tensors import to_pixels
from facevae.data.images import Pixels, grid, open_picture, paired_grid, tiles
from facevae.errors import ImageError
from facevae.latent_space.latents import decode, latents_of_seeds, morph, posteriors
from facevae.measures.metrics import principal_plane
from facevae.models.bundle import Bundle
from facevae.networks.vae import draw_posteriors
from facevae.reports.page import Section, Table, drawing, photo, render, require_pages, table
from facevae.reports.sources import ReportSource
from facevae.system.files import dictionary, write_text
from facevae.system.runtime import environment

_NUM_SAMPLES = 64
_NUM_HELD_OUT, _NUM_GENERATED = 2048, 512  # latents shown; sampling from a flow takes longer
_MAP_CELLS = 13  # on each side of the map: few enough that pictures hardly overlap
_MORPH_SEEDS, _MORPH_STEPS = (0, 1), 8
_PRIVACY_WARNING = (
    "This page holds pictures of the training data: do not publish it if the terms of the data, or "
    "the people shown, forbid that."
)


def write_report(source: ReportSource, path: Path, progress: Progress = lambda *_: None) -> None:
    """Write the page atomically. Raises `UsageError` without the extra `plot`."""
    require_pages()
    sections = []
    for number, make in enumerate(_SECTIONS, start=1):
        if section := make(source):
            sections.append(section)
        progress("Drawing", number, len(_SECTIONS))
    shows_data = source.faces or source.last_picture("reconstructions")
    page = render(
        source.name,
        _status(source),
        _headlines(source),
        sections,
        warning=_PRIVACY_WARNING if shows_data else "",
    )
    write_text(path, page)


def _status(source: ReportSource) -> str:
    """One line with the preset, the size and how far the training got."""
    preset, size = source.metadata.get("preset"), source.setting("model").get("size")
    parts = [
        f"preset {preset}" if preset else "",
        f"{size} × {size} px" if size else "",
        source.training_state(),
    ]
    return " · ".join(part for part in parts if part)


def _headlines(source: ReportSource) -> list[tuple[str, str]]:
    """Labels and values of the last held-out figures, with units."""
    last = source.epochs[-1] if source.epochs else {}
    figures = dictionary(source.metadata.get("figures")) or last
    shown = (
        ("psnr", "held-out PSNR", "{:.2f} dB"),
        ("kl_nats", "KL divergence", "{:,.0f} nats"),
        ("sigma", "σ", "{:.3f}"),
        ("r_loss_factor", "r_loss_factor", "{:,.0f}"),
        ("sharpness", "sharpness (real = 1)", "{:.2f}"),
        ("active_units", "active units", "{:.0f}"),
    )
    return [
        (label, template.format(figures[key]))
        for key, label, template in shown
        if isinstance(figures.get(key), int | float)
    ]


# ---------------------------------------------------------------- sections


def _samples(source: ReportSource) -> Section | None:
    if not source.bundle:
        path = source.last_picture("samples")
        sheet, problem = _open(path) if path else (None, "")
        shown = [] if sheet is None else [photo(sheet, "Samples of the last epoch.")]
        return Section("Samples", problem, shown) if path else None
    latents = latents_of_seeds(source.bundle, list(range(_NUM_SAMPLES)))
    sheet = grid(to_pixels(decode(source.bundle.vae, latents, WHOLE_TEXTURE)))
    text = f"{_NUM_SAMPLES} generated faces: those of the first seeds, none left out."
    command = f"facevae sample -n {_NUM_SAMPLES} -m {shlex.quote(source.name)} -o grid.png"
    return Section("Samples", text, [photo(sheet, "Generated faces.")], command=command)


def _reconstructions(source: ReportSource) -> Section | None:
    side = source.setting("model").get("size")
    path = source.last_picture("reconstructions")
    if not path or not side:
        return None
    sheet, problem = _open(path)
    if sheet is None:
        return Section("Reconstructions", problem)
    pictures = tiles(sheet, side)
    half = len(pictures) // 2
    if not half:
        return None
    pairs = paired_grid(pictures[:half], pictures[half : 2 * half])
    text = "Held-out faces, each above its reconstruction from the posterior's mean."
    return Section("Reconstructions", text, [photo(pairs, "Held-out faces above reconstructions.")])


def _training(source: ReportSource) -> Section | None:
    if not source.records or not source.pictures:
        return None
    figures = [
        drawing(
            curves.draw_kl(source.records, source.pictures),
            "The KL divergence during training, with samples along it.",
        ),
        drawing(
            curves.draw_figures(source.records),
            "Means over the preceding steps (lines), and of held-out faces after each epoch (dots).",
        ),
    ]
    if any(record["event"] == "prior" for record in source.records):
        caption = (
            "The prior's loss: where it rises for held-out faces and falls for training faces, the "
            "prior memorises its training faces."
        )
        figures.append(drawing(curves.draw_prior(source.records), caption))
    return Section("Training", figures=figures)


def _latents(source: ReportSource) -> Section | None:
    if not source.bundle:
        return None
    if source.faces:
        found = _held_out_latents(source.bundle, source.faces)
    else:
        found = _generated_latents(source.bundle)
    points, shares = principal_plane(found.points)
    rows = latent_plots.spread_out(points, _MAP_CELLS)
    figures = [
        drawing(
            latent_plots.draw_map(points, shares, rows, found.pictures_of(rows)),
            f"Latents of {found.origin} along their principal components, with some of the faces.",
        ),
        drawing(
            latent_plots.draw_histograms(found.drawn, found.origin),
            "The latent dimensions of most variance over N(0, 1), the target of the KL divergence.",
        ),
    ]
    plane = source.pictures / "plane.png" if source.pictures else None
    sheet, problem = _open(plane) if plane and plane.is_file() else (None, "")
    if sheet is not None:
        caption = "The two-dimensional latent space, decoded, two deviations either way."
        figures.append(photo(sheet, caption))
    return Section("Latents", f"{found.text} {problem}".rstrip(), figures)


def _open(path: Path) -> tuple[Pixels | None, str]:
    """A picture (H, W, 3), or None and a sentence that says why it is left out."""
    try:
        return np.asarray(open_picture(path, path.name)), ""
    except ImageError as error:
        return None, f"A picture is left out: {error}."


@dataclass(frozen=True)
class _Latents:
    """Latents to show, on the CPU: `points` (N, D) on the map, `drawn` (N, D) in histograms.

    `text` introduces them, `origin` says whose they are, and `pictures_of` gives the faces at rows
    of `points`.
    """

    text: str
    origin: str
    points: Tensor
    drawn: Tensor
    pictures_of: Callable[[list[int]], Pixels]


def _held_out_latents(bundle: Bundle, faces: Faces) -> _Latents:
    rows = faces.held_out[:: math.ceil(len(faces.held_out) / _NUM_HELD_OUT)]
    mean, logvar = posteriors(bundle.vae, batches_of(faces, rows, bundle.device))
    mean, logvar = mean.cpu(), logvar.cpu()
    text = (
        f"Of {len(rows):,} held-out faces: on the map the means of their posteriors, in the "
        "histograms a sample of each posterior."
    )
    drawn = draw_posteriors(mean, logvar, 0)
    return _Latents(text, "held-out faces", mean, drawn, lambda chosen: faces.pixels[rows[chosen]])


def _generated_latents(bundle: Bundle) -> _Latents:
    latents = latents_of_seeds(bundle, list(range(_NUM_GENERATED))).cpu()
    text = (
        f"Of {len(latents):,} generated faces, drawn from the model's prior, since its training "
        "data are not in the cache."
    )

    def pictures_of(chosen: list[int]) -> Pixels:
        return to_pixels(decode(bundle.vae, latents[chosen], WHOLE_TEXTURE))

    return _Latents(text, "generated faces", latents, latents, pictures_of)


def _attributes(source: ReportSource) -> Section | None:
    if not source.bundle or not source.bundle.attributes:
        return None
    best = sorted(source.bundle.attributes, key=lambda a: -(a.accuracy or 0))
    text = (
        "Directions learned from labels. The balanced accuracy on held-out faces with and without "
        "the attribute is 50 % for random guesses."
    )
    columns = ("attribute", "held-out accuracy", "faces with it", "faces without it")
    command = (
        f"facevae arith seed:0 --attr {shlex.quote(best[0].name)} --sweep -2:2:7 "
        f"-m {shlex.quote(source.name)} -o sweep.png"
    )
    tables = [Table(columns, [_attribute_row(a) for a in best])]
    return Section("Attributes", text, tables=tables, command=command)


def _attribute_row(attribute: Attribute) -> tuple[str, ...]:
    accuracy = attribute.accuracy
    measured = "not measured" if accuracy is None else f"{accuracy:.0%}"
    counts = f"{attribute.num_positives:,}", f"{attribute.num_negatives:,}"
    return attribute.name, measured, *counts


def _morph(source: ReportSource) -> Section | None:
    if not source.bundle:
        return None
    ends = latents_of_seeds(source.bundle, list(_MORPH_SEEDS))
    frames = to_pixels(decode(source.bundle.vae, morph(source.bundle, ends, _MORPH_STEPS)))
    strip = grid(frames, columns=len(frames))
    seeds = " ".join(f"seed:{seed}" for seed in _MORPH_SEEDS)
    command = (
        f"facevae morph {seeds} --steps {_MORPH_STEPS} -m {shlex.quote(source.name)} -o morph.png"
    )
    text = "Interpolation between two generated faces, around the mean of all latents."
    return Section("Morph", text, [photo(strip, "From one face to another.")], command=command)


def _configuration(source: ReportSource) -> Section | None:
    bundle = source.bundle
    groups: dict[str, Mapping[str, Any]] = {
        "network": source.setting("model"),
        "training": {k: setting_text(k, v) for k, v in source.setting("train").items()},
        "prior": bundle.prior_config.to_dict() if bundle else {},
        "framing": bundle.framing.to_dict() if bundle and bundle.framing else {},
    }
    tables = [table(title, values) for title, values in groups.items() if values]
    return Section("Configuration", tables=tables) if tables else None


def _provenance(source: ReportSource) -> Section:
    metadata = source.metadata
    skipped = metadata.get("skipped")
    shown = {
        "data": metadata.get("sources"),
        "faces trained on": metadata.get("num_train"),
        "faces held out": metadata.get("num_held_out"),
        "pictures left out": len(skipped) if isinstance(skipped, list) else None,
        "initial model": metadata.get("init") or None,
        "fingerprint of the data": metadata.get("fingerprint"),
        "images seen": metadata.get("images_seen"),
        "epochs of the finish": dictionary(metadata.get("finish")).get("epochs"),
        "training time in seconds": metadata.get("train_seconds"),
        "terms": metadata.get("terms") or "not stated",
        "facevae": metadata.get("facevae"),
        "torch": metadata.get("torch"),
    }
    rows = {key: value for key, value in shown.items() if value is not None}
    return Section("Provenance", tables=[table("of the training", rows)])


def _reproduction(source: ReportSource) -> Section | None:
    recorded = source.run_config.get("command")
    command = recorded or source.equivalent_command()
    if not command:
        return None
    text = (
        "The command that started or last resumed this run."
        if recorded
        else "A command with the settings above; the original command is not recorded."
    )
    device = source.bundle.device if source.bundle else torch.device("cpu")
    environments = {
        "environment of the training": dictionary(source.run_config.get("environment")),
        "environment of this page": environment(device),
    }
    tables = [table(title, values) for title, values in environments.items() if values]
    return Section("Reproduce", text, tables=tables, command=str(command))


_SECTIONS = (
    _samples,
    _reconstructions,
    _training,
    _latents,
    _attributes,
    _morph,
    _configuration,
    _provenance,
    _reproduction,
)
