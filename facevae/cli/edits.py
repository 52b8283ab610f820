"""What `morph` and `arith` share: options of attributes, checks, tuning, and output of frames."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facevae.cli import options
from facevae.errors import UsageError
from facevae.latent_space.face_names import check_face, is_photo

if TYPE_CHECKING:
    from torch import Tensor

    from facevae.cli.outputs import Output
    from facevae.data.images import Pixels
    from facevae.models.bundle import Bundle
    from facevae.system.console import Console

_FAR = 0.6  # of the distance between two random faces; edits beyond about this break faces

Attr = Annotated[
    list[str] | None,
    typer.Option(
        "--attr", "-a", help="An attribute to add; may repeat. See `facevae attributes list`."
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


def sequence_output(
    output: str | None,
    default: str,
    animate: bool | None,  # noqa: FBT001 - None lets the suffix decide
    fps: float,
    faces: Sequence[str],
) -> "tuple[Output, bool]":
    """Target of the frames, and whether it is an animation.

    Raises `UsageError` if target and options do not fit together; also checks that each of the
    faces exists.
    """
    from facevae.cli.outputs import choose_output
    from facevae.data.images import ANIMATION_SUFFIXES, VIDEO_SUFFIXES

    if animate and output is None:
        default = str(Path(default).with_suffix(".gif"))
    photos = [name for name in faces if is_photo(name)]
    target = choose_output(output, default, animation=animate is not False, inputs=photos)
    moving = target.is_animation if animate is None else animate
    if animate and target.is_folder:
        msg = f"--animate: {target.path} is a folder for stills; name a .gif, .webp or .mp4 with -o"
        raise UsageError(msg)
    suffix = target.path.suffix.lower()
    if moving and not target.is_folder and suffix not in (*ANIMATION_SUFFIXES, *VIDEO_SUFFIXES):
        msg = f"{target.path}: '{suffix}' cannot hold an animation; use .gif, .webp, .png or .mp4"
        raise UsageError(msg)
    if fps != options.FRAMES_PER_SECOND and not moving:
        msg = f"--fps {fps:g}: {target.path} holds stills; name a .gif, .webp or .mp4 with -o"
        raise UsageError(msg)
    for name in faces:
        check_face(name)
    return target, moving


def write_frames(
    target: "Output", frames: "Pixels", *, moving: bool, fps: float, columns: int | None = None
) -> list[Path]:
    """Write frames (N, H, W, 3) to the target and return the paths of the files."""
    from facevae.cli.outputs import write_sequence

    return write_sequence(target, frames, animate=moving, frames_per_second=fps, columns=columns)


Face = tuple["Pixels", "Tensor"]
"""A face as it was given, pixels (S, S, 3), and its latent (D,)."""


def tune_to(
    console: "Console", bundle: "Bundle", faces: Mapping[str, Face], texture: float, *, tune: bool
) -> "tuple[Bundle, dict[str, float] | None]":
    """The model, tuned to those of the faces that are photos, and for JSON how like them it is now.

    Without `tune`, or without a photo, it is the model as it is, and None.
    """
    photos = [name for name in faces if tune and is_photo(name)]
    if not photos:
        return bundle, None

    from functools import partial

    import numpy as np
    import torch

    from facevae.data.image_tensors import from_pixels
    from facevae.latent_space.tuning import tune as tune_model

    images = from_pixels(np.stack([faces[name][0] for name in photos]))
    latents = torch.stack([faces[name][1] for name in photos])
    tuning = tune_model(bundle, images, latents, texture, partial(console.progress, "Tuning"))
    before, after = tuning.before.mean().item(), tuning.after.mean().item()
    which = photos[0] if len(photos) == 1 else f"{len(photos)} photos"
    if tuning.bundle is bundle:
        console.say(f"tuning to {which} did not help: {before:.1f} dB, as before")
    else:
        console.say(f"tuned to {which}: {before:.1f} dB before, {after:.1f} dB after")
    return tuning.bundle, {"psnr_before": round(before, 4), "psnr_after": round(after, 4)}


def warn_if_far(console: "Console", distance: float) -> None:
    """Warn that an edit may break the face; a distance of 1 is between two random faces."""
    if distance > _FAR:
        console.warn(
            "the face goes so far that it may fall apart; use a smaller --alpha, or --keep fewer"
        )


def kept_names(keep: str | None, attrs: Sequence[str]) -> list[str] | None:
    """Names in --keep; None, without it, stands for the default. Raises `UsageError`."""
    if keep is None:
        return None
    if not attrs:
        msg = "--keep says what an --attr must not change; name an --attr"
        raise UsageError(msg)
    names = [name.strip() for name in keep.split(",") if name.strip()] or ["none"]
    if alone := [name for name in names if name.casefold() in ("none", "all") and names[1:]]:
        msg = f"--keep {keep}: '{alone[0]}' stands alone; leave out the rest"
        raise UsageError(msg)
    return names


def check_photo_options(
    faces: Sequence[str], *, align: bool, number: int, tune: bool = True
) -> None:
    """Raise `UsageError` for options of photos that contradict each other or have no photo."""
    if number != 1 and not align:
        msg = f"--face {number}: --no-align looks for no face; leave one of them out"
        raise UsageError(msg)
    given = [f"--face {number}"] * (number != 1) + ["--no-align"] * (not align)
    given += ["--no-tune"] * (not tune)
    if given and not any(map(is_photo, faces)):
        msg = f"{given[0]}: is for photos, and {faces[0]} is not a photo; leave it out"
        raise UsageError(msg)
