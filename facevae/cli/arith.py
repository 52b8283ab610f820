"""`arith`: edit a face by latent arithmetic."""

import math
import re
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facevae.cli import options
from facevae.cli.drawing import EditDrawing, Subject, read_in_place
from facevae.cli.edits import (
    Attr,
    Keep,
    check_photo_options,
    kept_names,
    sequence_output,
    tune_to,
    warn_if_far,
    write_frames,
)
from facevae.cli.session import find_model, open_model, report_result
from facevae.config import TRUE_TEXTURE
from facevae.errors import UsageError
from facevae.latent_space.face_names import is_photo
from facevae.system.console import Console

if TYPE_CHECKING:
    from facevae.data.images import Pixels
    from facevae.latent_space.edits import Edit
    from facevae.models.bundle import Bundle

_MAX_SWEEPS = 2  # across and down
_STILL = 0.3  # largest change of a score, in α, of an attribute reported as held still

FaceArgument = Annotated[
    str, typer.Argument(metavar="FACE", help="A photo, seed:N, or LATENTS.npz#NAME.")
]


def arith(
    face: FaceArgument,
    *,
    attr: Attr = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(
            "--alpha",
            parser=options.parse_alpha,
            metavar="FLOAT",
            help="How much of it: 1 is the average difference; one for all, or one each.",
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="FROM:TO:COUNT",
            help="A strip of many alphas of the first --attr; given twice, a grid of the first two.",
        ),
    ] = None,
    keep: Keep = None,
    minus: Annotated[
        list[str] | None, typer.Option("--minus", help="A face to take away; may repeat.")
    ] = None,
    plus: Annotated[
        list[str] | None, typer.Option("--plus", help="A face to add; may repeat.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put the original beside the edited face.")
    ] = False,
    paste: options.Paste = False,
    tune: options.Tune = True,
    texture: options.Texture = TRUE_TEXTURE,
    output: options.Output = None,
    align: options.Align = True,
    face_number: options.FaceNumber = 1,
    animate: options.Animate = None,
    fps: options.FramesPerSecond = options.FRAMES_PER_SECOND,
    model: options.Model = "default",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Edit a face by latent arithmetic, w = w_new + α · η, or add and subtract whole faces.

    Examples:

      facevae arith face.png --attr glasses --alpha 1.5

      facevae arith photo.jpg --attr smile --alpha 1.5 --paste

      facevae arith face.png --attr smile --sweep -3:3:7

      facevae arith a.png --minus b.png --plus c.png
    """
    console = Console(quiet=quiet, as_json=json)
    attrs, minus, plus, sweeps = attr or [], minus or [], plus or [], sweep or []
    faces = [face, *minus, *plus]
    _check(faces, attrs, sweeps, compare=compare, paste=paste)
    alphas, kept = _alphas(attrs, alpha, sweeps), kept_names(keep, attrs)
    check_photo_options(faces, align=align, number=face_number, tune=tune)
    parts = [_stem(face), *map(_file_name_part, attrs), *["sweep"] * bool(sweeps)]
    default = "-".join(parts) + ".png"
    target, moving = sequence_output(output, default, animate, fps, faces)
    located = find_model(console, model)

    # no earlier: torch takes seconds to import
    import numpy as np
    import torch

    from facevae.cli.outputs import check_sequence
    from facevae.latent_space.edits import edit_faces, plan_edit, sum_of_faces
    from facevae.latent_space.latents import read_face

    bundle, used = open_model(console, located, device)
    edit = plan_edit(bundle, attrs, kept) if attrs else None

    read = partial(read_face, bundle, align=align, number=face_number)
    if paste:
        subject = read_in_place(console, bundle, face, face_number, align=align)
    else:
        subject = Subject(*read(face))
    columns = len(options.parse_sweep(sweeps[0])) if len(sweeps) == _MAX_SWEEPS else None
    sides = subject.original.shape[:2]
    check_sequence(target, len(alphas) + compare, sides, animate=moving, columns=columns)
    read_faces = {face: (subject.pixels, subject.latent)}
    read_faces |= {name: read(name) for name in dict.fromkeys([*plus, *minus]) if name != face}
    added, removed = ([read_faces[name][1] for name in names] for names in (plus, minus))
    summed = sum_of_faces(bundle, subject.latent, added, removed)

    tuned_bundle, tuned = tune_to(console, bundle, read_faces, texture, tune=tune)
    keeps_detail = tune and is_photo(face)
    drawing = EditDrawing(subject, bundle, tuned_bundle, summed, texture, keeps_detail=keeps_detail)
    latents = summed.repeat(len(alphas), 1)
    if edit:
        latents = edit_faces(bundle, edit, latents, torch.tensor(alphas), drawing.images)
    start, frames = drawing.written(latents)
    more: dict[str, object] = {"attributes": attrs, "alphas": alphas, "tuned": tuned}
    if edit:
        pictures = np.stack([subject.cut(picture) for picture in (start, *frames)])
        seen = "the photo" if paste or keeps_detail else "its own picture"
        more |= _report(console, bundle, edit, pictures, seen)
    if compare:
        frames = np.concatenate([subject.original[None], frames])
    written = write_frames(target, frames, moving=moving, fps=fps, columns=columns)
    report_result(console, used, written, more)


def _check(
    faces: Sequence[str],
    attrs: Sequence[str],
    sweeps: Sequence[str],
    *,
    compare: bool,
    paste: bool,
) -> None:
    """Raise `UsageError` for options that do not fit together, or that leave nothing to do."""
    face, *others = faces
    if not (attrs or others):
        msg = "nothing to do; name an --attr, or faces with --minus and --plus"
        raise UsageError(msg)
    if compare and len(sweeps) == _MAX_SWEEPS:
        msg = "--compare does not work with a grid of two sweeps; leave out --compare or a --sweep"
        raise UsageError(msg)
    if paste and not is_photo(face):
        msg = f"{face}: --paste puts an edit back into a photo, and this is not a photo"
        raise UsageError(msg)


def _report(
    console: Console, bundle: "Bundle", edit: "Edit", pictures: "Pixels", seen: str
) -> dict[str, object]:
    """Say how far the edit moved each score, and return the figures for JSON.

    The pictures (1 + N, S, S, 3) are the unedited face, and the edits. `seen` says what they are of.
    """
    from facevae.data.image_tensors import from_pixels
    from facevae.latent_space.edits import measure_edit

    outcome = measure_edit(bundle, edit, from_pixels(pictures))
    names = [*edit.edited, *edit.kept]
    moved = [dict(zip(names, map(_rounded, row), strict=True)) for row in outcome.moved.tolist()]
    distances = list(map(_rounded, outcome.distance.tolist()))
    # of several pictures, describe the one that went farthest
    farthest = max(range(len(moved)), key=lambda i: distances[i])
    changes = moved[farthest]
    also_moved = [name for name in edit.kept if abs(changes[name]) > _STILL]
    groups = {
        "moved": edit.edited,
        "but also moved:": also_moved,
        "held still:": [name for name in edit.kept if name not in also_moved],
    }
    parts = [
        f"{title} {', '.join(f'{name} {_signed(changes[name])}' for name in group)}"
        for title, group in groups.items()
        if group
    ]
    which = f"the farthest of {len(moved)}: " if len(moved) > 1 else ""
    console.say(
        f"{which}{'; '.join(parts)}; "
        f"{distances[farthest]:.0%} of the way to someone else, as the model sees {seen}"
    )
    warn_if_far(console, distances[farthest])
    return {"kept": edit.kept, "moved": moved, "distance": distances}


def _rounded(value: float) -> float:
    return round(value, 4)


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # never -0.00


def _alphas(
    attrs: Sequence[str], alpha: Sequence[float] | None, sweeps: Sequence[str]
) -> list[list[float]]:
    """Alphas for each picture to make, one for each attribute. Raises `UsageError`.

    The sweeps vary the first attributes, the first of them fastest (across); `alpha` sets the rest.
    """
    if len(sweeps) > min(len(attrs), _MAX_SWEEPS):
        msg = (
            f"{len(sweeps)} --sweep for {len(attrs)} --attr; give at most one each, and at most two"
        )
        raise UsageError(msg)
    swept = [options.parse_sweep(text) for text in sweeps]
    if (count := math.prod(map(len, swept))) > options.MAX_SWEEP:
        msg = f"--sweep {sweeps[-1]}: {count:,} pictures are more than {options.MAX_SWEEP}; sweep fewer"
        raise UsageError(msg)
    num_fixed = len(attrs) - len(swept)
    fixed = [options.finite("--alpha", value) for value in alpha or [1.0]]
    if alpha and not num_fixed:
        msg = (
            f"--alpha {alpha[0]:g}: {attrs[-1]} is swept already; --alpha needs another --attr"
            if swept
            else f"--alpha {alpha[0]:g}: says how much of an --attr; name one"
        )
        raise UsageError(msg)
    if len(fixed) not in (1, num_fixed or 1):
        msg = f"{len(fixed)} --alpha for {num_fixed} --attr; give one for all, or one each"
        raise UsageError(msg)
    fixed = fixed * num_fixed if len(fixed) == 1 else fixed
    return [[*reversed(values), *fixed] for values in product(*reversed(swept))]


def _file_name_part(attribute: str) -> str:
    """An attribute's name with only letters, digits, underscores and dashes."""
    return re.sub(r"[^\w-]+", "-", attribute)


def _stem(face: str) -> str:
    """A photo's stem, or another face's name with only letters, digits, underscores and dashes."""
    return Path(face).stem if is_photo(face) else re.sub(r"\W+", "-", face)
