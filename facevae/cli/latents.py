"""`--latents`, and latents files given as faces."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.cli.session import find_model, open_model, report_result
from facevae.errors import UsageError
from facevae.latent_space.face_names import check_latents_file, check_suffix, split_name
from facevae.system.console import Console
from facevae.system.files import check_place, expanded

if TYPE_CHECKING:
    from torch import Tensor

    from facevae.models.bundle import Bundle

_CHUNK = 64  # faces decoded at a time


class LatentsKeeper:
    """Collects latents for `--latents`, if given, and writes them at the end."""

    def __init__(self, path: Path | None) -> None:
        """Raise `UsageError` for a suffix that is not a format of latents."""
        self.paths = [] if path is None else [expanded(path)]
        for named in self.paths:
            check_suffix(named)
            check_place(named, "--latents")
        self._names: list[str] = []
        self._parts: list[Tensor] = []

    def spare(self, model: Path) -> None:
        """Raise `UsageError` if the model's own file would be replaced."""
        for path in self.paths:
            if path.exists() and path.samefile(model):
                msg = f"--latents {path}: is the model itself and would be replaced; name another"
                raise UsageError(msg)

    def add(self, names: Sequence[str], latents: "Tensor") -> None:
        """Add latents (N, D) with a name each; they take less memory than the names of their paths."""
        if self.paths:
            self._names += names
            self._parts.append(latents.cpu())

    def save(self, bundle: "Bundle", model: str) -> None:
        """Write the collected latents; `model` is the name of the model."""
        import torch

        from facevae.latent_space.latent_files import LatentsOrigin, digest_of, save_latents

        for path in self.paths:
            origin = LatentsOrigin(model, digest_of(bundle.vae))
            save_latents(path, self._names, torch.cat(self._parts), origin)


def stored_faces(images: Sequence[Path]) -> list[tuple[Path, str | None]]:
    """Latents files, and the face chosen in each (None: all); empty if photos are named.

    Raises `UsageError` for a mixture of the two.
    """
    found = [split_name(str(path)) for path in images]
    stored = [file for file in found if file is not None]
    if stored and len(stored) < len(found):
        msg = "photos or files of latents, not both at once"
        raise UsageError(msg)
    return stored


def decode_stored(
    console: Console,
    stored: "Sequence[tuple[Path, str | None]]",
    output: str | None,
    model: str,
    device: str,
    texture: float,
    *,
    latents: Path | None,
) -> None:
    """Decode latents files, or one row of each, into a grid or one picture each."""
    from facevae.cli.outputs import FaceWriter, choose_output

    if latents:
        msg = f"--latents {latents}: they are in a file already; name photos to encode"
        raise UsageError(msg)
    target = choose_output(output, "reconstructions.png")
    for path, _ in stored:
        check_latents_file(path)
    located = find_model(console, model)

    # no earlier: torch takes seconds to import
    from facevae.data.image_tensors import to_pixels
    from facevae.latent_space.latents import decode, latents_file

    bundle, used = open_model(console, located, device)
    parts = []
    for path, which in stored:
        file = latents_file(bundle, path)
        row = None if which is None else file.row(which)
        parts.append((file, range(file.num_faces) if row is None else range(row, row + 1)))
    names = [_file_name(file.name(row)) for file, rows in parts for row in rows]
    writer = FaceWriter(target, names)
    writer.check(bundle.config.size)
    for file, rows in parts:
        for some in file.read(rows.start, rows.stop, _CHUNK):
            writer.add(to_pixels(decode(bundle.vae, some, texture)))
            console.progress("Decoding", writer.num_written, len(names))
    report_result(console, used, writer.finish(), {"skipped": []})


def _file_name(name: str) -> str:
    """Picture file name for a face, whose own name may hold any characters."""
    return re.sub(r"[^\w.-]+", "-", name)[:100] + ".png"
