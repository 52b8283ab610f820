"""The commands `reconstruct` and `sample`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from facevae.cli import options
from facevae.cli.edits import check_photo_options
from facevae.cli.latents import LatentsKeeper, decode_stored, stored_faces
from facevae.cli.session import error_line, find_model, open_model, report_result
from facevae.config import MAX_SEED, TRUE_TEXTURE, WHOLE_TEXTURE, PriorConfig
from facevae.errors import ImageError, UsageError
from facevae.latent_space.face_names import is_photo
from facevae.system.console import Console
from facevae.system.files import distinct_names

if TYPE_CHECKING:
    from facevae.cli.outputs import Output
    from facevae.data.images import Pixels
    from facevae.faces.framing import Framing

_CHUNK = 64  # faces in memory at a time
_MAX_ON_A_SHEET = 1024
_DEFAULT_NUMBER = 64  # of samples
# values above which more faces are broken than whole
_MAX_GOOD_TEMPERATURE = 1.2
_MAX_GOOD_GUIDANCE = 4.0


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
    console = Console(quiet=quiet, as_json=json)
    check_photo_options([str(path) for path in images], align=align, number=face_number)
    if stored := stored_faces(images):
        if paste:
            msg = f"{images[0]}: --paste needs photos, not a file of latents; leave out --paste"
            raise UsageError(msg)
        decode_stored(console, stored, output, model, device, texture, latents=latents)
        return
    keep = LatentsKeeper(latents)
    files = _find_photos(images)
    target, paths = _places(output, files, paste=paste)
    stems = distinct_names([str(path) for path in files])
    located = find_model(console, model)

    # no earlier: torch takes seconds to import
    import numpy as np

    from facevae.data.image_tensors import to_pixels
    from facevae.data.images import paired_grid, save_picture
    from facevae.faces.alignment import place_photo
    from facevae.latent_space.latents import decode, encode_pixels

    bundle, used = open_model(console, located, device)
    _check_sheet(target, len(files), bundle.config.size, paste=paste)
    keep.spare(Path(used["path"]))

    skipped: list[str] = []
    pairs: list[tuple[Pixels, Pixels]] = []
    written: list[Path] = []
    framing = bundle.framing if align else None
    for faces, reasons in _load_chunks(files, bundle.config.size, framing, face_number):
        skipped += reasons
        if not faces:
            continue
        originals = np.stack(list(faces.values()))
        encoded = encode_pixels(bundle, originals)
        keep.add([stems[i] for i in faces], encoded)
        pixels = to_pixels(decode(bundle.vae, encoded, texture))
        if paste or target.is_folder:
            for i, face in zip(faces, pixels, strict=True):
                picture = place_photo(files[i], framing, face_number).paste(face) if paste else face
                save_picture(paths[i], picture)
                written.append(paths[i])
        else:
            pairs.append((originals, pixels))
        console.progress("Reconstructing", max(faces) + 1, len(files))
    for reason in skipped:
        console.warn(f"left out: {reason}")
    if pairs:
        upper, lower = (np.concatenate(part) for part in zip(*pairs, strict=True))
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
    """The output, and the path of each reconstruction or of the one sheet. Raises `UsageError`."""
    from facevae.cli.outputs import choose_output, folder_paths

    names = [str(path) for path in files]
    target = choose_output(output, "reconstructions.png", inputs=names)
    if not target.is_folder and len(files) > (1 if paste else _MAX_ON_A_SHEET):
        kind = "whole photos" if paste else "pictures"
        msg = f"{len(files):,} {kind} are too many for one sheet; name a folder: -o out/"
        raise UsageError(msg)
    return target, folder_paths(target, names, names) if target.is_folder else [target.path]


def _check_sheet(target: "Output", count: int, side: int, *, paste: bool) -> None:
    """Raise `UsageError` if the output is a sheet of `count` pairs that its format cannot hold."""
    from facevae.cli.outputs import check_grid
    from facevae.data.images import COLUMNS_OF_PAIRS

    if not (paste or target.is_folder):
        check_grid(target.path, count, (2 * side, side), COLUMNS_OF_PAIRS)


def _find_photos(images: list[Path]) -> list[Path]:
    from facevae.data.pictures import find_photos

    for image in images:
        if not is_photo(str(image)) and not image.exists():
            msg = f"{image}: reconstruct takes photos; for seeds use: facevae sample --seeds"
            raise UsageError(msg)
    return find_photos(images)


def sample(
    *,
    number: Annotated[
        int,
        typer.Option("--number", "-n", min=1, max=options.MAX_PICTURES, help="How many faces."),
    ] = _DEFAULT_NUMBER,
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
    from facevae.cli.outputs import FaceWriter, choose_output

    console = Console(quiet=quiet, as_json=json)
    options.finite("--temperature", temperature)
    if guidance is not None:
        options.finite("--guidance", guidance)
    keep = LatentsKeeper(latents)
    if seeds is not None and (number != _DEFAULT_NUMBER or seed):
        msg = f"--seeds {seeds}: names the faces already; leave out -n and --seed"
        raise UsageError(msg)
    if seed + number - 1 > MAX_SEED:
        msg = f"--seed {seed}: the last of {number} seeds would be more than {MAX_SEED}"
        raise UsageError(msg)
    chosen = options.parse_seeds(seeds) if seeds is not None else [seed + i for i in range(number)]
    if temperature > _MAX_GOOD_TEMPERATURE:
        console.warn(f"at a temperature of {temperature:g} faces fall apart; the default is 1")
    if guidance is not None and guidance > _MAX_GOOD_GUIDANCE:
        console.warn(
            f"at a guidance of {guidance:g} faces break; the model's own is used without --guidance"
        )
    names = [f"seed-{s:04d}" for s in chosen]
    target = choose_output(output, "grid.png")
    if columns and target.is_folder:
        msg = f"--columns {columns}: {target.path} is a folder, with a file for each face; leave out --columns"
        raise UsageError(msg)
    writer = FaceWriter(target, names, columns)
    located = find_model(console, model)

    # no earlier: torch takes seconds to import
    from facevae.data.image_tensors import to_pixels
    from facevae.latent_space.latents import decode, latents_of_seeds
    from facevae.networks.prior import other_prior

    bundle, used = open_model(console, located, device)
    writer.check(bundle.config.size)
    keep.spare(Path(used["path"]))
    if prior is not None:
        other = other_prior(bundle.prior, prior)
        bundle.set_prior(
            other, bundle.prior_config if other is bundle.prior else PriorConfig(prior)
        )

    for start in range(0, len(chosen), _CHUNK):
        chunk = chosen[start : start + _CHUNK]
        drawn = latents_of_seeds(bundle, chunk, temperature, guidance)
        keep.add([f"seed:{s}" for s in chunk], drawn)
        writer.add(to_pixels(decode(bundle.vae, drawn, texture)))
        console.progress("Sampling", writer.num_written, len(chosen))
    paths = writer.finish()
    keep.save(bundle, used["name"])
    report_result(console, used, [*paths, *keep.paths], {"seeds": chosen})


def _load_chunks(
    files: Sequence[Path], size: int, framing: "Framing | None", number: int
) -> "Iterator[tuple[dict[int, Pixels], list[str]]]":
    """Yield the faces of photos in chunks: by the index of the file, and why others are left out.

    Raises the `ImageError` of a photo if it is the only one.
    """
    from facevae.data.pictures import Picture
    from facevae.faces.alignment import load_keyed_faces

    photos = [(i, str(path), Picture(path).open) for i, path in enumerate(files)]
    faces: dict[int, Pixels] = {}
    skipped: list[str] = []
    for i, found in load_keyed_faces(photos, size, framing, number):
        if not isinstance(found, ImageError):
            faces[i] = found
        elif len(files) == 1:
            raise found
        else:
            skipped.append(error_line(found))
        if len(faces) == _CHUNK or i + 1 == len(files):
            yield faces, skipped
            faces, skipped = {}, []
