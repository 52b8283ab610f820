"""Labels are read in the formats people have, and what is wrong is named by line or file."""

import json
import re

import numpy as np
import pytest

from facevae.data.label_files import read_labels
from facevae.errors import DataError

CELEBA = """2
Eyeglasses No_Beard
000001.jpg -1  1
000002.jpg  1 -1
"""


def read(tmp_path, content, name="labels.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(path)


def rows_of(labels):
    """The values, with None for what is not known."""
    return [[None if np.isnan(v) else v for v in row] for row in labels.values.tolist()]


# ---------------------------------------------------------------- lists and CSV


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_celeba_list_is_read(tmp_path, bom, newline):
    labels = read(tmp_path, bom + CELEBA.replace("\n", newline).encode(), "list_attr_celeba.txt")
    assert labels.stems == ["000001", "000002"]
    assert labels.names == ["Eyeglasses", "No_Beard"]
    assert rows_of(labels) == [[0, 1], [1, 0]]
    assert labels.values.dtype == np.float32
    assert (labels.ignored, labels.continuous) == ((), frozenset())


def test_nought_in_a_celeba_list_is_not_known(tmp_path):
    assert rows_of(read(tmp_path, "2\nA B\na.jpg 0 1\nb.jpg -1 0\n")) == [[None, 1], [0, None]]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_is_read_with_any_separator(tmp_path, bom, newline, separator):
    text = "image_id,Eyeglasses,Male\na.jpg,1,0\nb.jpg,0,1\nc.jpg,1,1\n"
    content = text.replace(",", separator).replace("\n", newline).encode()
    labels = read(tmp_path, bom + content)
    assert labels.stems == ["a", "b", "c"]
    assert labels.names == ["Eyeglasses", "Male"]
    assert rows_of(labels) == [[1, 0], [0, 1], [1, 1]]


def test_one_attribute_is_enough(labels_file):
    labels = read_labels(labels_file)
    assert labels.names == ["Eyeglasses"]
    assert labels.stems == [f"{i:03}" for i in range(48)]
    assert labels.values[:, 0].tolist() == [1, 0] * 24


@pytest.mark.parametrize(
    ("yes", "no"),
    [("1", "0"), ("1", "-1"), ("1.0", "0.0"), ("True", "False"), ("YES", "no"), ("y", "N")],
)
def test_yes_and_no_may_be_spelled_as_people_do(tmp_path, yes, no):
    labels = read(tmp_path, f"name,A,B\na.png,{yes},{no}\nb.png, {no} , {yes} \n")
    assert rows_of(labels) == [[1, 0], [0, 1]]
    assert not labels.is_continuous.any()


def test_rows_of_one_name_that_differ_are_refused(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("file,Smiling,Male\na/1.png,1,0\n2.png,1,1\nb/1.png,1,1\n")
    with pytest.raises(DataError, match=r"labels\.csv: two rows for 1 differ"):
        read_labels(path)
    path.write_text("file,Smiling,Male\n1.png,1,\n2.png,1,1\n1.png,1,\n")
    assert read_labels(path).rows_for(["1"])[0, 0] == 1


def test_an_empty_value_is_not_known(tmp_path):
    labels = read(tmp_path, "name,A,B,C\na.png,,1,2.5\nb.png,0,,\n")
    assert rows_of(labels) == [[None, 1, 2.5], [0, None, None]]


@pytest.mark.parametrize(
    "header", ["name", "File", "filename", "image", "IMAGE_ID", "path", "id", "file_name"]
)
def test_the_name_column_may_stand_anywhere(tmp_path, header):
    labels = read(tmp_path, f"Male,{header},Young\n1,a.png,0\n0,b.png,1\n")
    assert labels.stems == ["a", "b"]
    assert labels.names == ["Male", "Young"]
    assert rows_of(labels) == [[1, 0], [0, 1]]


def test_without_a_known_name_column_the_first_is_it(tmp_path):
    labels = read(tmp_path, "picture,Male\na.png,1\nb.png,0\n")
    assert labels.stems == ["a", "b"]
    assert labels.names == ["Male"]


def test_a_column_of_numbers_is_continuous_and_one_of_words_is_left_out_and_named(tmp_path):
    labels = read(tmp_path, "name,age,Male,note\na.png,34,1,tall\nb.png,1,0,\nc.png,-2.5e1,1,x\n")
    assert labels.names == ["age", "Male"]
    assert labels.continuous == {"age"}
    assert labels.is_continuous.tolist() == [True, False]
    assert labels.ignored == ("note",)
    assert rows_of(labels) == [[34, 1], [1, 0], [-25, 1]]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e39", "12 years", "0x10"])
def test_a_column_with_what_is_no_number_is_left_out(tmp_path, value):
    labels = read(tmp_path, f"name,age,Male\na.png,34,1\nb.png,{value},0\n")
    assert labels.names == ["Male"]
    assert labels.ignored == ("age",)


def test_a_column_without_a_name_is_left_out(tmp_path):
    """Spreadsheets and data frames write the row's number so."""
    labels = read(tmp_path, ",name,Male\n0,a.png,1\n1,b.png,0\n2,c.png,0\n")
    assert labels.stems == ["a", "b", "c"]
    assert labels.names == ["Male"]


@pytest.mark.parametrize("content", ["name,A,A\na.png,1,0\n", "1\nA B A\na.png 1 1 -1\n"])
def test_a_table_that_names_an_attribute_twice_is_refused(tmp_path, content):
    with pytest.raises(DataError, match=r"labels\.csv: .*A.*twice"):
        read(tmp_path, content)


def test_names_may_be_quoted_and_hold_separators(tmp_path):
    labels = read(tmp_path, 'name,Male\n"Doe, Jane.png",0\n"Roe, Jon.png",1\n')
    assert labels.stems == ["Doe, Jane", "Roe, Jon"]
    assert rows_of(labels) == [[0], [1]]


def test_blank_lines_do_not_count(tmp_path):
    assert read(tmp_path, "name,A\n\na.png,1\n,\n\nb.png,0\n\n").stems == ["a", "b"]
    assert read(tmp_path, CELEBA + "\n\n").stems == ["000001", "000002"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("name,A,B\na.png,1,0\nb.png,1\n", 3),
        ("name,A,B\n\na.png,1,0\nb.png,1,0,1\n", 4),
        ("1\nA B\na.png 1 -1\nb.png 1\n", 4),
        ("1\nA B\na.png 1 2\n", 3),
        ("1\nA B\n\na.png 1 yes\n", 4),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, content, line):
    with pytest.raises(DataError, match=rf"labels\.csv: line {line}: ") as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["", "\n\n", "name\n", "name\na.png\n", "name,A\n", "2\n", "2\nA B\n", "2\n\na.png\n"],
)
def test_a_table_without_labels_says_what_is_needed(tmp_path, content):
    with pytest.raises(DataError, match=r"labels\.csv: contains no labels; it needs a header"):
        read(tmp_path, content)


def test_a_table_that_begins_with_a_picture_lacks_its_header(tmp_path):
    with pytest.raises(
        DataError, match=r"labels\.csv: the first line has 'a\.png' where a header belongs"
    ):
        read(tmp_path, "a.png,1,0\nb.png,0,1\n")


def test_of_a_table_of_words_alone_one_is_shown(tmp_path):
    with pytest.raises(DataError, match=r"labels\.csv: no column .*: happy has 'maybe'"):
        read(tmp_path, "file,happy,note\na.png,yes,tall\nb.png,maybe,short\n")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00n\x00a", b"\x89PNG\r\n\x1a\n\x00", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "labels.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.csv: cannot be read as labels") as caught:
        read_labels(path)
    assert "\n" not in str(caught.value)


def test_a_cell_too_long_for_a_table_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"labels\.csv: ") as caught:
        read(tmp_path, f'name,A\n"{"x" * 200_000}",1\n')
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


