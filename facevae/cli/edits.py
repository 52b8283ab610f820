"""`morph` and `arith`."""

import re
from collections.abc import Sequence
from functools import partial
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
    from facevae.images import Pixels
    from facevae.outputs import Output

FaceArgument = Annotated[
    str, typer.Argument(metavar="FACE", help="A photo, seed:N, or LATENTS.npz#NAME.")
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
    """
    import torch

    from facevae.images import to_pixels
    from facevae.latents import decode, read_face
    from facevae.latents import morph as morph_latents

    if len(faces) < 2:  # noqa: PLR2004 - a pair
        msg = "a morph needs two faces or more"
        raise UsageError(msg)
    console = Console(quiet=quiet, as_json=json)
    target, moving = _sequence_output(output, "morph.png", animate, faces)
    bundle, used = open_model(console, model, device)
    ends = [read_face(bundle, name, align=align, number=face_number)[1] for name in faces]
    latents = morph_latents(bundle, torch.stack(ends), steps, path, loop=loop)
    frames = to_pixels(decode(bundle.vae, latents))
    written = _write_frames(target, frames, moving=moving, fps=fps)
    finish(console, used, written, {"num_pictures": len(frames)})


def arith(
    face: FaceArgument,
    *,
    attr: Annotated[
        list[str] | None,
        typer.Option(
            "--attr", "-a", help="An attribute to add; may repeat. `facevae info` lists them."
        ),
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(
            "--alpha", help="How much of it: 1 is the average difference; one for all, or one each."
        ),
    ] = None,
    minus: Annotated[
        list[str] | None, typer.Option("--minus", help="A face to take away; may repeat.")
    ] = None,
    plus: Annotated[
        list[str] | None, typer.Option("--plus", help="A face to add; may repeat.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="A strip over many alphas, as from:to:count.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put the original beside the edited face.")
    ] = False,
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

      facevae arith face.png --attr smile --sweep -3:3:7

      facevae arith a.png --minus b.png --plus c.png
    """
    import numpy as np
    import torch

    from facevae.images import to_pixels
    from facevae.latents import combine, decode, read_face, shift

    console = Console(quiet=quiet, as_json=json)
    attrs, minus, plus = attr or [], minus or [], plus or []
    if not (attrs or minus or plus):
        msg = "nothing to do; name an --attr, or faces with --minus and --plus"
        raise UsageError(msg)
    alphas = _alphas(attrs, alpha, sweep)
    others = [*minus, *plus]
    stem = "-".join([_stem(face), *map(_plain, attrs), *(["sweep"] if sweep else [])])
    target, moving = _sequence_output(output, f"{stem}.png", animate, [face, *others])
    bundle, used = open_model(console, model, device)
    directions = [_direction(bundle, name) for name in attrs]

    read = partial(read_face, bundle, align=align, number=face_number)
    original, latent = read(face)
    added, removed = ([read(name)[1] for name in part] for part in (plus, minus))
    latent = combine(latent, added, removed, bundle.latent_mean)
    edits = latent.repeat(len(alphas), 1)
    for i, direction in enumerate(directions):
        amounts = torch.tensor([row[i] for row in alphas])[:, None].to(latent)
        edits = shift(edits, direction, amounts)
    frames = to_pixels(decode(bundle.vae, edits))
    if compare:
        frames = np.concatenate([original[None], frames])
    written = _write_frames(target, frames, moving=moving, fps=fps)
    finish(console, used, written, {"attributes": attrs, "alphas": alphas})


def _sequence_output(
    output: str | None,
    default: str,
    animate: bool | None,  # noqa: FBT001 - yes, no, or as the suffix says
    faces: Sequence[str],
) -> "tuple[Output, bool]":
    """Where frames go, and whether they move."""
    from facevae.images import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
    from facevae.outputs import choose_output

    photos = [name for name in faces if not name.startswith("seed:")]
    target = choose_output(output, default, animation=animate is not False, inputs=photos)
    moving = target.is_animation if animate is None else animate
    suffix = target.path.suffix.lower()
    if moving and not target.is_folder and suffix not in (*ANIMATION_SUFFIXES, *VIDEO_SUFFIXES):
        msg = f"{target.path}: '{suffix}' cannot move; use .gif, .webp, .png or .mp4"
        raise UsageError(msg)
    return target, moving


def _write_frames(target: "Output", frames: "Pixels", *, moving: bool, fps: float) -> list[Path]:
    from facevae.outputs import write_sequence

    return write_sequence(target, frames, animate=moving, frames_per_second=fps)


def _alphas(
    attrs: Sequence[str], alpha: Sequence[float] | None, sweep: str | None
) -> list[list[float]]:
    """One row of alphas, an attribute each, for every picture to make. Raises `UsageError`."""
    if sweep is not None:
        if len(attrs) != 1 or alpha:
            msg = "--sweep goes with exactly one --attr, and without --alpha"
            raise UsageError(msg)
        return [[value] for value in options.parse_sweep(sweep)]
    given = [options.finite("--alpha", value) for value in alpha or [1.0]]
    if alpha and not attrs:
        msg = "--alpha says how much of an --attr; name one"
        raise UsageError(msg)
    if len(given) not in (1, len(attrs) or 1):
        msg = f"{len(given)} --alpha for {len(attrs)} --attr; give one for all, or one each"
        raise UsageError(msg)
    return [given * len(attrs) if len(given) == 1 else given]


def _direction(bundle: "Bundle", name: str) -> "Tensor":
    from facevae.attributes import match_attribute

    index, sign = match_attribute(name, [a.name for a in bundle.attributes])
    assert bundle.directions is not None  # noqa: S101 - with attributes it has directions
    direction: Tensor = sign * bundle.directions[index]
    return direction


def _plain(name: str) -> str:
    """An attribute's name as part of a file's."""
    return re.sub(r"[^\w-]+", "-", name)


def _stem(face: str) -> str:
    return face.replace(":", "-") if face.startswith("seed:") else Path(face).stem
