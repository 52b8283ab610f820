"""`align`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facevae.cli import options
from facevae.cli.session import error_line, find_model
from facevae.config import SIZES
from facevae.errors import ImageError, UsageError
from facevae.system.console import Console, counted

if TYPE_CHECKING:
    from facevae.faces.framing import Framing


def align(
    photos: Annotated[
        list[Path], typer.Argument(metavar="PHOTO…|DIR", help="Photos, or folders of them.")
    ],
    *,
    output: Annotated[str, typer.Option("--output", "-o", help="The folder to write into.")],
    framing: Annotated[
        str, typer.Option("--framing", help="ffhq, or a model whose framing to take.")
    ] = "ffhq",
    size: Annotated[int, typer.Option("--size", min=16, max=1024, help="Side in pixels.")] = 256,
    face_number: options.FaceNumber = 1,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a training set out of photos: each one's face, upright, all framed alike.

    Examples:

      facevae align holiday/ -o faces/

      facevae align holiday/ -o faces/ --framing default --size 128
    """
    from facevae.cli.outputs import choose_folder, folder_paths
    from facevae.data.images import save_picture
    from facevae.data.pictures import Picture, find_photos

    console = Console(quiet=quiet, as_json=json)
    files = find_photos(photos)
    names = [str(path) for path in files]
    target = choose_folder(output)
    paths = folder_paths(target, names, names)
    wanted = _framing(console, framing)
    written, skipped = [], []

    from facevae.faces.alignment import load_faces_of  # no earlier: it imports torch

    photos_of = [(str(path), Picture(path).open) for path in files]
    faces = load_faces_of(photos_of, size, wanted, face_number, least_side=min(SIZES))
    for i, found in enumerate(faces):
        if isinstance(found, ImageError):
            skipped.append(error_line(found, has_no_align=False))
        else:
            save_picture(paths[i], found)
            written.append(str(paths[i]))
        console.progress("Aligning", i + 1, len(files))
    for reason in skipped:
        console.warn(f"left out: {reason}")
    if not written:
        msg = f"no face that can be used in {counted(len(files), 'photo')}; the first: {skipped[0]}"
        raise ImageError(msg)
    console.say(
        f"{counted(len(written), 'face')} in {target.path}, {counted(len(skipped), 'photo')} left out"
    )
    console.result([target.path], {"outputs": written, "skipped": skipped})


def _framing(console: Console, name: str) -> "Framing":
    """FFHQ's framing, or that of the model of this name. Raises `UsageError`."""
    from facevae.faces.framing import FFHQ

    if name == "ffhq":
        return FFHQ
    located = find_model(console, name)

    from facevae.models.loading import read_model  # no earlier: it imports torch

    found = read_model(located).framing
    if found is None:
        msg = f"--framing {name}: that model's faces were not framed alike; name ffhq or another"
        raise UsageError(msg)
    return found
