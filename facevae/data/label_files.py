"""Readers of label files: CelebA lists, CSV, FFHQ's features, and columns of data set tables."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from facevae.data.images import SUFFIXES
from facevae.data.labels import Labels, Values
from facevae.data.tables import File, Marks, read_marks, row_names
from facevae.errors import DataError

_YES = frozenset(("1", "1.0", "+1", "true", "yes", "y", "t"))
_NO = frozenset(("0", "0.0", "-1", "-1.0", "false", "no", "n", "f"))
_LARGEST = float(np.finfo(np.float32).max)
_NAME_COLUMNS = ("name", "file", "filename", "file_name", "image", "image_id", "path", "id")
_CELEBA = {"1": 1.0, "-1": 0.0, "0": np.nan}
_NO_CODES = np.empty(0, np.int64)
# attributes of FFHQ's features, each read from a face's `faceAttributes`
_FFHQ_MARKS: dict[str, Callable[[Any], float]] = {
    "Eyeglasses": lambda face: face["glasses"] != "NoGlasses",
    "Sunglasses": lambda face: face["glasses"] == "Sunglasses",
    "Male": lambda face: face["gender"] == "male",
    "Headwear": lambda face: any(worn["type"] == "headwear" for worn in face["accessories"]),
    "Eye_Makeup": lambda face: face["makeup"]["eyeMakeup"],
    "Lip_Makeup": lambda face: face["makeup"]["lipMakeup"],
}
_FFHQ_NUMBERS: dict[str, Callable[[Any], float]] = {
    "Age": lambda face: face["age"],
    "Smile": lambda face: face["smile"],
    "Beard": lambda face: face["facialHair"]["beard"],
    "Moustache": lambda face: face["facialHair"]["moustache"],
    "Sideburns": lambda face: face["facialHair"]["sideburns"],
    "Bald": lambda face: face["hair"]["bald"],
    "Yaw": lambda face: face["headPose"]["yaw"],
    "Pitch": lambda face: face["headPose"]["pitch"],
    "Roll": lambda face: face["headPose"]["roll"],
}
_FFHQ_FEATURES = _FFHQ_MARKS | _FFHQ_NUMBERS
# what reading a malformed file of features may raise
_FEATURE_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


def read_labels(path: Path) -> Labels:
    """Labels from a CelebA list, a CSV, or a folder of FFHQ's published features.

    A CelebA list is a count, a header, then lines `name -1 1 …`, where 0 means unknown. A CSV has a
    header; pictures are named by the first column called name, file, filename, file_name, image,
    image_id, path or id, or else by the first column of all. Its values are 1/0, 1/-1, true/false
    or yes/no, or any numbers; an empty cell means unknown. A folder holds one `.json` file for each
    picture. Raises `DataError`, which names the line or file.
    """
    if path.is_dir():
        labels = _read_features(path)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            msg = f"{path}: cannot be read as labels ({reason})"
            raise DataError(msg) from error
        lines = text.splitlines()
        is_list = bool(lines) and lines[0].strip().isdigit()
        labels = (_read_celeba if is_list else _read_csv)(path, lines)
    if not labels.names or not labels.stems:
        msg = f"{path}: contains no labels; it needs a header and one row for each picture"
        raise DataError(msg)
    _check_rows(path, labels)
    return labels


def _check_rows(path: Path, labels: Labels) -> None:
    """Raise `DataError` if two rows for the same name differ."""
    values = dict(zip(labels.stems, labels.values, strict=True))
    if len(values) == len(labels.stems):  # the usual case; the loop takes seconds for 200,000 faces
        return
    for stem, row in zip(labels.stems, labels.values, strict=True):
        if not np.array_equal(row, values[stem], equal_nan=True):
            msg = f"{path}: two rows for {stem} differ; give each picture one row and a unique name"
            raise DataError(msg)


def read_table_labels(files: Sequence[File]) -> Labels:
    """Labels from the yes-or-no columns of picture tables: booleans, 1/0 or 1/-1; null is unknown.

    Raises `DataError` if there are no such columns.
    """
    tables = [(row_names(file), read_marks(file)) for file in files]
    columns = list(dict.fromkeys(name for _, marks in tables for name in marks))
    names, parts, ignored = [], [], []
    for column in columns:
        found = [
            _column_of(rows, marks.get(column, Marks([], _NO_CODES))) for rows, marks in tables
        ]
        labels = [part for part in found if part is not None]
        if len(labels) < len(found):
            ignored.append(column)
        else:
            names.append(column)
            parts.append(np.concatenate(labels))
    stems = [PurePosixPath(name).stem for rows, _ in tables for name in rows]
    if not names:
        msg = f"{files[0]}: no yes-or-no columns; name a CSV of labels"
        raise DataError(msg)
    return Labels(stems, names, np.stack(parts, axis=1), ignored=tuple(ignored))


def _column_of(rows: Sequence[str], marks: Marks | None) -> Values | None:
    """Labels (N,) of a table's rows, or None if the column is not yes-or-no.

    All labels are NaN if the table lacks the column, so that `marks` has no codes.
    """
    values = [_mark(str(value)) for value in marks.values] if marks else [None]
    known = [value for value in values if value is not None]
    if marks is None or len(known) < len(values):
        return None
    if not len(marks.codes):
        return np.full(len(rows), np.nan, np.float32)
    # the code -1 stands for null and picks the NaN at the end
    labels: Values = np.array([*known, np.nan], np.float32)[marks.codes]
    return labels


# ---------------------------------------------------------------- CelebA's list, CSV


def _read_celeba(path: Path, lines: list[str]) -> Labels:
    """Labels from the lines of a CelebA list."""
    names = lines[1].split() if len(lines) > 1 else []
    _check_names(path, names)
    stems, rows = [], []
    for number, line in enumerate(lines[2:], start=3):
        name, *marks = line.split() or [""]
        if not name:
            continue
        if len(marks) != len(names) or not set(marks) <= {"1", "-1", "0"}:
            msg = f"{path}: line {number}: needs a name and {len(names)} labels of 1 or -1"
            raise DataError(msg)
        stems.append(_stem(name))
        rows.append([_CELEBA[mark] for mark in marks])
    return Labels(stems, names, np.array(rows, np.float32).reshape(len(rows), len(names)))


def _read_csv(path: Path, lines: list[str]) -> Labels:
    """Labels from the lines of a CSV; columns of neither marks nor numbers are ignored."""
    header, rows = _csv_table(path, lines)
    _check_names(path, header)
    named = [i for i, name in enumerate(header) if name.casefold() in _NAME_COLUMNS]
    key = named[0] if named else 0
    if header[key:] and Path(header[key]).suffix.lower() in SUFFIXES:
        msg = f"{path}: the first line has '{header[key]}' where a header belongs; add a line with the name of each column"
        raise DataError(msg)
    columns: dict[str, list[float]] = {}
    continuous, ignored = set(), []
    for i, name in enumerate(header):
        if i == key or not name:  # data frames write row numbers in a column without a name
            continue
        cells = [row[i] for row in rows]
        if marks := _parsed(cells, _mark):
            columns[name] = marks
        elif numbers := _parsed(cells, _number):
            columns[name] = numbers
            continuous.add(name)
        else:
            ignored.append(name)
    if rows and ignored and not columns:
        cells = [row[header.index(ignored[0])] for row in rows]
        words = [cell for cell in cells if cell and _number(cell) is None]
        odd = next((word for word in words if _mark(word) is None), words[0])
        msg = f"{path}: no column is all yes or no, or all numbers: {ignored[0]} has '{odd[:20]}'"
        raise DataError(msg)
    values = np.array(list(columns.values()), np.float32).reshape(len(columns), len(rows)).T
    stems = [_stem(row[key]) for row in rows]
    return Labels(stems, list(columns), values, frozenset(continuous), tuple(ignored))


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise `DataError` if two columns have the same name."""
    if twice := [name for i, name in enumerate(names) if name and name in names[:i]]:
        msg = f"{path}: the header has {twice[0]} twice; name each attribute once"
        raise DataError(msg)


