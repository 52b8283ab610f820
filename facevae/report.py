"""A run or a model as one page of HTML that needs nothing else. Needs the extra `plot`."""

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facevae import curves, latent_plots
from facevae.attributes import Attribute
from facevae.batches import batches_of
from facevae.bundle import Bundle
from facevae.config import WHOLE_TEXTURE
from facevae.conversion import Progress
from facevae.data import Faces
from facevae.errors import ImageError
from facevae.files import write_text
from facevae.images import Pixels, grid, open_picture, paired_grid, tiles, to_pixels
from facevae.latents import decode, latents_of_seeds, morph, posteriors
from facevae.metrics import principal_plane
from facevae.model import draw_posteriors
from facevae.page import Section, Table, drawing, photo, render, require_pages, table
from facevae.runtime import environment
from facevae.sources import ReportSource, count, dictionary, setting_text

_NUM_SAMPLES = 64
_NUM_HELD_OUT, _NUM_GENERATED = 2048, 512  # whose latents are shown; a flow takes its time
_MAP_CELLS = 13  # on each side of the map, so that its pictures hardly overlap
_MORPH_SEEDS, _MORPH_STEPS = (0, 1), 8
_OF_PEOPLE = (
    "This page holds pictures of the training data: do not publish it where their terms, or the "
    "people they show, forbid that."
)


def write_report(source: ReportSource, path: Path, progress: Progress = lambda *_: None) -> None:
    """Write the page, atomically. Raises `UsageError` without the extra `plot`."""
    require_pages()
    sections = []
    for i, make in enumerate(_SECTIONS):
        sections += [section for section in [make(source)] if section]
        progress("Drawing", i + 1, len(_SECTIONS))
    shows_data = source.faces or source.last_picture("reconstructions")
    page = render(
        source.name,
        _status(source),
        _headlines(source),
        sections,
        warning=_OF_PEOPLE if shows_data else "",
    )
    write_text(path, page)


def _status(source: ReportSource) -> str:
    known = source.known
    done, wanted = count(known.get("epochs")), count(source.about.get("epochs"))
    size = source.setting("model").get("size")
    parts = [f"preset {known['preset']}"] if known.get("preset") else []
    parts += [f"{size} × {size} px"] if size else []
    if source.bundle and known.get("complete") and done >= wanted:
        finish = dictionary(known.get("finish"))
        more = f" and {finish['epochs']} of the finish" if count(finish.get("epochs")) else ""
        parts += [f"finished, {done} epochs{more}"]
    elif source.about:
        last = source.epochs[-1] if source.epochs else {}
        whole = f" of {wanted}" if wanted and last.get("stage") != "finish" else ""
        stage = ", in the finish" if last.get("stage") == "finish" else ""
        parts += [f"not finished, {last.get('epoch', 0):.6g}{whole} epochs{stage}"]
    return " · ".join(parts)


def _headlines(source: ReportSource) -> list[tuple[str, str]]:
    """The last held-out figures, each with its unit."""
    last = source.epochs[-1] if source.epochs else {}
    known = dictionary(source.known.get("figures")) or last
    shown = (
        ("psnr", "held-out PSNR", "{:.2f} dB"),
        ("kl_nats", "KL divergence", "{:,.0f} nats"),
        ("sigma", "σ", "{:.3f}"),
        ("r_loss_factor", "r_loss_factor", "{:,.0f}"),
        ("sharpness", "sharpness (real = 1)", "{:.2f}"),
        ("active_units", "active units", "{:.0f}"),
    )
    return [
        (label, form.format(known[key]))
        for key, label, form in shown
        if isinstance(known.get(key), int | float)
    ]


# ---------------------------------------------------------------- sections


def _samples(source: ReportSource) -> Section | None:
    if not source.bundle:
        path = source.last_picture("samples")
        sheet, problem = _opened(path) if path else (None, "")
        shown = [] if sheet is None else [photo(sheet, "Samples of the last epoch.")]
        return Section("Samples", problem, shown) if path else None
    latents = latents_of_seeds(source.bundle, list(range(_NUM_SAMPLES)))
    sheet = grid(to_pixels(decode(source.bundle.vae, latents, WHOLE_TEXTURE)))
    text = f"{_NUM_SAMPLES} faces that do not exist, one of each of the first seeds, none left out."
    command = f"facevae sample -n {_NUM_SAMPLES} -m {shlex.quote(source.name)} -o grid.png"
    return Section("Samples", text, [photo(sheet, "Generated faces.")], command=command)


def _reconstructions(source: ReportSource) -> Section | None:
    side = source.setting("model").get("size")
    path = source.last_picture("reconstructions")
    if not path or not side:
        return None
    drawn, problem = _opened(path)
    if drawn is None:
        return Section("Reconstructions", problem)
    pictures = tiles(drawn, side)
    half = len(pictures) // 2
    if not half:
        return None
    sheet = paired_grid(pictures[:half], pictures[half : 2 * half])
    text = "Faces that were held out, each above its reconstruction from the posterior's mean."
    return Section("Reconstructions", text, [photo(sheet, "Held-out faces above reconstructions.")])


