"""Labels are read in the formats people have; directions are differences of means."""

import numpy as np
import pytest
import torch

from facevae.attributes import learn_directions, match_attribute, read_labels
from facevae.errors import DataError, UsageError

CELEBA = """2
Eyeglasses No_Beard
000001.jpg -1  1
000002.jpg  1 -1
"""
NAMES = ["5_o_Clock_Shadow", "Blond_Hair", "Eyeglasses", "Male", "No_Beard", "Smiling"]
NAMES += ["Wavy_Hair", "Wearing_Hat", "Young"]


def read(tmp_path, content, name="labels.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(path)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_celeba_list_is_read(tmp_path, bom, newline):
    labels = read(tmp_path, bom + CELEBA.replace("\n", newline).encode(), "list_attr_celeba.txt")
    assert labels.stems == ["000001", "000002"]
    assert labels.names == ["Eyeglasses", "No_Beard"]
    assert labels.values.tolist() == [[-1, 1], [1, -1]]
    assert labels.ignored == []


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_is_read_with_any_separator(tmp_path, bom, newline, separator):
    text = "image_id,Eyeglasses,Male\na.jpg,1,0\nb.jpg,0,1\nc.jpg,1,1\n"
    content = text.replace(",", separator).replace("\n", newline).encode()
    labels = read(tmp_path, bom + content)
    assert labels.stems == ["a", "b", "c"]
    assert labels.names == ["Eyeglasses", "Male"]
    assert labels.values.tolist() == [[1, -1], [-1, 1], [1, 1]]


def test_one_attribute_is_enough(labels_file):
    labels = read_labels(labels_file)
    assert labels.names == ["Eyeglasses"]
    assert labels.stems == [f"{i:03}" for i in range(48)]
    assert labels.values[:, 0].tolist() == [1, -1] * 24


@pytest.mark.parametrize(
    ("yes", "no"),
    [("1", "0"), ("1", "-1"), ("1.0", "0.0"), ("True", "False"), ("YES", "no"), ("y", "N")],
)
def test_yes_and_no_may_be_spelled_as_people_do(tmp_path, yes, no):
    labels = read(tmp_path, f"name,A,B\na.png,{yes},{no}\nb.png, {no} , {yes} \n")
    assert labels.values.tolist() == [[1, -1], [-1, 1]]


def test_an_empty_value_is_not_known(tmp_path):
    labels = read(tmp_path, "name,A,B\na.png,,1\nb.png,0,\n")
    assert labels.values.tolist() == [[0, 1], [-1, 0]]


@pytest.mark.parametrize(
    "header", ["name", "File", "filename", "image", "IMAGE_ID", "path", "id", "file_name"]
)
def test_the_name_column_may_stand_anywhere(tmp_path, header):
    labels = read(tmp_path, f"Male,{header},Young\n1,a.png,0\n0,b.png,1\n")
    assert labels.stems == ["a", "b"]
    assert labels.names == ["Male", "Young"]
    assert labels.values.tolist() == [[1, -1], [-1, 1]]


def test_without_a_known_name_column_the_first_is_it(tmp_path):
    labels = read(tmp_path, "picture,Male\na.png,1\nb.png,0\n")
    assert labels.stems == ["a", "b"]
    assert labels.names == ["Male"]


def test_a_column_that_is_not_yes_or_no_is_left_out_and_named(tmp_path):
    labels = read(tmp_path, "name,age,Male,note\na.png,34,1,tall\nb.png,1,0,\n")
    assert labels.names == ["Male"]
    assert labels.ignored == ["age", "note"]
    assert labels.values.tolist() == [[1], [-1]]


def test_names_may_be_quoted_and_hold_separators(tmp_path):
    labels = read(tmp_path, 'name,Male\n"Doe, Jane.png",0\n"Roe, Jon.png",1\n')
    assert labels.stems == ["Doe, Jane", "Roe, Jon"]
    assert labels.values.tolist() == [[-1], [1]]


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
    with pytest.raises(DataError, match=rf"labels\.csv: line {line}: "):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    ["", "\n\n", "name\n", "name\na.png\n", "name,A\n", "name,age\na.png,34\n", "2\n", "2\nA B\n"],
)
def test_a_table_without_labels_says_what_is_needed(tmp_path, content):
    with pytest.raises(DataError, match=r"labels\.csv: no yes-or-no labels in there"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00n\x00a", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "labels.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.csv: cannot be read as labels"):
        read_labels(path)


def test_labels_join_faces_without_suffix_or_folder(tmp_path):
    content = "name,A,B\ndeep/a.jpg,1,0\nwin\\dows\\b.png,0,1\nc,1,1\nd.e.png,0,0\n"
    labels = read(tmp_path, content)
    got = labels.rows_for(["c", "a", "unknown", "b", "d.e", "a"])
    assert got.tolist() == [[1, 1], [1, -1], [0, 0], [-1, 1], [-1, -1], [1, -1]]


def test_the_fingerprint_is_of_the_labels_and_not_of_their_file(tmp_path):
    first = read(tmp_path, "name,A\na.png,1\nb.png,0\n").fingerprint
    assert read(tmp_path, "file;A\nx/a.jpg;yes\nb;no\n", "other.txt").fingerprint == first
    changed = ["name,A\na.png,1\nb.png,1\n", "name,B\na.png,1\nb.png,0\n", "name,A\na,1\nc,0\n"]
    assert first not in [read(tmp_path, content).fingerprint for content in changed]


# ---------------------------------------------------------------- directions


def random_case(count=200, dims=6, num_attributes=4, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.choice([-1, 0, 1], (count, num_attributes), p=[0.5, 0.2, 0.3]).astype(np.int8)
    latents = rng.normal(size=(count, dims)) + values @ rng.normal(size=(num_attributes, dims))
    return latents, values, rng.random(count) < 0.25


def naive(latents, values, held_out):
    """One attribute after another, one face after another."""
    directions, accuracies = [], []
    for column in values.T:
        groups = {mark: [] for mark in (-1, 0, 1)}
        for latent, mark, is_held_out in zip(latents, column, held_out, strict=True):
            if not is_held_out:
                groups[mark].append(latent)
        negative, positive = np.mean(groups[-1], axis=0), np.mean(groups[1], axis=0)
        direction = positive - negative
        right = {-1: [], 1: []}
        for latent, mark, is_held_out in zip(latents, column, held_out, strict=True):
            if is_held_out and mark:
                beyond = (latent - (positive + negative) / 2) @ direction > 0
                right[mark].append(beyond == (mark == 1))
        directions.append(direction)
        accuracies.append((np.mean(right[-1]) + np.mean(right[1])) / 2)
    return directions, accuracies


def test_directions_are_those_of_a_plain_loop():
    latents, values, held_out = random_case()
    names = ["a", "b", "c", "d"]
    attributes, directions = learn_directions(torch.from_numpy(latents), values, names, held_out)
    expected, accuracies = naive(latents, values, held_out)
    np.testing.assert_allclose(directions.numpy(), expected, atol=1e-9)
    assert [a.name for a in attributes] == names
    for i, attribute in enumerate(attributes):
        assert attribute.scale == pytest.approx(np.linalg.norm(expected[i]))
        assert attribute.accuracy == pytest.approx(accuracies[i])
        assert attribute.num_positives == (values[~held_out, i] == 1).sum()
        assert attribute.num_negatives == (values[~held_out, i] == -1).sum()


def test_alpha_1_carries_the_mean_without_to_the_mean_with():
    latents, values, held_out = random_case(seed=1)
    _, directions = learn_directions(torch.from_numpy(latents), values, list("abcd"), held_out)
    training, marks = latents[~held_out], values[~held_out]
    for i, direction in enumerate(directions.numpy()):
        without = training[marks[:, i] == -1].mean(0)
        np.testing.assert_allclose(
            without + 1.0 * direction, training[marks[:, i] == 1].mean(0), atol=1e-9
        )


def test_held_out_faces_change_no_direction():
    latents, values, held_out = random_case(seed=2)
    moved = latents.copy()
    moved[held_out] += 100
    pair = [
        learn_directions(torch.from_numpy(each), values, list("abcd"), held_out)[1]
        for each in (latents, moved)
    ]
    assert pair[0].equal(pair[1])


def test_accuracy_is_of_held_out_faces_alone_and_balanced():
    # trained on four faces that it tells apart; held out: three without, of which one looks as
    # if with, and one with
    latents = torch.tensor([[-1.0], [-1.0], [1.0], [1.0], [-2.0], [-3.0], [5.0], [0.5]])
    values = np.array([[-1, -1, 1, 1, -1, -1, -1, 1]], np.int8).T
    held_out = np.array([False] * 4 + [True] * 4)
    [attribute], directions = learn_directions(latents, values, ["a"], held_out)
    assert directions.tolist() == [[2.0]]
    assert attribute.accuracy == pytest.approx((2 / 3 + 1) / 2)


def test_accuracy_is_not_known_where_a_side_is_missing():
    latents, values = torch.tensor([[-1.0], [1.0], [2.0]]), np.array([[-1], [1], [1]], np.int8)
    [attribute], _ = learn_directions(latents, values, ["a"], np.array([False, False, True]))
    assert attribute.accuracy is None


def test_attributes_that_all_faces_or_none_have_are_left_out():
    latents, values, held_out = random_case(seed=3)
    values[:, 0] = 1
    values[:, 1] = 0
    values[:, 3] = np.where(held_out, 1, -1)  # known of held-out faces only
    attributes, directions = learn_directions(
        torch.from_numpy(latents), values, list("abcd"), held_out
    )
    assert [a.name for a in attributes] == ["c"]
    assert directions.shape == (1, 6)
    assert directions.isfinite().all()


def test_float32_latents_give_float32_directions():
    latents, values, held_out = random_case(seed=4)
    got = learn_directions(torch.from_numpy(latents).float(), values, list("abcd"), held_out)[1]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), naive(latents, values, held_out)[0], atol=1e-4)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("wanted", "name", "sign"),
    [
        ("Eyeglasses", "Eyeglasses", 1),
        ("eyeglasses", "Eyeglasses", 1),
        ("glasses", "Eyeglasses", 1),
        ("smile", "Smiling", 1),
        ("SMILING", "Smiling", 1),
        ("beard", "No_Beard", -1),
        ("no beard", "No_Beard", 1),
        ("No_Beard", "No_Beard", 1),
        ("hat", "Wearing_Hat", 1),
        ("wearing-hat", "Wearing_Hat", 1),
        ("blond", "Blond_Hair", 1),
        ("male", "Male", 1),
        ("female", "Male", -1),
        ("old", "Young", -1),
        ("shadow", "5_o_Clock_Shadow", 1),
        ("wavy", "Wavy_Hair", 1),
    ],
)
def test_an_attribute_is_known_by_what_people_call_it(wanted, name, sign):
    index, direction = match_attribute(wanted, NAMES)
    assert (NAMES[index], direction) == (name, sign)