def _csv_table(path: Path, lines: list[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV, stripped of spaces, without blank rows."""
    try:
        dialect = csv.Sniffer().sniff("\n".join(lines[:20]), delimiters=",;\t")
    except csv.Error:
        dialect = csv.excel
    try:
        header, *body = list(csv.reader(lines, dialect)) or [[]]
    except csv.Error as error:
        msg = f"{path}: cannot be read as CSV ({error}); it needs a header and one row for each picture"
        raise DataError(msg) from error
    rows = []
    for number, row in enumerate(body, start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            msg = f"{path}: line {number}: has {len(row)} columns, the header has {len(header)}"
            raise DataError(msg)
        rows.append([cell.strip() for cell in row])
    return [name.strip() for name in header], rows


def _parsed(cells: list[str], parse: Callable[[str], float | None]) -> list[float] | None:
    """Cells as numbers, NaN for an empty one; None if any cell cannot be parsed."""
    parsed = [np.nan if not cell else parse(cell) for cell in cells]
    known = [value for value in parsed if value is not None]
    return known if len(known) == len(parsed) else None


def _mark(cell: str) -> float | None:
    """1 for yes, 0 for no, None for anything else."""
    cell = cell.casefold()
    return 1.0 if cell in _YES else 0.0 if cell in _NO else None


def _number(cell: str) -> float | None:
    """A finite number within the range of float32, None for anything else."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None


def _stem(name: str) -> str:
    """A picture's name without folders and without the suffix of a picture format."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


# ---------------------------------------------------------------- FFHQ's features


def _read_features(folder: Path) -> Labels:
    """Labels from the JSON files published for FFHQ: each is a list of faces; the first is used."""
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    readers = _FFHQ_FEATURES.values()
    stems, rows = [], []
    for path in files:
        try:
            faces = json.loads(path.read_text(encoding="utf-8"))
            found = faces[0]["faceAttributes"] if faces else None
            row = [] if found is None else [_feature(read(found)) for read in readers]
        except _FEATURE_ERRORS as error:
            msg = f"{path}: not a file of FFHQ's features ({error!r})"
            raise DataError(msg) from error
        if row:
            stems.append(path.stem)
            rows.append(row)
    if not files:
        msg = f"{folder}: no .json files of FFHQ's features in this folder"
        raise DataError(msg)
    values = np.array(rows, np.float32).reshape(len(rows), len(_FFHQ_FEATURES))
    return Labels(stems, list(_FFHQ_FEATURES), values, frozenset(_FFHQ_NUMBERS))


def _feature(value: Any) -> float:
    """The value as a number. Raises `ValueError` if it is out of float32's range."""
    number = float(value)
    if abs(number) > _LARGEST:
        msg = f"{number} is too large"
        raise ValueError(msg)
    return number
