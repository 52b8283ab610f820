"""`align`."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facevae.cli import options
from facevae.console import Console
from facevae.errors import ImageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facevae.faces import Framing
    from facevae.images import Pixels


def align(
    photos: Annotated[
        list[Path], typer.Argument(metavar="PHOTO…|DIR", help="Photos, or folders of them.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write into.")],
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
    from facevae.data import find_files
    from facevae.images import SUFFIXES, save_picture
    from facevae.outputs import choose_output, folder_paths

    console = Console(quiet=quiet, as_json=json)
    files = find_files(photos, SUFFIXES)
    names = [str(path) for path in files]
    paths = folder_paths(choose_output(f"{output}/", ""), names, names)
    wanted = _framing(framing, quiet=quiet)
    written, skipped = [], []
    for i, found in enumerate(_aligned(files, wanted, size, face_number)):
        if isinstance(found, ImageError):
            skipped.append(str(found))
        else:
            save_picture(paths[i], found)
            written.append(str(paths[i]))
        console.progress("Aligning", i + 1, len(files))
    for reason in skipped:
        console.warn(f"left out: {reason}")
    if not written:
        msg = f"none of the {len(files)} photos has a face that can be used"
        raise ImageError(msg)
    console.say(f"{len(written):,} faces in {output}, {len(skipped):,} photos left out")
    console.result(written, {"outputs": written, "skipped": skipped})


def _framing(name: str, *, quiet: bool) -> "Framing":
    from facevae.faces import FFHQ
    from facevae.hub import load_model

    if name == "ffhq":
        return FFHQ
    found = load_model(name, quiet=quiet)[0].framing
    if found is None:
        msg = f"--framing {name}: that model's faces were not framed alike; name ffhq or another"
        raise UsageError(msg)
    return found


def _aligned(
    files: list[Path], framing: "Framing", size: int, number: int
) -> "Iterator[Pixels | ImageError]":
    """Each photo's face or why there is none, in order, from as many threads as there are cores."""
    import torch

    from facevae.faces import load_face

    def load(path: Path) -> "Pixels | ImageError":
        try:
            return load_face(path, size, framing, number)
        except ImageError as error:
            return error

    torch.set_num_threads(1)  # a photo a core, not a core a network
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), _WINDOW):
            yield from pool.map(load, files[start : start + _WINDOW])


_WINDOW = 64  # photos under way at a time
