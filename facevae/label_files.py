"""Tables of what faces have, in the formats people keep them in."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from facevae.errors import DataError
from facevae.images import SUFFIXES
from facevae.labels import Labels, Values
from facevae.tables import File, Marks, read_marks, row_names

_YES = frozenset(("1", "1.0", "+1", "true", "yes", "y", "t"))
_NO = frozenset(("0", "0.0", "-1", "-1.0", "false", "no", "n", "f"))
_LARGEST = float(np.finfo(np.float32).max)
_NAME_COLUMNS = ("name", "file", "filename", "file_name", "image", "image_id", "path", "id")


def read_labels(path: Path) -> Labels:
    """Read a CelebA list, a CSV, or a folder of FFHQ's published features.

    A CelebA list is a count, a header, then `name -1 1 …`. A CSV has a header and a column called
    name, file, filename, image, image_id, path or id, or else its first, with names; values are
    1/0, 1/-1, true/false or yes/no, or numbers of any kind, and an empty one is not known. A folder
    holds a `.json` for each picture. Raises `DataError` with the line or file at fault.
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
        msg = f"{path}: no labels in there; need a header and one row a picture"
        raise DataError(msg)
    _check_rows(path, labels)
    return labels


def _check_rows(path: Path, labels: Labels) -> None:
    """Raise `DataError` where two rows are of one name and say different things of it."""
    values = dict(zip(labels.stems, labels.values, strict=True))
    if len(values) == len(labels.stems):  # as it is of 200,000 faces, which would take seconds
        return
    for stem, row in zip(labels.stems, labels.values, strict=True):
        if not np.array_equal(row, values[stem], equal_nan=True):
            msg = f"{path}: two rows for {stem} differ; give each picture one row and a name of its own"
            raise DataError(msg)


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
    return Labels(stems, names, np.stack(parts, axis=1), ignored=tuple(ignored))


_NONE = np.empty(0, np.int64)


def _column_of(rows: Sequence[str], marks: Marks | None) -> Values | None:
    """A label a row, NaN for a column that this table lacks; None for what is not yes-or-no."""
    values = [_mark(str(value)) for value in marks.values] if marks else [None]
    known = [value for value in values if value is not None]
    if marks is None or len(known) < len(values):
        return None
    if not len(marks.codes):
        return np.full(len(rows), np.nan, np.float32)
    # a code of -1 takes the last
    labels: Values = np.array([*known, np.nan], np.float32)[marks.codes]
    return labels


# ---------------------------------------------------------------- CelebA's list, CSV


def _read_celeba(path: Path, lines: list[str]) -> Labels:
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


_CELEBA = {"1": 1.0, "-1": 0.0, "0": np.nan}


def _read_csv(path: Path, lines: list[str]) -> Labels:
    header, rows = _csv_table(path, lines)
    _check_names(path, header)
    named = [i for i, name in enumerate(header) if name.casefold() in _NAME_COLUMNS]
    key = named[0] if named else 0
    if header[key:] and Path(header[key]).suffix.lower() in SUFFIXES:
        msg = f"{path}: the first line has '{header[key]}' where a header is needed: one name a column"
        raise DataError(msg)
    columns: dict[str, list[float]] = {}
    continuous, ignored = set(), []
    for i, name in enumerate(header):
        if i == key or not name:  # a data frame's row numbers stand in a column without a name
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
    """Raise `DataError` where two columns have one name."""
    if twice := [name for i, name in enumerate(names) if name and name in names[:i]]:
        msg = f"{path}: the header has {twice[0]} twice; name each attribute once"
        raise DataError(msg)


def _csv_table(path: Path, lines: list[str]) -> tuple[list[str], list[list[str]]]:
    try:
        dialect = csv.Sniffer().sniff("\n".join(lines[:20]), delimiters=",;\t")
    except csv.Error:
        dialect = csv.excel
    try:
        header, *body = list(csv.reader(lines, dialect)) or [[]]
    except csv.Error as error:
        msg = f"{path}: cannot be read as CSV ({error}); need a header and one row a picture"
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
    """The cells as numbers, an empty one as NaN; None if one is something else."""
    parsed = [np.nan if not cell else parse(cell) for cell in cells]
    known = [value for value in parsed if value is not None]
    return known if len(known) == len(parsed) else None


def _mark(cell: str) -> float | None:
    cell = cell.casefold()
    return 1.0 if cell in _YES else 0.0 if cell in _NO else None


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None


def _stem(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


# ---------------------------------------------------------------- FFHQ's features


def _read_features(folder: Path) -> Labels:
    """The JSON files that were published for FFHQ: a list of faces each, of which the first counts."""
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    stems, rows = [], []
    for path in files:
        try:
            faces = json.loads(path.read_text(encoding="utf-8"))
            found = faces[0]["faceAttributes"] if faces else None
            row = [] if found is None else [_feature(read(found)) for read in _FEATURES.values()]
        except _NOT_FEATURES as error:
            msg = f"{path}: not a file of FFHQ's features ({error!r})"
            raise DataError(msg) from error
        if row:
            stems.append(path.stem)
            rows.append(row)
    if not files:
        msg = f"{folder}: no .json files of FFHQ's features in there"
        raise DataError(msg)
    values = np.array(rows, np.float32).reshape(len(rows), len(_FEATURES))
    return Labels(stems, list(_FEATURES), values, _CONTINUOUS)


_NOT_FEATURES = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)


def _feature(value: Any) -> float:
    number = float(value)
    if abs(number) > _LARGEST:
        msg = f"{number} is too large"
        raise ValueError(msg)
    return number


def _wears(kind: str) -> Callable[[Any], bool]:
    return lambda face: any(worn["type"] == kind for worn in face["accessories"])


_FEATURES: dict[str, Callable[[Any], float]] = {
    "Eyeglasses": lambda face: face["glasses"] != "NoGlasses",
    "Sunglasses": lambda face: face["glasses"] == "Sunglasses",
    "Male": lambda face: face["gender"] == "male",
    "Headwear": _wears("headwear"),
    "Eye_Makeup": lambda face: face["makeup"]["eyeMakeup"],
    "Lip_Makeup": lambda face: face["makeup"]["lipMakeup"],
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
_CONTINUOUS = frozenset(list(_FEATURES)[list(_FEATURES).index("Age") :])