# ---------------------------------------------------------------- FFHQ's features


def face(**changes):
    """One face as FFHQ's features have it, of which some parts are of no use to us."""
    return {
        "faceId": "0",
        "faceAttributes": {
            "smile": 0.25,
            "headPose": {"pitch": 1.0, "roll": -5.5, "yaw": 20.0},
            "gender": "female",
            "age": 31.0,
            "facialHair": {"moustache": 0.0, "beard": 0.1, "sideburns": 0.2},
            "glasses": "NoGlasses",
            "emotion": {"anger": 0.0},
            "hair": {"bald": 0.05, "invisible": False, "hairColor": []},
            "makeup": {"eyeMakeup": True, "lipMakeup": False},
            "accessories": [],
            **changes,
        },
    }


def features(folder, **files):
    folder.mkdir(exist_ok=True)
    for stem, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{stem}.json").write_text(text)
    return folder


def test_ffhqs_features_are_read_file_by_file(tmp_path):
    other = face(
        gender="male",
        glasses="Sunglasses",
        accessories=[{"type": "glasses", "confidence": 1}, {"type": "headwear", "confidence": 1}],
        age=58,
    )
    folder = features(tmp_path / "f", **{"00001": [other, face()], "00000": [face()], "00002": []})
    (folder / "notes.txt").write_text("not one of them")
    (folder / "._00000.json").write_bytes(b"\x00\x05\x16\x07")  # what macOS leaves in archives
    labels = read_labels(folder)
    assert labels.stems == ["00000", "00001"]
    found = [dict(zip(labels.names, row, strict=True)) for row in labels.values.tolist()]
    marks = ("Eyeglasses", "Sunglasses", "Male", "Headwear", "Eye_Makeup", "Lip_Makeup")
    assert [[row[name] for name in marks] for row in found] == [
        [0, 0, 0, 0, 1, 0],
        [1, 1, 1, 1, 1, 0],
    ]
    first = found[0]
    assert [row["Age"] for row in found] == [31, 58]
    assert (first["Yaw"], first["Pitch"], first["Roll"], first["Smile"]) == (20, 1, -5.5, 0.25)
    numbers = ("Beard", "Moustache", "Sideburns", "Bald")
    np.testing.assert_allclose([first[name] for name in numbers], [0.1, 0, 0.2, 0.05], rtol=1e-6)
    assert labels.continuous == set(labels.names) - set(marks)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "7",
        '"face"',
        '{"faceAttributes": {}}',
        "[7]",
        "[null]",
        "[{}]",
        json.dumps([{"faceAttributes": {}}]),
        json.dumps([face(age=None)]),
        json.dumps([face(age="old")]),
        json.dumps([face(age=float("inf"))]),
        json.dumps([face(age=1e300)]),
        json.dumps([face(age=10**400)]),
        json.dumps([face(smile=[1])]),
        json.dumps([face(headPose=3)]),
        json.dumps([face(accessories=[{}])]),
        json.dumps([face(accessories=None)]),
        "[" * 100_000,
    ],
)
def test_a_file_that_is_none_of_ffhqs_features_is_named(tmp_path, content):
    folder = features(tmp_path / "f", **{"00000": [face()], "00001": content})
    with pytest.raises(DataError, match=r"00001\.json: not a file of FFHQ's features") as caught:
        read_labels(folder)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_none_of_ffhqs_features(tmp_path):
    folder = features(tmp_path / "f")
    (folder / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.json: not a file"):
        read_labels(folder)


def test_a_folder_without_features_says_so(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: no .json files of FFHQ's")):
        read_labels(tmp_path)
    with pytest.raises(DataError, match="contains no labels"):
        read_labels(features(tmp_path / "f", **{"00000": []}))
