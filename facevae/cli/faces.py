"""`reconstruct`, `sample`, `morph` and `arith`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from facevae.cli import options
from facevae.console import Console
from facevae.errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from facevae.bundle import Bundle
    from facevae.images import Pixels
    from facevae.outputs import Output

_CHUNK = 64  # faces in memory at a time, where there may be any number
_MAX_ON_A_SHEET = 1024

FaceArgument = Annotated[str, typer.Argument(metavar="FACE", help="A photo, or seed:N.")]


def reconstruct(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE…|DIR", help="Photos, or folders of them.")
    ],
    *,
    output: options.Output = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show photos as the model sees them: originals above their reconstructions.

    With a folder as -o, one reconstruction each, named after its original.

    Examples:

      facevae reconstruct face.png

      facevae reconstruct photos/ -o out/
    """
    import numpy as np

    from facevae.data import find_files
    from facevae.images import SUFFIXES, paired_grid, save_picture, to_pixels
    from facevae.latents import decode, encode_pixels
    from facevae.outputs import choose_output, folder_paths

    console = Console(quiet=quiet, as_json=json)
    files = find_files(images, SUFFIXES)
    names = [str(path) for path in files]
    target = choose_output(output, "reconstructions.png", inputs=names)
    if not target.is_folder and len(files) > _MAX_ON_A_SHEET:
        msg = f"{len(files):,} pictures are too many for one sheet; name a folder: -o out/"
        raise UsageError(msg)
    paths = folder_paths(target, names, names) if target.is_folder else [target.path]
    bundle, used = _open_model(console, model, device)

    skipped: list[str] = []
    rows: list[tuple[Pixels, Pixels]] = []
    written: list[Path] = []
    for places, originals in _read_chunks(files, set(images), bundle.config.size, skipped):
        pixels = to_pixels(decode(bundle.vae, encode_pixels(bundle, originals)))
        if target.is_folder:
            for place, picture in zip(places, pixels, strict=True):
                save_picture(paths[place], picture)
                written.append(paths[place])
        else:
            rows.append((originals, pixels))
        console.progress("Reconstructing", places[-1] + 1, len(files))
    for reason in skipped:
        console.warn(f"left out: {reason}")
    if rows:
        upper, lower = (np.concatenate(part) for part in zip(*rows, strict=True))
        save_picture(target.path, paired_grid(upper, lower))
        written = [target.path]
    if not written:
        msg = f"none of the {len(files)} pictures can be read"
        raise ImageError(msg)
    _finish(console, used, written, {"skipped": skipped})


