"""Labels are joined to faces, compared and merged."""

import numpy as np
import pytest
from test_label_files import read, rows_of

from facevae.data.label_files import read_labels
from facevae.data.labels import Labels, merged
from facevae.errors import DataError


def test_faces_that_have_labels_are_counted_and_none_is_refused(tmp_path):
    labels = read(tmp_path, "name,A\na.png,1\nb.png,0\n")
    assert labels.count_among(["b", "c", "a"]) == 2
    with pytest.raises(
        DataError, match="none belongs to a face; faces are named like 'c', labels like 'a'"
    ):
        labels.count_among(["c"])


def test_attributes_in_which_faces_do_not_differ_are_named(tmp_path):
    table = "name,Same,Male,Age,Unknown\na.png,1,1,30,\nb.png,1,0,30,\nc.png,0,0,40,1\n"
    labels = read(tmp_path, table)
    assert labels.constant_for(["a", "b"]) == ["Same", "Age", "Unknown"]
    assert labels.constant_for(["a", "b", "c"]) == ["Unknown"]
    assert labels.constant_for(["z"]) == labels.names


def test_labels_join_faces_without_suffix_or_folder(tmp_path):
    content = "name,A,B\ndeep/a.jpg,1,0\nwin\\dows\\b.png,0,1\nc,1,1\nd.e.png,0,0\n"
    labels = read(tmp_path, content)
    got = labels.rows_for(["c", "a", "unknown", "b", "d.e", "a"])
    expected = [[1, 1], [1, 0], [np.nan] * 2, [0, 1], [0, 0], [1, 0]]
    np.testing.assert_array_equal(got, np.array(expected))
    assert labels.rows_for([]).shape == (0, 2)


def test_the_fingerprint_is_of_the_labels_and_not_of_their_file(tmp_path):
    first = read(tmp_path, "name,A\na.png,1\nb.png,0\n").fingerprint
    assert read(tmp_path, "file;A\nx/a.jpg;yes\nb;no\n", "other.txt").fingerprint == first
    assert read(tmp_path, "2\nA\na.jpg 1\nb.jpg -1\n", "list.txt").fingerprint == first
    changed = ["name,A\na.png,1\nb.png,1\n", "name,B\na.png,1\nb.png,0\n", "name,A\na,1\nc,0\n"]
    changed += ["name,A\na.png,1\nb.png,\n", "name,A\na.png,1\nb.png,7\n"]
    assert first not in [read(tmp_path, content).fingerprint for content in changed]


def test_tables_are_merged_face_by_face_and_the_later_one_counts():
    nan = np.nan
    first = Labels(
        ["a", "b"], ["X", "Y"], np.array([[1, nan], [0, 3]], np.float32), frozenset(["Y"]), ("n",)
    )
    second = Labels(
        ["c", "b"], ["Z", "X"], np.array([[1, 1], [nan, 1]], np.float32), ignored=("m",)
    )
    both = merged([first, second])
    assert both.stems == ["a", "b", "c"]
    assert both.names == ["X", "Y", "Z"]
    assert rows_of(both) == [[1, None, None], [1, 3, None], [1, None, 1]]
    assert both.is_continuous.tolist() == [False, True, False]
    assert both.ignored == ("n", "m")
    # what the later table does not know stays as the earlier one has it
    unknown = Labels(["a"], ["X"], np.array([[nan]], np.float32))
    assert rows_of(merged([first, unknown])) == rows_of(first)


def test_one_table_merged_is_itself(labels_file):
    labels = read_labels(labels_file)
    assert merged([labels]).fingerprint == labels.fingerprint
