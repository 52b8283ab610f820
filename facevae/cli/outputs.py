"""Where results go: one picture, one animation, or a folder with a file for each face."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facevae.data.images import (
    ANIMATION_SUFFIXES,
    STILL_SUFFIXES,
    VIDEO_SUFFIXES,
    Pixels,
    check_sides,
    check_suffix,
    grid,
    grid_cells,
    require_video,
    save_animation,
    save_picture,
)
from facevae.errors import UsageError
from facevae.system.files import check_place, distinct_names, expanded, unused

SUFFIX_OF_MODELS = ".safetensors"
_SUFFIXES = tuple(dict.fromkeys((*STILL_SUFFIXES, *ANIMATION_SUFFIXES, *VIDEO_SUFFIXES)))
_FILE_SUFFIXES = (*_SUFFIXES, SUFFIX_OF_MODELS, ".onnx")
_MAX_IN_A_GRID = 4096


@dataclass(frozen=True)
class Output:
    """A file to write, or a folder (`is_folder`) to write files into."""

    path: Path
    is_folder: bool

    @property
    def is_animation(self) -> bool:
        """Whether the suffix means an animation rather than a strip of frames."""
        return self.path.suffix.lower() in (".gif", ".webp", *VIDEO_SUFFIXES)


def choose_output(
    named: str | None, default: str, *, animation: bool = False, inputs: Iterable[str] = ()
) -> Output:
    """The output that `-o` names, or `default` with a number if that file exists.

    A name is a folder if it has no suffix, ends in a slash, or is an existing folder. Raises
    `UsageError` if the suffix cannot be written or one of `inputs` would be replaced, and
    `FacevaeError` if nothing can be written there.
    """
    if named is None:
        output = Output(unused(Path(default)), is_folder=False)
    else:
        output = _named_output(named, inputs, animation=animation)
    check_place(output.path)
    return output


def _named_output(named: str, inputs: Iterable[str], *, animation: bool) -> Output:
    if not named.strip():
        msg = "-o is empty; name a file or a folder"
        raise UsageError(msg)
    if named == "-":
        msg = "-o -: pictures are not written to stdout; name a file or a folder"
        raise UsageError(msg)
    path = expanded(named)
    if not path.suffix and path.name.lower() in _SUFFIXES and not path.is_dir():
        msg = f"{path}: is only a suffix; put a name before it"
        raise UsageError(msg)
    if named.endswith(("/", "\\")) or not path.suffix or path.is_dir():
        if path.exists() and not path.is_dir():
            msg = f"{path}: is a file, not a folder; name another -o"
            raise UsageError(msg)
        return Output(path, is_folder=True)
    check_suffix(path, _SUFFIXES if animation else STILL_SUFFIXES)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        require_video()
    _protect([path], inputs)
    return Output(path, is_folder=False)


def choose_folder(named: str) -> Output:
    """The folder that `-o` names. Raises `UsageError` for a name that looks like a file."""
    path = expanded(named)
    has_slash = named.endswith(("/", "\\"))
    if path.suffix.lower() in _FILE_SUFFIXES and not has_slash and not path.is_dir():
        msg = f"{path}: looks like a file, but a folder is needed; end it with / if it is a folder"
        raise UsageError(msg)
    return choose_output(named if has_slash or not named.strip() else f"{named}/", "")


def folder_paths(output: Output, names: Sequence[str], inputs: Iterable[str] = ()) -> list[Path]:
    """The path of a `.png` in the folder for each name; repeated stems get a number.

    Raises `UsageError` if one of `inputs` would be replaced.
    """
    paths = [output.path / f"{name}.png" for name in distinct_names(list(names))]
    _protect(paths, inputs)
    return paths


def _protect(paths: Iterable[Path], inputs: Iterable[str]) -> None:
    originals = {Path(name).resolve() for name in inputs}
    for path in paths:
        if path.resolve() in originals:
            msg = f"{path}: is one of the inputs and would be replaced; name another -o"
            raise UsageError(msg)


class FaceWriter:
    """Writes faces incrementally: a file for each into a folder, or else one grid at the end."""

    def __init__(self, output: Output, names: Sequence[str], columns: int | None = None) -> None:
        """Prepare for one face per name. Raises `UsageError` if they are too many for a grid."""
        if not output.is_folder and len(names) > _MAX_IN_A_GRID:
            msg = f"{len(names):,} faces are too many for one grid; name a folder: -o faces/"
            raise UsageError(msg)
        self._output, self._columns, self._count = output, columns, len(names)
        self._paths = folder_paths(output, names) if output.is_folder else [output.path]
        self._cells: list[Pixels] = []
        self.num_written = 0

    def check(self, side: int) -> None:
        """Raise `UsageError` if the grid of faces of `side` pixels is too large for the format."""
        if not self._output.is_folder:
            check_grid(self._output.path, self._count, (side, side), self._columns)

    def add(self, faces: Pixels) -> None:
        """Add the next faces (N, H, W, 3)."""
        if self._output.is_folder:
            for path, face in zip(self._paths[self.num_written :], faces, strict=False):
                save_picture(path, face)
        else:
            self._cells.append(faces)
        self.num_written += len(faces)

    def finish(self) -> list[Path]:
        """Write the grid, if there is one; returns the paths of all files."""
        if self._cells:
            save_picture(self._output.path, grid(np.concatenate(self._cells), self._columns))
        return self._paths


def check_grid(path: Path, count: int, sides: tuple[int, int], columns: int | None = None) -> None:
    """Raise `UsageError` if a grid of `count` pictures of `sides` (H, W) is too large to write."""
    rows, columns = grid_cells(count, columns)
    check_sides(path, rows * sides[0], columns * sides[1])


def check_sequence(
    output: Output,
    count: int,
    sides: tuple[int, int],
    *,
    animate: bool,
    columns: int | None = None,
) -> None:
    """Raise `UsageError` if `write_sequence` would for `count` frames of `sides` (H, W)."""
    if not output.is_folder and not animate:
        check_grid(output.path, count, sides, columns or count)


def write_sequence(
    output: Output,
    frames: Pixels,
    *,
    animate: bool,
    frames_per_second: float,
    columns: int | None = None,
) -> list[Path]:
    """Write frames (N, H, W, 3) as an animation, as a strip, or as numbered files in a folder.

    With `columns` the strip is broken into rows of that many frames.
    """
    if output.is_folder:
        digits = len(str(len(frames) - 1))
        paths = folder_paths(output, [f"{i:0{digits}d}" for i in range(len(frames))])
        for path, frame in zip(paths, frames, strict=True):
            save_picture(path, frame)
        return paths
    is_still = len(frames) == 1 and output.path.suffix.lower() in STILL_SUFFIXES
    if animate and not is_still:
        save_animation(output.path, frames, frames_per_second)
    else:
        save_picture(output.path, grid(frames, columns or len(frames)))
    return [output.path]
