"""`morph` and `arith`."""

import math
import re
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from facevae.cli import options
from facevae.cli.session import finish, open_model
from facevae.console import Console
from facevae.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from facevae.bundle import Bundle
    from facevae.edits import Edit
    from facevae.framing import Placed
    from facevae.images import Pixels
    from facevae.outputs import Output

FaceArgument = Annotated[
    str, typer.Argument(metavar="FACE", help="A photo, seed:N, or LATENTS.npz#NAME.")
]


Attr = Annotated[
    list[str] | None,
    typer.Option(
        "--attr", "-a", help="An attribute to add; may repeat. `facevae attributes list` has them."
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="A,B,…|none|all",
        help="Attributes that an edit holds still (default: gender,age,smile,glasses).",
    ),
]


def morph(
    faces: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C …]", help="Two faces or more: photos, seed:N, or LATENTS.npz#NAME."
        ),
    ],
    *,
    steps: Annotated[
        int, typer.Option("--steps", min=2, max=10_000, help="Pictures a leg, both ends included.")
    ] = 10,
    attr: Attr = None,
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            "--alpha",
            metavar="A|FROM:TO",
            help="How much of an --attr, all the way or from one end to the other.",
        ),
    ] = None,
    keep: Keep = None,
    output: options.Output = None,
    path: Annotated[
        Literal["slerp", "lerp"],
        typer.Option("--path", help="Turn around the average face, or go straight through."),
    ] = "slerp",
    loop: Annotated[bool, typer.Option("--loop", help="There and back again.")] = False,
    align: options.Align = True,
    face_number: options.FaceNumber = 1,
    animate: options.Animate = None,
    fps: options.FramesPerSecond = 12,
    model: options.Model = "default",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Turn one face into another: a strip, or an animation by the suffix (.gif, .webp, .mp4).

    Examples:

      facevae morph a.png b.png --steps 10

      facevae morph seed:7 a.png seed:9 --steps 24 --loop -o morph.gif

      facevae morph a.png a.png --attr smile --alpha -2:2 -o smile.gif
    """
    import torch

    from facevae.edits import plan_edit
    from facevae.images import to_pixels
    from facevae.latents import decode, read_face, times_of
    from facevae.latents import morph as morph_latents

    if len(faces) < 2:  # noqa: PLR2004 - a pair
        msg = "a morph needs two faces or more"
        raise UsageError(msg)
    console = Console(quiet=quiet, as_json=json)
    attrs = attr or []
    ramps, kept = _ramps(attrs, alpha), _kept_names(keep, attrs)
    target, moving = _sequence_output(output, "morph.png", animate, faces)
    bundle, used = open_model(console, model, device)
    edit = plan_edit(bundle, attrs, kept) if attrs else None
    ends = [read_face(bundle, name, align=align, number=face_number)[1] for name in faces]
    latents = morph_latents(bundle, torch.stack(ends), steps, path, loop=loop)
    if edit:
        starts, stops = torch.tensor(ramps).T
        times = times_of(len(latents), loop=loop)[:, None]
        latents = edit.apply(latents, (1 - times) * starts + times * stops)
    frames = to_pixels(decode(bundle.vae, latents))
    written = _write_frames(target, frames, moving=moving, fps=fps)
    finish(console, used, written, {"num_pictures": len(frames)})


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
    output: options.Output = None,
    align: options.Align = True,
    face_number: options.FaceNumber = 1,
    animate: options.Animate = None,
    fps: options.FramesPerSecond = 12,
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

    console = Console(quiet=quiet, as_json=json)
    attrs, minus, plus, sweeps = attr or [], minus or [], plus or [], sweep or []
    if not (attrs or minus or plus):
        msg = "nothing to do; name an --attr, or faces with --minus and --plus"
        raise UsageError(msg)
    alphas, kept = _alphas(attrs, alpha, sweeps), _kept_names(keep, attrs)
    if compare and len(sweeps) == _MAX_SWEEPS:
        msg = "--compare has no place in a grid of two sweeps; leave one of them out"
        raise UsageError(msg)
    if paste and not _is_photo(face):
        msg = f"{face}: --paste puts an edit back into a photo, and this is none"
        raise UsageError(msg)
    stem = "-".join([_stem(face), *map(_plain, attrs), *(["sweep"] if sweeps else [])])
    target, moving = _sequence_output(output, f"{stem}.png", animate, [face, *minus, *plus])
    bundle, used = open_model(console, model, device)
    edit = plan_edit(bundle, attrs, kept) if attrs else None

    read = partial(read_face, bundle, align=align, number=face_number)
    if paste:
        placed = _place(console, bundle, face, face_number, align=align)
        original = placed.photo
        latent = encode_pixels(bundle, placed.cut(bundle.config.size)[None])[0]
    else:
        original, latent = read(face)
    added, removed = ([read(name)[1] for name in part] for part in (plus, minus))
    summed = sum_of_faces(bundle, latent, added, removed)
    repeated = summed.repeat(len(alphas), 1)
    edited = edit.apply(repeated, torch.tensor(alphas)) if edit else repeated
    images = decode(bundle.vae, edited)
    frames = to_pixels(images)
    if paste:
        unedited = to_pixels(decode(bundle.vae, latent[None]))[0]
        frames = np.stack([placed.paste(frame, unedited) for frame in frames])
    more = {"attributes": attrs, "alphas": alphas}
    if edit and paste:
        (start,) = to_pixels(decode(bundle.vae, summed[None]))
        photos = [placed.paste(start, unedited), *frames]
        more |= _report_pasted(console, bundle, edit, placed, photos)
    elif edit:
        more |= _report(console, bundle, edit, decode(bundle.vae, summed[None])[0], images)
    if compare:
        frames = np.concatenate([original[None], frames])
    columns = len(options.parse_sweep(sweeps[0])) if len(sweeps) == _MAX_SWEEPS else None
    written = _write_frames(target, frames, moving=moving, fps=fps, columns=columns)
    finish(console, used, written, more)


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
    parts = [f"{name} {moved[farthest][name]:+.2f}" for name in edit.edited]
    still = [f"{name} {moved[farthest][name]:+.2f}" for name in edit.kept]
    held = f"; held still: {', '.join(still)}" if still else ""
    whose = f"the farthest of {len(moved)}: " if len(moved) > 1 else ""
    console.say(
        f"{whose}moved {', '.join(parts)}{held}; "
        f"{distances[farthest]:.0%} of the way to someone else, as the model sees {seen}"
    )
    return {"kept": edit.kept, "moved": moved, "distance": distances}


def _rounded(value: float) -> float:
    return round(value, 4)


def _sequence_output(
    output: str | None,
    default: str,
    animate: bool | None,  # noqa: FBT001 - yes, no, or as the suffix says
    faces: Sequence[str],
) -> "tuple[Output, bool]":
    """Where frames go, and whether they move."""
    from facevae.images import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
    from facevae.outputs import choose_output

    photos = [name for name in faces if _is_photo(name)]
    target = choose_output(output, default, animation=animate is not False, inputs=photos)
    moving = target.is_animation if animate is None else animate
    suffix = target.path.suffix.lower()
    if moving and not target.is_folder and suffix not in (*ANIMATION_SUFFIXES, *VIDEO_SUFFIXES):
        msg = f"{target.path}: '{suffix}' cannot move; use .gif, .webp, .png or .mp4"
        raise UsageError(msg)
    return target, moving


def _write_frames(
    target: "Output", frames: "Pixels", *, moving: bool, fps: float, columns: int | None = None
) -> list[Path]:
    from facevae.outputs import write_sequence

    return write_sequence(target, frames, animate=moving, frames_per_second=fps, columns=columns)


_MAX_SWEEPS = 2  # across and down


def _alphas(
    attrs: Sequence[str], alpha: Sequence[float] | None, sweeps: Sequence[str]
) -> list[list[float]]:
    """One row of alphas, an attribute each, for every picture to make. Raises `UsageError`.

    Sweeps are of the first attributes, the first of them across; alphas are of the rest.
    """
    if len(sweeps) > min(len(attrs), _MAX_SWEEPS):
        msg = f"{len(sweeps)} --sweep for {len(attrs)} --attr; each of at most two sweeps one"
        raise UsageError(msg)
    swept = [options.parse_sweep(text) for text in sweeps]
    if (count := math.prod(map(len, swept))) > options.MAX_SWEEP:
        msg = f"--sweep {sweeps[-1]}: {count:,} pictures are more than {options.MAX_SWEEP}; sweep fewer"
        raise UsageError(msg)
    num_fixed = len(attrs) - len(swept)
    fixed = [options.finite("--alpha", value) for value in alpha or [1.0]]
    if alpha and not num_fixed:
        msg = "--alpha says how much of an --attr that is not swept; name one"
        raise UsageError(msg)
    if len(fixed) not in (1, num_fixed or 1):
        msg = f"{len(fixed)} --alpha for {num_fixed} --attr; give one for all, or one each"
        raise UsageError(msg)
    fixed = fixed * num_fixed if len(fixed) == 1 else fixed
    return [[*reversed(places), *fixed] for places in product(*reversed(swept))]


def _ramps(attrs: Sequence[str], alpha: Sequence[str] | None) -> list[tuple[float, float]]:
    """Where each attribute starts and ends along a morph. Raises `UsageError`."""
    if alpha and not attrs:
        msg = "--alpha says how much of an --attr; name one"
        raise UsageError(msg)
    ramps = [options.parse_ramp(text) for text in alpha or ["1"]]
    if len(ramps) not in (1, len(attrs) or 1):
        msg = f"{len(ramps)} --alpha for {len(attrs)} --attr; give one for all, or one each"
        raise UsageError(msg)
    return ramps * len(attrs) if len(ramps) == 1 else ramps


def _kept_names(keep: str | None, attrs: Sequence[str]) -> list[str] | None:
    if keep is None:
        return None
    if not attrs:
        msg = "--keep says what an --attr leaves as it is; name one"
        raise UsageError(msg)
    return [name.strip() for name in keep.split(",") if name.strip()] or ["none"]


def _plain(name: str) -> str:
    """An attribute's name as part of a file's."""
    return re.sub(r"[^\w-]+", "-", name)


def _is_photo(face: str) -> bool:
    from facevae.latent_files import split_name

    return not face.startswith("seed:") and split_name(face) is None


def _stem(face: str) -> str:
    return Path(face).stem if _is_photo(face) else re.sub(r"\W+", "-", face)