def _training(source: ReportSource) -> Section | None:
    if not source.records or not source.pictures:
        return None
    figures = [
        drawing(
            curves.draw_kl(source.records, source.pictures),
            "The KL divergence over the training, with samples along it.",
        ),
        drawing(
            curves.draw_figures(source.records),
            "Means over the steps before (lines), and of held-out faces after each epoch (dots).",
        ),
    ]
    if any(record["event"] == "prior" for record in source.records):
        caption = (
            "The prior's loss: where that of held-out faces rises while that of training faces "
            "falls, it learns its faces by heart."
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
    places, shares = principal_plane(found.points)
    chosen = latent_plots.spread_out(places, _MAP_CELLS)
    figures = [
        drawing(
            latent_plots.draw_map(places, shares, chosen, found.pictures_of(chosen)),
            f"The two directions in which latents of {found.whose} vary most, with some of the faces.",
        ),
        drawing(
            latent_plots.draw_histograms(found.drawn, found.whose),
            "The most varied latents over N(0, 1), which the KL divergence draws them towards.",
        ),
    ]
    plane = source.pictures / "plane.png" if source.pictures else None
    sheet, problem = _opened(plane) if plane and plane.is_file() else (None, "")
    if sheet is not None:
        figures.append(photo(sheet, "The latent plane decoded, two deviations either way."))
    return Section("Latents", f"{found.text} {problem}".rstrip(), figures)


def _opened(path: Path) -> tuple[Pixels | None, str]:
    """A picture of the run's (H, W, 3), or none and a sentence on why it is left out."""
    try:
        return np.asarray(open_picture(path, path.name)), ""
    except ImageError as error:
        return None, f"A picture is left out: {error}."


@dataclass(frozen=True)
class _Latents:
    """`points` (N, D) for the map and `drawn` (N, D) for the histograms, both on the CPU."""

    text: str
    whose: str
    points: Tensor
    drawn: Tensor
    pictures_of: Callable[[list[int]], Pixels]


def _held_out_latents(bundle: Bundle, faces: Faces) -> _Latents:
    rows = faces.held_out[:: math.ceil(len(faces.held_out) / _NUM_HELD_OUT)]
    mean, logvar = posteriors(bundle.vae, batches_of(faces, rows, bundle.device))
    mean, logvar = mean.cpu(), logvar.cpu()
    text = (
        f"Of {len(rows):,} held-out faces: on the map their posteriors' means, in the histograms "
        "a sample of each posterior."
    )
    drawn = draw_posteriors(mean, logvar, 0)
    return _Latents(text, "held-out faces", mean, drawn, lambda some: faces.pixels[rows[some]])


def _generated_latents(bundle: Bundle) -> _Latents:
    latents = latents_of_seeds(bundle, list(range(_NUM_GENERATED))).cpu()
    text = (
        f"Of {len(latents):,} generated faces, drawn from the model's own prior: its training "
        "data are not in the cache here."
    )
    return _Latents(
        *(text, "generated faces", latents, latents),
        lambda some: to_pixels(decode(bundle.vae, latents[some], WHOLE_TEXTURE)),
    )


def _attributes(source: ReportSource) -> Section | None:
    if not source.bundle or not source.bundle.attributes:
        return None
    best = sorted(source.bundle.attributes, key=lambda a: -(a.accuracy or 0))
    text = (
        "Directions learned from labels. The accuracy is balanced over held-out faces with and "
        "without the attribute: 50 % is chance."
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
    text = "The way between two generated faces, around the mean of all latents."
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
    known = source.known
    skipped = known.get("skipped")
    shown = {
        "data": known.get("sources"),
        "faces trained on": known.get("num_train"),
        "faces held out": known.get("num_held_out"),
        "pictures left out": len(skipped) if isinstance(skipped, list) else None,
        "began with": known.get("init") or None,
        "fingerprint of the data": known.get("fingerprint"),
        "images seen": known.get("images_seen"),
        "epochs of the finish": dictionary(known.get("finish")).get("epochs"),
        "training time in seconds": known.get("train_seconds"),
        "terms": known.get("terms") or "none are stated",
        "facevae": known.get("facevae"),
        "torch": known.get("torch"),
    }
    rows = {key: value for key, value in shown.items() if value is not None}
    return Section("Provenance", tables=[table("of the training", rows)])


def _reproduction(source: ReportSource) -> Section | None:
    typed = source.about.get("command")
    command = typed or source.equivalent_command()
    if not command:
        return None
    text = (
        "The command by which this run was started or last gone on with."
        if typed
        else "Put together from the settings above: how the command was typed is not recorded."
    )
    device = source.bundle.device if source.bundle else torch.device("cpu")
    places = {
        "of the training": dictionary(source.about.get("environment")),
        "of this page": environment(device),
    }
    tables = [table(f"environment {whose}", v) for whose, v in places.items() if v]
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
