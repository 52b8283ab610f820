"""Attributes of faces: label tables in the formats people have, and directions learned from them."""

import csv
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facevae.errors import DataError, UsageError
from facevae.files import digest
from facevae.images import SUFFIXES
from facevae.tables import File, Marks, read_marks, row_names

_YES = frozenset(("1", "1.0", "+1", "true", "yes", "y", "t"))
_NO = frozenset(("0", "0.0", "-1", "-1.0", "false", "no", "n", "f"))
_NAME_COLUMNS = ("name", "file", "filename", "file_name", "image", "image_id", "path", "id")

# everyday words → the published attribute that means it, and which way
_ALIASES = {
    "glasses": ("eyeglasses", 1),
    "spectacles": ("eyeglasses", 1),
    "smile": ("smiling", 1),
    "gender": ("male", 1),
    "man": ("male", 1),
    "masculine": ("male", 1),
    "female": ("male", -1),
    "woman": ("male", -1),
    "feminine": ("male", -1),
    "age": ("young", -1),
    "old": ("young", -1),
    "beard": ("nobeard", -1),
    "hat": ("wearinghat", 1),
    "headwear": ("wearinghat", 1),
    "lipstick": ("wearinglipstick", 1),
    "earrings": ("wearingearrings", 1),
    "necklace": ("wearingnecklace", 1),
    "necktie": ("wearingnecktie", 1),
    "tie": ("wearingnecktie", 1),
    "makeup": ("heavymakeup", 1),
    "blond": ("blondhair", 1),
    "blonde": ("blondhair", 1),
    "brunette": ("brownhair", 1),
    "fringe": ("bangs", 1),
    "moustache": ("mustache", 1),
    "stubble": ("5oclockshadow", 1),
    "pale": ("paleskin", 1),
    "curly": ("wavyhair", 1),
    "openmouth": ("mouthslightlyopen", 1),
    "balding": ("recedinghairline", 1),
}


@dataclass(frozen=True)
class Attribute:
    """One attribute of a model: what it was learned from and how well it tells faces apart.

    `scale` is the direction's length in latent units: what α = 1 moves. `accuracy` is balanced
    over held-out faces with and without it, None where either is missing.
    """

    name: str
    scale: float
    num_positives: int
    num_negatives: int
    accuracy: float | None

    def __post_init__(self) -> None:
        """Refuse what a damaged file may hold."""
        counts, figures = (self.num_positives, self.num_negatives), (self.scale, self.accuracy or 0)
        if not (
            isinstance(self.name, str)
            and all(type(count) is int and count >= 0 for count in counts)
            and all(type(figure) in (int, float) and math.isfinite(figure) for figure in figures)
        ):
            msg = f"attribute {self.name}: needs a name, a scale, two counts and an accuracy"
            raise ValueError(msg)


@dataclass(frozen=True)
class Labels:
    """A table of labels: `values` (N, A) hold 1 (has it), -1 (has it not) or 0 (not known)."""

    stems: list[str]
    names: list[str]
    values: npt.NDArray[np.int8]
    ignored: list[str]
    """Columns that are not yes-or-no, and so are left out."""

    @property
    def fingerprint(self) -> str:
        """The same for the same labels, wherever they are kept."""
        parts = ("\n".join(self.stems), "\n".join(self.names), self.values.tobytes())
        return digest(*parts)[:16]

    def rows_for(self, stems: Sequence[str]) -> npt.NDArray[np.int8]:
        """The labels of faces with these stems, (M, A); all 0 where the table has none."""
        row_of = {stem: row for row, stem in enumerate(self.stems)}
        padded = np.vstack([self.values, np.zeros((1, len(self.names)), np.int8)])
        return padded[[row_of.get(stem, len(self.stems)) for stem in stems]]


