"""`morph`: turn one face into another."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import typer

from facevae.cli import options
from facevae.cli.drawing import MorphDrawing
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


def morph(
    faces: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C …]", help="Two faces or more: photos, seed:N, or LATENTS.npz#NAME."
        ),
    ],
    *,
    steps: Annotated[
        int,
        typer.Option(
            "--steps", min=2, max=10_000, help="Pictures from one face to the next, both included."
        ),
    ] = 10,
    attr: Attr = None,
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            "--alpha",
            metavar="A|FROM:TO",
            help="How much of an --attr: constant, or from one end to the other.",
        ),
    ] = None,
    keep: Keep = None,
    output: options.Output = None,
    path: Annotated[
        Literal["slerp", "lerp"],
        typer.Option("--path", help="An arc around the average face, or a straight line."),
    ] = "slerp",
    texture: options.Texture = TRUE_TEXTURE,
    tune: options.Tune = True,
    loop: Annotated[bool, typer.Option("--loop", help="There and back again.")] = False,
    align: options.Align = True,
    face_number: options.FaceNumber = 1,
    animate: options.Animate = None,
    fps: options.FramesPerSecond = options.FRAMES_PER_SECOND,
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
    if len(faces) < 2:  # noqa: PLR2004 - a pair
        msg = "a morph needs two faces or more"
        raise UsageError(msg)
    console = Console(quiet=quiet, as_json=json)
    attrs = attr or []
    ramps, kept = _ramps(attrs, alpha), kept_names(keep, attrs)
    check_photo_options(faces, align=align, number=face_number, tune=tune)
    target, moving = sequence_output(output, "morph.png", animate, fps, faces)
    located = find_model(console, model)

    # no earlier: torch takes seconds to import
    import numpy as np
    import torch

    from facevae.cli.outputs import check_sequence
    from facevae.latent_space.edits import CHUNK, edit_faces, plan_edit, relative_distance
    from facevae.latent_space.latents import morph as morph_latents
    from facevae.latent_space.latents import read_face, shares_of_faces, times_of

    bundle, used = open_model(console, located, device)
    edit = plan_edit(bundle, attrs, kept) if attrs else None
    # a face that is named twice is read once
    read = {
        name: read_face(bundle, name, align=align, number=face_number)
        for name in dict.fromkeys(faces)
    }
    ends = torch.stack([read[name][1] for name in faces])
    latents = morph_latents(bundle, ends, steps, path, loop=loop)
    sides = bundle.config.size, bundle.config.size
    check_sequence(target, len(latents), sides, animate=moving)
    tuned_bundle, tuned = tune_to(console, bundle, read, texture, tune=tune)
    photos = {i: read[name][0] for i, name in enumerate(faces) if tune and is_photo(name)}
    drawing = MorphDrawing(bundle, tuned_bundle, ends, photos, texture)
    shares = shares_of_faces(len(faces), steps, loop=loop)
    starts, stops = torch.tensor(ramps).view(-1, 2).T
    times = times_of(len(latents), loop=loop)[:, None]
    alphas = (1 - times) * starts + times * stops
    chunks, distances = [], [0.0]
    for before, share, alpha_rows in zip(
        latents.split(CHUNK), shares.split(CHUNK), alphas.split(CHUNK), strict=True
    ):
        after = before
        if edit:
            seen = partial(drawing.images, before, share)
            after = edit_faces(bundle, edit, before, alpha_rows, seen)
            distances += relative_distance(bundle, after - before).tolist()
        chunks.append(drawing.frames(before, share, after))
        console.progress("Morphing", sum(map(len, chunks)), len(latents))
    warn_if_far(console, max(distances))
    frames = np.concatenate(chunks)
    written = write_frames(target, frames, moving=moving, fps=fps)
    report_result(console, used, written, {"num_pictures": len(frames), "tuned": tuned})


def _ramps(attrs: Sequence[str], alpha: Sequence[str] | None) -> list[tuple[float, float]]:
    """Alphas of each attribute at the start and end of a morph. Raises `UsageError`."""
    if alpha and not attrs:
        msg = "--alpha says how much of an --attr; name one"
        raise UsageError(msg)
    ramps = [options.parse_ramp(text) for text in alpha or ["1"]]
    if len(ramps) not in (1, len(attrs) or 1):
        msg = f"{len(ramps)} --alpha for {len(attrs)} --attr; give one for all, or one each"
        raise UsageError(msg)
    return ramps * len(attrs) if len(ramps) == 1 else ramps