def sample(
    *,
    number: Annotated[
        int,
        typer.Option("--number", "-n", min=1, max=options.MAX_PICTURES, help="How many faces."),
    ] = 64,
    output: options.Output = None,
    seed: options.Seed = 0,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Certain seeds instead: 0,4,10-19.")
    ] = None,
    temperature: options.Temperature = 1.0,
    prior: Annotated[
        Literal["flow", "gaussian", "normal"] | None,
        typer.Option("--prior", help="Draw from another prior than the model's own, to compare."),
    ] = None,
    columns: Annotated[
        int | None, typer.Option("--columns", min=1, help="Faces in a row (default: a square).")
    ] = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make new faces, as a grid or one file each: face i of --seed S is that of seed S + i.

    Examples:

      facevae sample -n 64 -o grid.png

      facevae sample --seeds 0,4,10-19 --temperature 0.8 -o faces/
    """
    import numpy as np

    from facevae.images import grid, save_picture, to_pixels
    from facevae.latents import decode, latents_of_seeds
    from facevae.outputs import choose_output, folder_paths
    from facevae.prior import other_prior

    console = Console(quiet=quiet, as_json=json)
    options.finite("--temperature", temperature)
    chosen = options.parse_seeds(seeds) if seeds is not None else [seed + i for i in range(number)]
    target = choose_output(output, "grid.png")
    if not target.is_folder and len(chosen) > 4 * _MAX_ON_A_SHEET:
        msg = f"{len(chosen):,} faces are too many for one grid; name a folder: -o faces/"
        raise UsageError(msg)
    paths = folder_paths(target, [f"seed-{s:04d}" for s in chosen]) if target.is_folder else []
    bundle, used = _open_model(console, model, device)
    if prior is not None:
        bundle.prior = other_prior(bundle.prior, prior)

    parts: list[Pixels] = []
    for start in range(0, len(chosen), _CHUNK):
        latents = latents_of_seeds(bundle, chosen[start : start + _CHUNK], temperature)
        pixels = to_pixels(decode(bundle.vae, latents))
        if target.is_folder:
            for path, picture in zip(paths[start:], pixels, strict=False):
                save_picture(path, picture)
        else:
            parts.append(pixels)
        console.progress("Sampling", min(start + _CHUNK, len(chosen)), len(chosen))
    if not target.is_folder:
        save_picture(target.path, grid(np.concatenate(parts), columns))
        paths = [target.path]
    _finish(console, used, paths, {"seeds": chosen})


def morph(
    faces: Annotated[
        list[str], typer.Argument(metavar="A B [C …]", help="Two faces or more: photos, or seed:N.")
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
    bundle, used = _open_model(console, model, device)
    ends = torch.stack([read_face(bundle, name)[1] for name in faces])
    latents = morph_latents(bundle, ends, steps, path, loop=loop)
    frames = to_pixels(decode(bundle.vae, latents))
    written = _write_frames(target, frames, moving=moving, fps=fps)
    _finish(console, used, written, {"num_pictures": len(frames)})


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
    stem = "-".join([_stem(face), *attrs, *(["sweep"] if sweep else [])])
    target, moving = _sequence_output(output, f"{stem}.png", animate, [face, *others])
    bundle, used = _open_model(console, model, device)
    directions = [_direction(bundle, name) for name in attrs]

    original, latent = read_face(bundle, face)
    added, removed = ([read_face(bundle, name)[1] for name in part] for part in (plus, minus))
    latent = combine(latent, added, removed, bundle.latent_mean)
    edits = latent.repeat(len(alphas), 1)
    for i, direction in enumerate(directions):
        amounts = torch.tensor([row[i] for row in alphas])[:, None].to(latent)
        edits = shift(edits, direction, amounts)
    frames = to_pixels(decode(bundle.vae, edits))
    if compare:
        frames = np.concatenate([original[None], frames])
    written = _write_frames(target, frames, moving=moving, fps=fps)
    _finish(console, used, written, {"attributes": attrs, "alphas": alphas})


# ---------------------------------------------------------------- what they share


def _open_model(console: Console, name: str, device: str) -> "tuple[Bundle, dict[str, Any]]":
    """Load the model onto the device and say which one it is."""
    from facevae.hub import load_model
    from facevae.runtime import describe, select_device

    chosen = select_device(device)
    bundle, located = load_model(name)
    size = bundle.config.size
    console.say(f"model: {located.name} ({size} × {size} px) on {describe(chosen)}")
    used = {"name": located.name, "path": str(located.path)}
    return bundle.to(chosen), used


def _finish(
    console: Console, used: dict[str, Any], written: Sequence[Path], more: dict[str, Any]
) -> None:
    outputs = [str(path) for path in written]
    console.result(outputs, {"model": used, "outputs": outputs, **more})


def _read_chunks(
    files: Sequence[Path], named: set[Path], size: int, skipped: list[str]
) -> "Iterator[tuple[list[int], Pixels]]":
    """Places and pixels of the pictures, some at a time; one found in a folder may be unreadable."""
    import numpy as np

    from facevae.images import load_square

    places: list[int] = []
    pixels: list[Pixels] = []
    for place, path in enumerate(files):
        try:
            pixels.append(load_square(path, size))
            places.append(place)
        except ImageError as error:
            if path in named:
                raise
            skipped.append(str(error))
        if len(pixels) == _CHUNK or (pixels and place + 1 == len(files)):
            yield places, np.stack(pixels)
            places, pixels = [], []


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


def _stem(face: str) -> str:
    return face.replace(":", "-") if face.startswith("seed:") else Path(face).stem
