"""Tables of pictures: which column, which names, and rows without the rest of the file."""

import io
import json
import sys

import numpy as np
import pytest
from conftest import draw_face
from PIL import Image

from facevae.data import dataset, pictures
from facevae.data.label_files import read_table_labels
from facevae.data.tables import NoPictures, read_marks, read_rows, row_names
from facevae.errors import DataError
from facevae.models.bundle import load as load_model

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def picture(seed, size=32):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(i) for i in range(48)]


def structs(pictures=PICTURES, name="{:03}.png"):
    return [{"bytes": p, "path": name.format(i) if name else None} for i, p in enumerate(pictures)]


def features(**kinds):
    info = {"info": {"features": {name: {"_type": kind} for name, kind in kinds.items()}}}
    return {"huggingface": json.dumps(info)}


def write(path, columns, *, rows=10, metadata=None):
    """Write a table in the format of the suffix, in groups of `rows` rows."""
    table = pa.table(columns).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    else:
        new = pa.ipc.new_file if path.name.startswith("file") else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


KINDS = ["a.parquet", "stream.arrow", "file.arrow"]


@pytest.fixture(params=KINDS)
def path(request, tmp_path):
    return tmp_path / request.param


def read(path, rows):
    return [row for part in read_rows(path, rows) for row in part]


def test_all_rows_or_some_come_in_order_with_their_own_pictures(path):
    write(path, {"image": structs(), "label": list(range(48))})
    for rows in (range(48), [0], [47], [9, 10, 11, 29, 30], []):
        assert read(path, list(rows)) == [(row, PICTURES[row]) for row in rows]


def test_a_group_is_read_in_parts_however_large_it_is(path):
    write(path, {"image": structs()}, rows=48)
    assert max(len(part) for part in read_rows(path, range(48))) <= 16


