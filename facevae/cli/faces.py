"""`reconstruct` and `sample`."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from facevae.cli import options
from facevae.cli.edits import check_photo_options, is_photo
from facevae.cli.latents import LatentsKeeper, decode_stored, stored_faces
from facevae.cli.session import open_model, report_result
from facevae.config import MAX_SEED, TRUE_TEXTURE, WHOLE_TEXTURE
from facevae.console import Console
from facevae.errors import ImageError, UsageError

if TYPE_CHECKING:
    from facevae.framing import Framing
    from facevae.images import Pixels
    from facevae.outputs import Output

_CHUNK = 64  # faces in memory at a time, where there may be any number
_MAX_ON_A_SHEET = 1024
_NUMBER = 64  # of samples, where nothing else is asked for
_HOT = 1.2  # a temperature above which more faces are broken than whole
_STRONG = 4.0  # and a guidance


def reconstruct(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE…|DIR", help="Photos, or folders of them; or files of latents to decode."
        ),
    ],
    *,
    output: options.Output = None,
    latents: options.Latents = None,
    align: options.Align = True,
    face_number: options.FaceNumber = 1,
    paste: options.Paste = False,
    texture: options.Texture = TRUE_TEXTURE,
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

      facevae reconstruct photo.jpg --paste -o whole.png

      facevae reconstruct photos/ --latents faces.npz && facevae reconstruct faces.npz#0
    """
    import numpy as np

    from facevae.faces import place_photo
    from facevae.files import distinct_names
    from facevae.images import paired_grid, save_picture, to_pixels
    from facevae.latents import decode, encode_pixels

    console = Console(quiet=quiet, as_json=json)
    check_photo_options([str(path) for path in images], align=align, number=face_number)
    if stored := stored_faces(images):
        if paste:
            msg = f"{images[0]}: --paste puts faces back into photos, and this is none"
            raise UsageError(msg)
        decode_stored(console, stored, output, model, device, texture, latents=latents)
        return
    keep = LatentsKeeper(latents)
    files = _find_photos(images)
    target, paths = _places(output, files, paste=paste)
    stems = distinct_names([str(path) for path in files])
    bundle, used = open_model(console, model, device)
    if not (paste or target.is_folder):
        _check_sheet(target.path, len(files), bundle.config.size)
    keep.spare(Path(used["path"]))

    skipped: list[str] = []
    rows: list[tuple[Pixels, Pixels]] = []
    written: list[Path] = []
    framing = bundle.framing if align else None
    chunks = _read_chunks(files, bundle.config.size, framing, face_number, skipped)
    for places, originals in chunks:
        encoded = encode_pixels(bundle, originals)
        keep.add([stems[place] for place in places], encoded)
        pixels = to_pixels(decode(bundle.vae, encoded, texture))
        if paste or target.is_folder:
            for place, picture in zip(places, pixels, strict=True):
                whole = partial(place_photo, files[place], framing, face_number)
                save_picture(paths[place], whole().paste(picture) if paste else picture)
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
        msg = f"none of the {len(files)} pictures can be used; the first: {skipped[0]}"
        raise ImageError(msg)
    keep.save(bundle, used["name"])
    report_result(console, used, [*written, *keep.paths], {"skipped": skipped})


def _places(
    output: str | None, files: Sequence[Path], *, paste: bool
) -> "tuple[Output, list[Path]]":
    """Where reconstructions go, and the path of each, or of their sheet. Raises `UsageError`."""
    from facevae.outputs import choose_output, folder_paths

    names = [str(path) for path in files]
    target = choose_output(output, "reconstructions.png", inputs=names)
    if not target.is_folder and len(files) > (1 if paste else _MAX_ON_A_SHEET):
        what = "whole photos do not go on" if paste else "pictures are too many for"
        msg = f"{len(files):,} {what} one sheet; name a folder: -o out/"
        raise UsageError(msg)
    return target, folder_paths(target, names, names) if target.is_folder else [target.path]


def _check_sheet(path: Path, count: int, side: int) -> None:
    """Raise `UsageError` where the format holds no sheet of pairs of so many faces."""
    from facevae.images import COLUMNS_OF_PAIRS
    from facevae.outputs import check_grid

    check_grid(path, count, (2 * side, side), COLUMNS_OF_PAIRS)