@pytest.mark.parametrize("name", ["beard", "Hat", "SMILE", "female"])
def test_a_models_own_name_comes_before_an_everyday_meaning(name):
    assert match_attribute(name.lower(), [*NAMES, name]) == (len(NAMES), 1)


@pytest.mark.parametrize(
    ("wanted", "name"), [("glasses", "Has_Glasses"), ("beard", "Has_Beard"), ("smile", "Big_Smile")]
)
def test_a_unique_part_of_a_name_will_do_for_everyday_words_too(wanted, name):
    assert match_attribute(wanted, ["Young", name]) == (1, 1)


def test_an_unknown_attribute_lists_all_and_the_nearest():
    with pytest.raises(UsageError, match="--attr Eyeglases: did you mean Eyeglasses") as caught:
        match_attribute("Eyeglases", NAMES)
    assert all(name in str(caught.value).partition("knows ")[2] for name in NAMES)


def test_a_part_of_several_names_offers_those():
    with pytest.raises(UsageError, match=r"did you mean Blond_Hair or Wavy_Hair\?"):
        match_attribute("hair", NAMES)


@pytest.mark.parametrize("wanted", ["", "__", "zzzzzz"])
def test_what_is_like_nothing_still_lists_all(wanted):
    with pytest.raises(UsageError, match="this model knows") as caught:
        match_attribute(wanted, NAMES)
    assert all(name in str(caught.value) for name in NAMES)


def test_a_model_without_attributes_says_so():
    with pytest.raises(UsageError, match="knows no attributes"):
        match_attribute("smile", [])