def read_labels(path: Path) -> Labels:
    """Read a CelebA list (count, header, then `name -1 1 …`) or a CSV with a header and a name column.

    In a CSV the name column is called name, file, filename, image, image_id, path or id, or is the
    first; values are 1/0, 1/-1, true/false or yes/no, and an empty one is not known. Raises
    `DataError` with the line at fault.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read as labels ({error})"
        raise DataError(msg) from error
    lines = text.splitlines()
    if lines and lines[0].strip().isdigit():
        labels = _read_celeba(path, lines)
    else:
        labels = _read_csv(path, lines)
    if not labels.names or not labels.stems:
        msg = f"{path}: no yes-or-no labels in there; need a header and one row a picture"
        raise DataError(msg)
    return labels


def read_table_labels(files: Sequence[File]) -> Labels:
    """The yes-or-no columns of tables of pictures: truth values, 1/0 or 1/-1; null is not known.

    Raises `DataError` where there are none.
    """
    tables = [(row_names(file), read_marks(file)) for file in files]
    columns = list(dict.fromkeys(name for _, marks in tables for name in marks))
    names, parts, ignored = [], [], []
    for column in columns:
        found = [_column_of(rows, marks.get(column, Marks([], _NONE))) for rows, marks in tables]
        known = [part for part in found if part is not None]
        if len(known) < len(found):
            ignored.append(column)
        else:
            names.append(column)
            parts.append(np.concatenate(known))
    stems = [PurePosixPath(name).stem for rows, _ in tables for name in rows]
    if not names:
        msg = f"{files[0]}: no yes-or-no columns in there; name a CSV"
        raise DataError(msg)
    return Labels(stems, names, np.stack(parts, axis=1), ignored)


_NONE = np.empty(0, np.int64)


def _column_of(rows: Sequence[str], marks: Marks | None) -> npt.NDArray[np.int8] | None:
    """A label a row, all 0 for a column that this table lacks; None for what is not yes-or-no."""
    values = [_mark(str(value)) for value in marks.values] if marks else [None]
    if marks is None or None in values:
        return None
    if not len(marks.codes):
        return np.zeros(len(rows), np.int8)
    # a code of -1 takes the last
    return np.array([*values, 0], np.int8)[marks.codes]


def _read_celeba(path: Path, lines: list[str]) -> Labels:
    names = lines[1].split() if len(lines) > 1 else []
    stems, rows = [], []
    for number, line in enumerate(lines[2:], start=3):
        name, *marks = line.split() or [""]
        if not name:
            continue
        if len(marks) != len(names) or not set(marks) <= {"1", "-1", "0"}:
            msg = f"{path}: line {number}: needs a name and {len(names)} labels of 1 or -1"
            raise DataError(msg)
        stems.append(_stem(name))
        rows.append([int(mark) for mark in marks])
    return Labels(stems, names, np.array(rows, np.int8).reshape(len(rows), len(names)), [])


def _read_csv(path: Path, lines: list[str]) -> Labels:
    try:
        dialect = csv.Sniffer().sniff("\n".join(lines[:20]), delimiters=",;\t")
    except csv.Error:
        dialect = csv.excel
    try:
        header, *body = list(csv.reader(lines, dialect)) or [[]]
    except csv.Error as error:
        msg = f"{path}: cannot be read as CSV ({error}); need a header and one row a picture"
        raise DataError(msg) from error
    header = [name.strip() for name in header]
    named = [i for i, name in enumerate(header) if name.casefold() in _NAME_COLUMNS]
    key = named[0] if named else 0
    rows = []
    for number, row in enumerate(body, start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            msg = f"{path}: line {number}: has {len(row)} columns, the header has {len(header)}"
            raise DataError(msg)
        rows.append([cell.strip() for cell in row])
    names, columns, ignored = [], [], []
    for i, name in enumerate(header):
        if i == key:
            continue
        column = [_mark(row[i]) for row in rows]
        if any(mark is None for mark in column):
            ignored.append(name)
        else:
            names.append(name)
            columns.append(column)
    values = np.array(columns, np.int8).reshape(len(names), len(rows)).T
    return Labels([_stem(row[key]) for row in rows], names, values, ignored)


def _mark(cell: str) -> int | None:
    cell = cell.casefold()
    return 0 if not cell else 1 if cell in _YES else -1 if cell in _NO else None


def _stem(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def learn_directions(
    latents: Tensor,
    values: npt.NDArray[np.int8],
    names: Sequence[str],
    held_out: npt.NDArray[np.bool_],
) -> tuple[list[Attribute], Tensor]:
    """Mean of positives minus mean of negatives, for all attributes in one pass.

    `latents` are posterior means (N, D), `values` the labels (N, A), `held_out` (N,) marks faces
    that only measure accuracy. α = 1 along a direction carries the average face without the
    attribute to the average face with it. Attributes that no face has, or all have, are left out.
    Returns the attributes and their directions (A, D). Panguluri & Kamarajugadda 2020, section 3.
    """
    marks = torch.from_numpy(values.astype(np.float32)).to(latents)
    training = torch.from_numpy(~held_out).to(latents)[:, None]
    positives, negatives = (marks > 0) * training, (marks < 0) * training
    num_positives, num_negatives = positives.sum(0), negatives.sum(0)
    mean_positive = positives.T.to(latents) @ latents / num_positives.clamp_min(1)[:, None]
    mean_negative = negatives.T.to(latents) @ latents / num_negatives.clamp_min(1)[:, None]
    directions = mean_positive - mean_negative
    # a face counts as having the attribute beyond the middle between the two means
    middles = ((mean_positive + mean_negative) / 2 * directions).sum(1)
    scores = latents @ directions.T - middles
    known = torch.from_numpy(held_out).to(latents)[:, None].bool()
    found = [i for i in range(len(names)) if num_positives[i] > 0 and num_negatives[i] > 0]
    attributes = [
        Attribute(
            names[i],
            float(directions[i].norm()),
            int(num_positives[i]),
            int(num_negatives[i]),
            _balanced_accuracy(scores[:, i], marks[:, i] * known[:, 0]),
        )
        for i in found
    ]
    return attributes, directions[found]


def _balanced_accuracy(scores: Tensor, marks: Tensor) -> float | None:
    positive, negative = scores[marks > 0], scores[marks < 0]
    if not len(positive) or not len(negative):
        return None
    return float(((positive > 0).float().mean() + (negative <= 0).float().mean()) / 2)


def match_attribute(wanted: str, names: Sequence[str]) -> tuple[int, int]:
    """Which of `names` is meant, and which way (1 or -1): `glasses`, `Eyeglasses`, `beard`.

    Case, spaces and underscores do not count; everyday words and unique parts will do. Raises
    `UsageError` that lists what there is, and the nearest.
    """
    plain = {_plain(name): i for i, name in enumerate(names)}
    key, sign = _ALIASES.get(_plain(wanted), (_plain(wanted), 1))
    for candidate, direction in ((_plain(wanted), 1), (key, sign)):
        if candidate in plain:
            return plain[candidate], direction
    partial: list[int] = []
    for candidate, direction in ((key, sign), (_plain(wanted), 1)):
        partial = [i for name, i in plain.items() if candidate and candidate in name]
        if len(partial) == 1:
            return partial[0], direction
    if not names:
        msg = f"--attr {wanted}: this model knows no attributes; train one with --labels"
        raise UsageError(msg)
    options = [names[i] for i in partial] or [
        names[plain[n]] for n in difflib.get_close_matches(key, plain, n=3, cutoff=0.5)
    ]
    nearest = f"did you mean {' or '.join(options)}? " if options else ""
    msg = f"--attr {wanted}: {nearest}this model knows {', '.join(names)}"
    raise UsageError(msg)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
