"""Read Parquet and Arrow files with a column of pictures, a few rows at a time.

The layout is that of Hugging Face's `datasets`: a column of structs {bytes, path}. A column of
plain bytes works too. Rows are named by that path, or by a column such as `file_name`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from facevae.data.hub_files import HubFile
from facevae.errors import DataError

SUFFIXES = frozenset((".parquet", ".arrow"))
File = Path | HubFile
Row = tuple[int, bytes | str]
"""The row number, and the bytes of the picture or the reason (`str`) why there are none."""

_PICTURE_COLUMNS = ("image", "img", "picture", "photo", "face", "jpg", "png")
_NAME_COLUMNS = ("file_name", "filename", "name", "image_id", "id", "__key__")
_ROWS_PER_BATCH = 16  # about 25 MB of PNG files of 1024 px
_NAMES_PER_BATCH = 1 << 16
_NAMES_READ_AHEAD, _PICTURES_READ_AHEAD = 1 << 16, 1 << 23  # bytes fetched ahead from the Hub
_MAX_MARKS = 3  # yes, no and unknown
_BUFFER_BYTES = 1 << 20  # of a column, read ahead; without a buffer it is the whole row group


class NoPictures(DataError):
    """A table without a column of pictures."""


@dataclass(frozen=True)
class _Column:
    """The column of pictures, and the column of names, if there is one."""

    pictures: str
    is_struct: bool
    names: str | None
    names_in_struct: bool

    @property
    def picture_leaf(self) -> str:
        return f"{self.pictures}.bytes" if self.is_struct else self.pictures


def row_names(file: File) -> list[str]:
    """A name for each row, without reading the pictures. Raises `DataError`.

    A row without a name gets a number, and so do all rows if at most half of the names have
    distinct stems.
    """
    with _opened(file, _NAMES_READ_AHEAD) as table:
        column = _find_column(file, table.schema)
        names: list[str | None] = []
        for group, (first, last) in enumerate(table.groups()):
            group_names = _group_names(table, group, column)
            is_complete = len(group_names) == last - first
            names += group_names if is_complete else [None] * (last - first)
    given = [name for name in names if name]
    if 2 * len({PurePosixPath(name).stem for name in given}) <= len(given):
        names = [None] * len(names)
    # a dot in the stem would be taken for the beginning of a suffix
    stem = PurePosixPath(file.name).stem.replace(".", "-")
    return [name or f"{stem}-{row:06}" for row, name in enumerate(names)]


def _group_names(table: "_Parquet | _Arrow", group: int, column: _Column) -> list[str | None]:
    """The names in a row group; an empty list if the table has none or they are damaged."""
    import pyarrow as pa

    if column.names is None:
        return []
    names: list[str | None] = []
    leaf = f"{column.names}.path" if column.names_in_struct else column.names
    try:
        for batch in table.batches(group, leaf, _NAMES_PER_BATCH):
            values = _field(batch.column(0), "path" if column.names_in_struct else None)
            values.validate(full=True)
            names += values.to_pylist()
    except (pa.ArrowException, OSError):
        return []
    return names


@dataclass(frozen=True)
class Marks:
    """A column with few distinct values: row i has `values[codes[i]]`, or no value for code -1."""

    values: list[bool | int]
    codes: npt.NDArray[np.int64]


def read_marks(file: File) -> dict[str, Marks | None]:
    """Read the boolean and integer columns by name; None for those with too many distinct values.

    Raises `DataError`.
    """
    import pyarrow as pa

    with _opened(file, _NAMES_READ_AHEAD) as table:
        kinds = {field.name: field.type for field in table.schema}
        names = [n for n, kind in kinds.items() if pa.types.is_boolean(kind) or _is_integer(kind)]
        columns = table.read(names)
    found: dict[str, Marks | None] = {}
    for name in names:
        encoded = columns[name].combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        is_few = len(encoded.dictionary) <= _MAX_MARKS
        found[name] = Marks(encoded.dictionary.to_pylist(), codes) if is_few else None
    return found


def read_rows(file: File, rows: Sequence[int]) -> Iterator[list[Row]]:
    """Read the pictures of these rows (ascending), some at a time. Raises `DataError`.

    Row groups without any of the rows are not read. In a damaged row group, the rows that cannot
    be read come with the reason instead of their bytes.
    """
    rows_wanted = np.asarray(rows)
    with _opened(file, _PICTURES_READ_AHEAD) as table:
        column = _find_column(file, table.schema)
        for group, (first, last) in enumerate(table.groups()):
            in_group = rows_wanted[(rows_wanted >= first) & (rows_wanted < last)]
            if len(in_group):
                yield from _read_group(table, group, first, in_group.tolist(), column)


def _read_group(
    table: "_Parquet | _Arrow", group: int, first: int, rows: list[int], column: _Column
) -> Iterator[list[Row]]:
    import pyarrow as pa

    done, start = 0, first
    try:
        for batch in table.batches(group, column.picture_leaf, _ROWS_PER_BATCH):
            values = _field(batch.column(0), "bytes" if column.is_struct else None)
            values.validate(full=True)
            part: list[Row] = []
            while done < len(rows) and rows[done] < start + len(values):
                data = values[rows[done] - start].as_py()
                part.append((rows[done], data or "no bytes in this row"))
                done += 1
            start += len(values)
            if part:
                yield part
            if done == len(rows):
                return
        reason = "the row is missing"
    except (pa.ArrowException, OSError) as error:
        reason = f"damaged ({_first_line(error)})"
    yield [(row, reason) for row in rows[done:]]


# ---------------------------------------------------------------- columns


def _find_column(file: File, schema: Any) -> _Column:
    """Find the column of pictures: one that `datasets` declares an Image, else by type and name.

    Raises `NoPictures`.
    """
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def has_field(kind: Any, name: str, test: Callable[[Any], bool]) -> bool:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return False
        return test(kind.field(name).type)

    fields = {f.name: f.type for f in schema}
    found = [
        name
        for name, kind in fields.items()
        if is_bytes(kind) or has_field(kind, "bytes", is_bytes)
    ]
    declared = _declared_images(schema)
    found = [name for name in found if name in declared] or found
    if not found:
        columns = ", ".join(f"{name} ({kind})" for name, kind in [*fields.items()][:12])
        msg = f"{file}: no column of pictures in there; its columns are {columns or 'none'}"
        raise NoPictures(msg)
    by_name = {name.casefold(): name for name in reversed(found)}
    chosen = next((by_name[name] for name in _PICTURE_COLUMNS if name in by_name), found[0])
    kind = fields[chosen]
    is_struct = pa.types.is_struct(kind)
    if has_field(kind, "path", _is_text):
        return _Column(chosen, is_struct, chosen, names_in_struct=True)
    texts = {name.casefold(): name for name, kind in fields.items() if _is_text(kind)}
    names = next((texts[name] for name in _NAME_COLUMNS if name in texts), None)
    return _Column(chosen, is_struct, names, names_in_struct=False)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_integer(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _declared_images(schema: Any) -> set[str]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name for name, kind in features.items() if kind["_type"] == "Image"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return set()


def _field(values: Any, name: str | None) -> Any:
    """Field `name` of structs, null where the struct is null; the values if `name` is None."""
    import pyarrow.compute as pc

    return values if name is None else pc.struct_field(values, name)


# ---------------------------------------------------------------- the two formats


class _Parquet:
    """A Parquet file, read by row groups."""

    def __init__(self, source: Any) -> None:
        import pyarrow.parquet as pq

        self.file = pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        self.schema = self.file.schema_arrow

    def groups(self) -> list[tuple[int, int]]:
        metadata = self.file.metadata
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        ends = np.cumsum([0, *counts]).tolist()
        return list(pairwise(ends))

    def batches(self, group: int, leaf: str, batch_size: int) -> Iterator[Any]:
        yield from self.file.iter_batches(batch_size, row_groups=[group], columns=[leaf])

    def read(self, columns: list[str]) -> Any:
        return self.file.read(columns=columns)


class _Arrow:
    """An Arrow stream or file, mapped from the disk; its groups are its record batches."""

    def __init__(self, source: Any) -> None:
        import pyarrow as pa

        try:
            reader = pa.ipc.open_stream(source)
            self._batches = list(reader)
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for batch in self._batches:
            batch.validate()  # a damaged length would crash the process
        self.schema = reader.schema

    def groups(self) -> list[tuple[int, int]]:
        ends = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        return list(pairwise(ends))

    def batches(self, group: int, leaf: str, batch_size: int) -> Iterator[Any]:
        struct = leaf.removesuffix(".bytes").removesuffix(".path")
        batch = self._batches[group].select([leaf if leaf in self.schema.names else struct])
        for start in range(0, batch.num_rows, batch_size):
            yield batch.slice(start, batch_size)

    def read(self, columns: list[str]) -> Any:
        import pyarrow as pa

        return pa.Table.from_batches(self._batches, self.schema).select(columns)


@contextmanager
def _opened(file: File, read_ahead: int) -> Iterator[_Parquet | _Arrow]:
    try:
        import pyarrow as pa
    except ImportError as error:
        msg = f"{file}: Parquet and Arrow need the extra 'parquet': pip install 'facevae[parquet]'"
        raise DataError(msg) from error
    is_arrow = isinstance(file, Path) and file.suffix.lower() == ".arrow"
    try:
        with _source(file, read_ahead, is_arrow=is_arrow) as source:
            table = _Arrow(source) if is_arrow else _Parquet(source)
            names = table.schema.names
            if repeated := [name for name in names if names.count(name) > 1]:
                msg = (
                    f"{file}: several of its columns are called '{repeated[0]}'; rename all but one"
                )
                raise DataError(msg)
            yield table
    except (pa.ArrowException, OSError) as error:
        msg = f"{file}: cannot be read as a table ({_first_line(error)})"
        raise DataError(msg) from error


def _source(file: File, read_ahead: int, *, is_arrow: bool) -> AbstractContextManager[Any]:
    import pyarrow as pa

    if isinstance(file, HubFile):
        return file.open(read_ahead)
    if is_arrow and file.stat().st_size:
        return pa.memory_map(str(file))  # type: ignore[no-any-return]
    return pa.OSFile(str(file))  # type: ignore[no-any-return]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
