"""`arith`."""

import math
import re
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facevae.cli import options
from facevae.cli.edits import (
    Attr,
    Keep,
    check_photo_options,
    is_photo,
    kept_names,
    sequence_output,
    warn_if_far,
    write_frames,
)
from facevae.cli.session import open_model, report_result
from facevae.config import TRUE_TEXTURE
from facevae.console import Console
from facevae.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from facevae.bundle import Bundle
    from facevae.edits import Edit
    from facevae.framing import Placed
    from facevae.images import Pixels

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
    import numpy as np
    import torch

    from facevae.edits import plan_edit, sum_of_faces
    from facevae.images import to_pixels
    from facevae.latents import decode, encode_pixels, read_face
    from facevae.outputs import check_sequence

    console = Console(quiet=quiet, as_json=json)
    attrs, minus, plus, sweeps = attr or [], minus or [], plus or [], sweep or []
    faces = [face, *minus, *plus]
    _check(faces, attrs, sweeps, compare=compare, paste=paste)
    alphas, kept = _alphas(attrs, alpha, sweeps), kept_names(keep, attrs)
    check_photo_options(faces, align=align, number=face_number)
    default = "-".join([_stem(face), *map(_plain, attrs), *["sweep"] * bool(sweeps)]) + ".png"
    target, moving = sequence_output(output, default, animate, fps, faces)
    bundle, used = open_model(console, model, device)
    edit = plan_edit(bundle, attrs, kept) if attrs else None

    read = partial(read_face, bundle, align=align, number=face_number)
    if paste:
        placed = _place(console, bundle, face, face_number, align=align)
        original = placed.photo
        latent = encode_pixels(bundle, placed.cut(bundle.config.size)[None])[0]
    else:
        original, latent = read(face)
    columns = len(options.parse_sweep(sweeps[0])) if len(sweeps) == _MAX_SWEEPS else None
    sides = original.shape[:2]
    check_sequence(target, len(alphas) + compare, sides, animate=moving, columns=columns)
    added, removed = ([read(name)[1] for name in part] for part in (plus, minus))
    summed = sum_of_faces(bundle, latent, added, removed)
    repeated = summed.repeat(len(alphas), 1)
    edited = edit.apply(repeated, torch.tensor(alphas)) if edit else repeated
    drawn = partial(decode, bundle.vae, texture=texture)
    images = drawn(edited)
    frames = to_pixels(images)
    if paste:
        unedited = to_pixels(drawn(latent[None]))[0]
        frames = np.stack([placed.paste(frame, unedited) for frame in frames])
    more = {"attributes": attrs, "alphas": alphas}
    if edit and paste:
        start = to_pixels(drawn(summed[None]))[0]
        photos = [placed.paste(start, unedited), *frames]
        more |= _report_pasted(console, bundle, edit, placed, photos)
    elif edit:
        more |= _report(console, bundle, edit, drawn(summed[None])[0], images)
    if compare:
        frames = np.concatenate([original[None], frames])
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
    """Raise `UsageError` where options do not go together, or leave nothing to do."""
    face, *others = faces
    if not (attrs or others):
        msg = "nothing to do; name an --attr, or faces with --minus and --plus"
        raise UsageError(msg)
    if compare and len(sweeps) == _MAX_SWEEPS:
        msg = "--compare has no place in a grid of two sweeps; leave one of them out"
        raise UsageError(msg)
    if paste and not is_photo(face):
        msg = f"{face}: --paste puts an edit back into a photo, and this is none"
        raise UsageError(msg)


def _place(console: Console, bundle: "Bundle", photo: str, number: int, *, align: bool) -> "Placed":
    """Where in a photo the face is that is to be edited."""
    from facevae.faces import place_photo
    from facevae.files import expanded

    framing = bundle.framing if align else None
    placed = place_photo(expanded(photo), framing, number)
    if placed.is_profile:
        console.warn(f"{photo}: the face looks far to a side; edits are for faces from the front")
    return placed


def _report_pasted(
    console: Console,
    bundle: "Bundle",
    edit: "Edit",
    placed: "Placed",
    photos: "Sequence[Pixels]",
) -> dict[str, object]:
    """`_report` of whole photos (H, W, 3) into which the edit was pasted, after one without it."""
    import numpy as np
    import torch

    from facevae.images import from_pixels

    size = bundle.config.size
    before, *after = from_pixels(np.stack([placed.again(photo, size) for photo in photos]))
    return _report(console, bundle, edit, before, torch.stack(after), seen="the photo")


def _report(
    console: Console,
    bundle: "Bundle",
    edit: "Edit",
    before: "Tensor",
    images: "Tensor",
    seen: str = "its own picture",
) -> dict[str, object]:
    """Say how far the edit moved what it should, and what it should not."""
    from facevae.edits import measure_edit

    outcome = measure_edit(bundle, edit, before, images)
    names = [*edit.edited, *edit.kept]
    moved = [dict(zip(names, map(_rounded, row), strict=True)) for row in outcome.moved.tolist()]
    distances = list(map(_rounded, outcome.distance.tolist()))
    # of many pictures, the one that went farthest
    farthest = max(range(len(moved)), key=lambda i: distances[i])
    far = moved[farthest]
    strayed = [name for name in edit.kept if abs(far[name]) > _STRAYED]
    groups = {
        "moved": edit.edited,
        "but also moved": strayed,
        "held still": [name for name in edit.kept if name not in strayed],
    }
    parts = [
        f"{what}{':' * (what != 'moved')} {', '.join(f'{name} {far[name]:+.2f}' for name in names)}"
        for what, names in groups.items()
        if names
    ]
    whose = f"the farthest of {len(moved)}: " if len(moved) > 1 else ""
    console.say(
        f"{whose}{'; '.join(parts)}; "
        f"{distances[farthest]:.0%} of the way to someone else, as the model sees {seen}"
    )
    warn_if_far(console, distances[farthest])
    return {"kept": edit.kept, "moved": moved, "distance": distances}


_STRAYED = 0.3  # of an α, beyond which a score cannot be said to have been held still


def _rounded(value: float) -> float:
    return round(value, 4)


_MAX_SWEEPS = 2  # across and down


def _alphas(
    attrs: Sequence[str], alpha: Sequence[float] | None, sweeps: Sequence[str]
) -> list[list[float]]:
    """One row of alphas, an attribute each, for every picture to make. Raises `UsageError`.

    Sweeps are of the first attributes, the first of them across; alphas are of the rest.
    """
    if len(sweeps) > min(len(attrs), _MAX_SWEEPS):
        msg = (
            f"{len(sweeps)} --sweep for {len(attrs)} --attr; each needs one of its own, two at most"
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
            f"--alpha {alpha[0]:g}: {attrs[-1]} is swept already; --alpha is for a further --attr"
            if swept
            else f"--alpha {alpha[0]:g}: says how much of an --attr; name one"
        )
        raise UsageError(msg)
    if len(fixed) not in (1, num_fixed or 1):
        msg = f"{len(fixed)} --alpha for {num_fixed} --attr; give one for all, or one each"
        raise UsageError(msg)
    fixed = fixed * num_fixed if len(fixed) == 1 else fixed
    return [[*reversed(places), *fixed] for places in product(*reversed(swept))]


def _plain(name: str) -> str:
    """An attribute's name as part of a file's."""
    return re.sub(r"[^\w-]+", "-", name)


def _stem(face: str) -> str:
    return Path(face).stem if is_photo(face) else re.sub(r"\W+", "-", face)