def test_groups_without_a_row_that_is_wanted_are_not_read(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": structs()})
    blind(path, group=1)
    assert list(read_rows(path, [5, 25])) == [[(5, PICTURES[5])], [(25, PICTURES[25])]]


def blind(path, group, column=0):
    """Damage a column in one row group; column 0 has the pictures."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    raw = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    raw[start : start + 200] = b"\xff" * 200
    path.write_bytes(raw)


def test_damage_in_a_group_costs_its_rows_alone(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": structs()})
    blind(path, group=1)
    found = dict(read(path, range(48)))
    assert {row for row, value in found.items() if isinstance(value, str)} == set(range(10, 20))
    assert found[10].startswith("damaged (")
    assert found[20] == PICTURES[20]


def test_rows_without_bytes_say_so_and_no_path_is_followed(path, tmp_path):
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    rows = structs()
    rows[3] = None
    rows[4] = {"bytes": None, "path": str(tmp_path / "secret.png")}
    rows[5] = {"bytes": b"", "path": "5.png"}
    write(path, {"image": rows})
    assert read(path, [2, 3, 4, 5]) == [
        (2, PICTURES[2]),
        *((row, "no bytes in this row") for row in (3, 4, 5)),
    ]


# ---------------------------------------------------------------- columns and names


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_will_do(path, kind):
    write(path, {"id": list(range(48)), "png": pa.array(PICTURES, kind)})
    assert read(path, [7]) == [(7, PICTURES[7])]
    assert row_names(path)[7] == f"{path.stem}-000007"


def test_of_several_columns_the_declared_one_is_taken_then_one_that_is_called_so(tmp_path):
    columns = {"thumb": [b"no"] * 48, "image": [b"nor this"] * 48, "Photo": PICTURES}
    path = write(tmp_path / "a.parquet", columns, metadata=features(Photo="Image", image="Value"))
    assert read(path, [1]) == [(1, PICTURES[1])]
    path = write(tmp_path / "b.parquet", columns, metadata={"huggingface": "{"})
    assert read(path, [1]) == [(1, b"nor this")]


def test_rows_are_called_by_their_path_or_by_a_column_of_names(tmp_path):
    names = [f"deep/{i:03}.png" for i in range(48)]
    path = write(tmp_path / "a.parquet", {"image": structs(name="deep/{:03}.png")})
    assert row_names(path) == names
    path = write(
        tmp_path / "b.parquet", {"image": PICTURES, "text": ["x"] * 48, "file_name": names}
    )
    assert row_names(path) == names


@pytest.mark.parametrize("name", [None, "image.png"])
def test_rows_that_are_all_called_alike_are_numbered(path, name):
    write(path, {"image": structs(name=name)})
    names = row_names(path)
    assert names[5] == f"{path.stem}-000005"
    assert len(set(names)) == 48


def test_a_row_without_a_name_is_numbered_among_the_others(tmp_path):
    rows = structs()
    rows[5], rows[6] = None, {"bytes": PICTURES[6], "path": None}
    path = write(tmp_path / "faces.v2.parquet", {"image": rows})
    assert row_names(path)[4:8] == ["004.png", "faces-v2-000005", "faces-v2-000006", "007.png"]


def test_names_that_are_damaged_are_numbers(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": structs()})
    blind(path, group=1, column=1)
    names = row_names(path)
    assert names[:10] + names[20:] == [f"{i:03}.png" for i in (*range(10), *range(20, 48))]
    assert names[10:20] == [f"a-{i:06}" for i in range(10, 20)]
    assert read(path, [12]) == [(12, PICTURES[12])]


@pytest.mark.parametrize("columns", [{}, {"text": ["a"], "n": [1], "s": [{"path": "a"}]}])
def test_a_table_of_other_things_is_refused_by_its_columns(path, columns):
    write(path, columns)
    named = r"text \(string\), n \(int64\)" if columns else "none"
    with pytest.raises(NoPictures, match=f"no column of pictures.*its columns are {named}"):
        row_names(path)


def test_columns_that_cannot_be_told_apart_are_named(path):
    table = pa.table([structs(), [True] * 48, [False] * 48], names=["image", "Male", "Male"])
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    for reader in (row_names, read_marks):
        with pytest.raises(DataError, match="several of its columns are called 'Male'"):
            reader(path)


@pytest.mark.parametrize("content", [b"", b"text", b"PAR1" * 9, None])
def test_what_is_no_table_is_named(path, content):
    if content is not None:
        path.write_bytes(content)
    else:
        write(path, {"image": structs()})
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=f"{path.name}: "):
        row_names(path)


def test_without_the_extra_it_says_how_to_get_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"image": structs()})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"a\.parquet: .*pip install 'facevae\[parquet\]'"):
        row_names(path)


# ---------------------------------------------------------------- as training data


def load(tmp_path, *sources, progress=lambda *_: None, cache="cache"):
    return dataset.load_faces(list(sources), 32, cache=tmp_path / cache, progress=progress)


def test_a_folder_and_tables_of_the_same_pictures_are_the_same_data(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for i, content in enumerate(PICTURES):
        (folder / f"{i:03}.png").write_bytes(content)
    half = structs()
    write(tmp_path / "shards" / "train-0.parquet", {"image": half[24:][::-1]}, rows=7)
    write(tmp_path / "shards" / "more" / "data.arrow", {"image": half[:24]}, rows=7)
    write(tmp_path / "shards" / "metadata.parquet", {"file_name": ["a.png"], "text": ["b"]})
    expected, found = load(tmp_path, folder), load(tmp_path, tmp_path / "shards")
    assert (found.stems, found.fingerprint) == (expected.stems, expected.fingerprint)
    assert found.held_out.tolist() == expected.held_out.tolist()
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.skipped == []


def test_rows_that_cannot_be_read_are_counted_and_named(tmp_path):
    rows = structs()
    rows[3]["bytes"] = b"no picture"
    rows[4]["bytes"] = None
    rows[33]["bytes"] = PICTURES[33][:100]
    path = write(tmp_path / "a.parquet", {"image": rows})
    blind(path, group=1)
    faces = load(tmp_path, path)
    assert len(faces.train) + len(faces.held_out) == 48 - 13
    named = [reason.split(": ")[0] for reason in faces.skipped]
    assert named == [f"{path}:{i:03}.png" for i in (3, 4, *range(10, 20), 33)]


def test_an_interrupted_conversion_goes_on_without_reading_what_is_done(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"image": structs()})
    whole = load(tmp_path, path, cache="other")

    class Stopped(Exception):
        pass

    def stop(_task, done, _total):
        if done >= 20:
            raise Stopped

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(Stopped):
        load(tmp_path, path, progress=stop)
    asked = []
    monkeypatch.setattr(
        pictures, "read_rows", lambda file, rows: asked.extend(rows) or read_rows(file, rows)
    )
    again = load(tmp_path, path)
    assert asked == list(range(20, 48))
    np.testing.assert_array_equal(again.pixels, whole.pixels)
    assert again.fingerprint == whole.fingerprint


def test_no_more_is_read_than_will_soon_be_converted(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"image": structs()}, rows=1)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    taken, ahead = [], []

    def counted(file, rows):
        for part in read_rows(file, rows):
            taken.append(len(part))
            yield part

    monkeypatch.setattr(pictures, "read_rows", counted)
    load(tmp_path, path, progress=lambda _task, done, _total: ahead.append(sum(taken) - done))
    assert 0 <= max(ahead) <= 3


def test_a_table_of_other_things_beside_pictures_is_passed_over_and_alone_refused(tmp_path):
    write(tmp_path / "faces" / "extra.parquet", {"text": ["a"]})
    with pytest.raises(DataError, match=r"extra\.parquet: no column of pictures"):
        load(tmp_path, tmp_path / "faces")
    write(tmp_path / "faces" / "faces.parquet", {"image": structs()})
    faces = load(tmp_path, tmp_path / "faces")
    assert len(faces.train) + len(faces.held_out) == 48


# ---------------------------------------------------------------- labels


def test_columns_of_yes_and_no_are_labels(path):
    glasses = [i % 2 == 0 for i in range(48)]
    columns = {
        "image": structs(),
        "Glasses": [None, *glasses[1:]],
        "Smiling": [1 if i % 3 else -1 for i in range(48)],
        "Male": pa.array([i % 2 for i in range(48)], pa.int8()),
        "age": list(range(48)),
        "text": ["x"] * 48,
    }
    write(path, columns)
    labels = read_table_labels([path])
    assert (labels.names, labels.ignored) == (["Glasses", "Smiling", "Male"], ("age",))
    assert labels.stems == [f"{i:03}" for i in range(48)]
    expected = [[np.nan, 0, 0], [0, 1, 1], [1, 1, 0], [np.nan] * 3]
    np.testing.assert_equal(labels.rows_for(["000", "001", "002", "nobody"]), np.float32(expected))


def test_a_column_that_one_of_the_tables_lacks_is_unknown_there(tmp_path):
    a = write(tmp_path / "a.parquet", {"image": structs()[:2], "Male": [True, False]})
    b = write(tmp_path / "b.parquet", {"image": structs()[2:4][::-1] * 2, "Old": [1, 0, 1, 0]})
    labels = read_table_labels([a, b])
    assert labels.names == ["Male", "Old"]
    unknown = np.nan
    expected = [[1, unknown], [0, unknown], *([unknown, 1], [unknown, 0]) * 2]
    np.testing.assert_equal(labels.values, np.float32(expected))


def test_without_such_columns_it_is_an_error(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": structs(), "age": list(range(48))})
    assert read_marks(path) == {"age": None}
    with pytest.raises(DataError, match=r"a\.parquet: no yes-or-no columns"):
        read_table_labels([path])


def test_a_model_learns_attributes_from_the_columns_of_its_own_data(facevae, tmp_path):
    def png(seed):
        file = io.BytesIO()
        draw_face(seed, glasses=seed % 2 == 0).save(file, "PNG")
        return file.getvalue()

    rows = structs([png(i) for i in range(40)])
    write(tmp_path / "celeb.parquet", {"image": rows, "Glasses": [i % 2 == 0 for i in range(40)]})
    tiny = ("--size", 32, "--latent-dim", 4, "--batch-size", 16, "--epochs", 1, "--prior", "normal")
    done = facevae("train", "celeb.parquet", *tiny, "--labels", "celeb.parquet")
    assert done.stdout == "runs/celeb-base/model.safetensors\n"
    assert "40 faces are labelled" in done.stderr
    model = load_model(tmp_path / done.stdout.strip())
    assert [attribute.name for attribute in model.attributes] == ["Glasses"]
    assert model.provenance["sources"] == ["celeb.parquet"]
