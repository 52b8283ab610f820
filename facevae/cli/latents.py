"""Latents that commands keep, and files of them as faces."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.cli.session import open_model, report_result
from facevae.console import Console
from facevae.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from facevae.bundle import Bundle

_CHUNK = 64  # faces in memory at a time, where each becomes a file


class LatentsKeeper:
    """Gathers latents for `--latents`, where that was asked for, and writes them at the end."""

    def __init__(self, path: Path | None) -> None:
        """Raise `UsageError` for a name that says no format."""
        from facevae.files import check_place, expanded
        from facevae.latent_files import check_suffix

        self.paths = [] if path is None else [expanded(path)]
        for named in self.paths:
            check_suffix(named)
            check_place(named, "--latents")
        self._names: list[str] = []
        self._parts: list[Tensor] = []

    def spare(self, model: Path) -> None:
        """Raise `UsageError` where the model's own file would be replaced."""
        for path in self.paths:
            if path.exists() and path.samefile(model):
                msg = f"--latents {path}: is the model itself and would be replaced; name another"
                raise UsageError(msg)

    def add(self, names: Sequence[str], latents: "Tensor") -> None:
        """Latents (N, D) with a name each; they take less memory than their paths' names do."""
        if self.paths:
            self._names += names
            self._parts.append(latents.cpu())

    def save(self, bundle: "Bundle", model: str) -> None:
        """Write what was gathered."""
        import torch

        from facevae.latent_files import LatentsOrigin, digest_of, save_latents

        for path in self.paths:
            origin = LatentsOrigin(model, digest_of(bundle.vae))
            save_latents(path, self._names, torch.cat(self._parts), origin)


def stored_faces(images: Sequence[Path]) -> list[tuple[Path, str | None]]:
    """The files of latents, and the face asked for in each; none where photos are named.

    Raises `UsageError` for a mixture.
    """
    from facevae.latent_files import split_name

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
    """The faces of files of latents, or of one row of each: a grid, or one file each."""
    from facevae.images import to_pixels
    from facevae.latents import check_latents, decode, latents_file
    from facevae.outputs import FaceWriter, choose_output

    if latents:
        msg = f"--latents {latents}: they are in a file already; name photos to encode"
        raise UsageError(msg)
    target = choose_output(output, "reconstructions.png")
    for path, _ in stored:
        check_latents(path)
    bundle, used = open_model(console, model, device)
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
    """A face's name, which a file may give as it likes, as that of a picture."""
    return re.sub(r"[^\w.-]+", "-", name)[:100] + ".png"