def _find_photos(images: list[Path]) -> list[Path]:
    from facevae.pictures import find_photos

    for image in images:
        if not is_photo(str(image)) and not image.exists():
            msg = f"{image}: reconstruct takes photos; see seeds with: facevae sample --seeds"
            raise UsageError(msg)
    return find_photos(images)


def sample(
    *,
    number: Annotated[
        int,
        typer.Option("--number", "-n", min=1, max=options.MAX_PICTURES, help="How many faces."),
    ] = _NUMBER,
    output: options.Output = None,
    latents: options.Latents = None,
    seed: options.Seed = 0,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Certain seeds instead: 0,4,10-19.")
    ] = None,
    temperature: options.Temperature = 1.0,
    guidance: options.Guidance = None,
    prior: Annotated[
        Literal["flow", "gaussian", "normal"] | None,
        typer.Option("--prior", help="Draw from another prior than the model's own, to compare."),
    ] = None,
    texture: options.Texture = WHOLE_TEXTURE,
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
    from facevae.images import to_pixels
    from facevae.latents import decode, latents_of_seeds
    from facevae.outputs import FaceWriter, choose_output
    from facevae.prior import other_prior

    console = Console(quiet=quiet, as_json=json)
    options.finite("--temperature", temperature)
    if guidance is not None:
        options.finite("--guidance", guidance)
    keep = LatentsKeeper(latents)
    if seeds is not None and (number != _NUMBER or seed):
        msg = f"--seeds {seeds}: says how many faces and which; leave out -n and --seed"
        raise UsageError(msg)
    if seed + number - 1 > MAX_SEED:
        msg = f"--seed {seed}: the last of {number} seeds would be more than {MAX_SEED}"
        raise UsageError(msg)
    chosen = options.parse_seeds(seeds) if seeds is not None else [seed + i for i in range(number)]
    if temperature > _HOT:
        console.warn(f"at a temperature of {temperature:g} faces fall apart; 1 is as they are")
    if guidance is not None and guidance > _STRONG:
        console.warn(
            f"at a guidance of {guidance:g} faces break; without it they are as the model has it"
        )
    names = [f"seed-{s:04d}" for s in chosen]
    target = choose_output(output, "grid.png")
    if columns and target.is_folder:
        msg = f"--columns {columns}: {target.path} is a folder, with a file for each face; leave it out"
        raise UsageError(msg)
    writer = FaceWriter(target, names, columns)
    bundle, used = open_model(console, model, device)
    writer.check(bundle.config.size)
    keep.spare(Path(used["path"]))
    if prior is not None:
        bundle.prior = other_prior(bundle.prior, prior)

    for start in range(0, len(chosen), _CHUNK):
        some = chosen[start : start + _CHUNK]
        drawn = latents_of_seeds(bundle, some, temperature, guidance)
        keep.add([f"seed:{s}" for s in some], drawn)
        writer.add(to_pixels(decode(bundle.vae, drawn, texture)))
        console.progress("Sampling", writer.num_written, len(chosen))
    paths = writer.finish()
    keep.save(bundle, used["name"])
    report_result(console, used, [*paths, *keep.paths], {"seeds": chosen})


def _read_chunks(
    files: Sequence[Path], size: int, framing: "Framing | None", number: int, skipped: list[str]
) -> "Iterator[tuple[list[int], Pixels]]":
    """Places and pixels of the pictures, some at a time; of several, some may be unreadable."""
    import numpy as np

    from facevae.faces import load_faces_of
    from facevae.pictures import Picture

    photos = [(str(path), Picture(path).open) for path in files]
    places: list[int] = []
    pixels: list[Pixels] = []
    for place, found in enumerate(load_faces_of(photos, size, framing, number)):
        if not isinstance(found, ImageError):
            pixels.append(found)
            places.append(place)
        elif len(files) == 1:
            raise found
        else:
            skipped.append(str(found))
        if len(pixels) == _CHUNK or (pixels and place + 1 == len(files)):
            yield places, np.stack(pixels)
            places, pixels = [], []
