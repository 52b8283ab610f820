"""Attributes from labelled faces: which of them teach, which measure, and what a model knows then."""

import numpy as np
import pytest
import torch
from conftest import draw_face
from tiny import ATTRIBUTES, CONFIG, tiny_bundle

from facevae.attributes.directions import learn
from facevae.attributes.interactions import no_axes
from facevae.attributes.samples import Examples
from facevae.data.dataset import is_held_out, load_faces
from facevae.data.image_tensors import from_pixels
from facevae.data.label_files import read_labels
from facevae.data.labels import Labels
from facevae.latent_space.edits import plan_edit
from facevae.latent_space.latents import encode_pixels
from facevae.latent_space.learning import (
    MIN_MEASURED,
    add_attributes,
    examples_of_faces,
    examples_of_photos,
)


@pytest.fixture
def bundle():
    return tiny_bundle()


def drawn(count, *, glasses=False):
    """Pixels (size, size, 3) of drawn faces."""
    return [np.asarray(draw_face(i, CONFIG.size, glasses=glasses)) for i in range(count)]


def photos(with_it, without=()):
    """Each picture with a stem, and whether it has the only attribute."""
    rows = [(pixels, 1.0) for pixels in with_it] + [(pixels, 0.0) for pixels in without]
    return [(p, f"face-{i}", np.array([mark], np.float32)) for i, (p, mark) in enumerate(rows)]


# ---------------------------------------------------------------- from converted faces


@pytest.fixture
def faces(faces_folder, tmp_path):
    return load_faces([faces_folder], CONFIG.size, cache=tmp_path / "cache")


def test_the_labelled_ones_of_converted_faces_are_examples(bundle, faces, labels_file):
    table = read_labels(labels_file)
    some = Labels(table.stems[:30], table.names, table.values[:30])
    examples = examples_of_faces(bundle, faces, some)
    rows = [row for row in (*faces.train, *faces.held_out) if int(faces.stems[row]) < 30]
    assert examples.values[:, 0].tolist() == [int(faces.stems[r]) % 2 == 0 for r in rows]
    assert examples.held_out.tolist() == [row in faces.held_out for row in rows]
    pixels = faces.pixels[rows]
    torch.testing.assert_close(examples.latents, encode_pixels(bundle, pixels))
    mirrored = encode_pixels(bundle, np.ascontiguousarray(pixels[:, :, ::-1]))
    torch.testing.assert_close(examples.mirrored, mirrored)


def test_a_face_with_some_labels_is_an_example_and_one_with_none_is_not(bundle, faces):
    values = np.array([[1, np.nan], [np.nan, np.nan], [np.nan, 0]], np.float32)
    examples = examples_of_faces(bundle, faces, Labels(["000", "001", "002"], ["A", "B"], values))
    assert len(examples.values) == 2
    assert len(examples.latents) == 2


def test_labels_of_other_faces_make_no_examples(bundle, faces):
    other = Labels(["x", "y"], ["A"], np.array([[1], [0]], np.float32))
    assert examples_of_faces(bundle, faces, other) is None


# ---------------------------------------------------------------- from photos


def test_a_handful_of_photos_all_teach(bundle):
    with_it, without = drawn(5, glasses=True), drawn(6)
    examples = examples_of_photos(bundle, photos(with_it, without), ["Glasses"], [False])
    assert examples.values[:, 0].tolist() == [1] * 5 + [0] * 6
    assert not examples.held_out.any()
    torch.testing.assert_close(examples.latents, encode_pixels(bundle, np.stack(with_it + without)))
    (attribute,), _, _ = learn(examples, bundle.latent_covariance)
    assert (attribute.num_positives, attribute.num_negatives) == (5, 6)
    assert (attribute.accuracy, attribute.correlation) == (None, None)


@pytest.mark.parametrize("count", [MIN_MEASURED - 1, MIN_MEASURED, 130])
def test_of_many_photos_one_in_twelve_measures(bundle, count):
    many = photos(drawn(count // 2, glasses=True), drawn(count - count // 2))
    examples = examples_of_photos(bundle, many, ["Glasses"], [False])
    expected = [is_held_out(stem) and count >= MIN_MEASURED for _, stem, _ in many]
    assert examples.held_out.tolist() == expected
    assert examples.held_out.any() == (count >= MIN_MEASURED)
    # more than are encoded at once, in their order
    torch.testing.assert_close(
        examples.latents, encode_pixels(bundle, np.stack([p for p, _, _ in many]))
    )


def test_where_all_have_it_the_average_face_stands_for_those_that_have_not(bundle):
    with_it = drawn(4, glasses=True)
    examples = examples_of_photos(bundle, photos(with_it), ["Glasses"], [False])
    assert examples.values[:, 0].tolist() == [1, 1, 1, 1, 0]
    assert not examples.held_out.any()
    for side in (examples.latents, examples.mirrored):
        assert side[-1].equal(bundle.latent_mean)
    (attribute,), directions, _ = learn(examples, bundle.latent_covariance)
    assert (attribute.num_positives, attribute.num_negatives) == (4, 1)
    pixels = np.stack(with_it)
    both = torch.cat([encode_pixels(bundle, p) for p in (pixels, pixels[:, :, ::-1].copy())])
    torch.testing.assert_close(
        directions[0], both.mean(0) - bundle.latent_mean, rtol=1e-3, atol=1e-4
    )


def test_numbers_that_are_all_1_are_no_reason_to_think_of_the_average_face(bundle):
    examples = examples_of_photos(bundle, photos(drawn(3)), ["Age"], [True])
    assert examples.values[:, 0].tolist() == [1, 1, 1]
    assert learn(examples, bundle.latent_covariance)[0] == []


# ---------------------------------------------------------------- into a model


def learned(bundle, names, seed=0, method="lda"):
    """Teach the model attributes of these names from random examples; returns what it learned."""
    rng = np.random.default_rng(seed)
    pixels = np.stack(drawn(40))
    values = rng.integers(0, 2, (40, len(names))).astype(np.float32)
    rows = [(p, f"{i}", row) for i, (p, row) in enumerate(zip(pixels, values, strict=True))]
    examples = examples_of_photos(bundle, rows, names, [False] * len(names))
    return add_attributes(bundle, examples, method)


def test_what_is_learned_is_added_to_what_is_known(bundle):
    before = tiny_bundle()
    assert learned(bundle, ["Freckles", "Scar"]) == ["Freckles", "Scar"]
    assert [a.name for a in bundle.attributes] == [*ATTRIBUTES, "Freckles", "Scar"]
    assert bundle.attributes[:4] == before.attributes
    assert bundle.directions[:4].equal(before.directions)
    assert bundle.scorers[:4].equal(before.scorers)
    assert bundle.directions.shape == bundle.scorers.shape == (6, CONFIG.latent_dim)
    # too few to say how what they have varies from face to face
    assert bundle.axes.rows.equal(before.axes.rows)
    assert bundle.interactions[:4].equal(before.interactions)
    assert bundle.interactions[4:].equal(torch.zeros(2, 2, CONFIG.latent_dim))


def many_examples(names, count=1200):
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(count, CONFIG.latent_dim, generator=draw)
    mirrored = latents * torch.tensor([-1.0] * 4 + [1.0] * (CONFIG.latent_dim - 4))
    values = torch.rand(count, len(names), generator=draw) < 0.3
    latents = latents + values[:, :1] * latents.roll(1, 1)
    continuous, held_out = np.zeros(len(names), bool), np.zeros(count, bool)
    return Examples(latents, mirrored, values.float().numpy(), names, continuous, held_out)


def test_many_faces_teach_how_directions_vary(bundle):
    """Axes are found once; what was learned before has the same direction for every face then."""
    bundle.axes, bundle.interactions = no_axes(CONFIG.latent_dim), bundle.interactions[:, :0]
    add_attributes(bundle, many_examples(["Hat", "Scar"]))
    assert len(bundle.axes) == 6
    assert bundle.interactions.shape == (6, 6, CONFIG.latent_dim)
    assert not bundle.interactions[:4].any()
    assert bundle.interactions[4].abs().max() > 0.1
    before, axes = bundle.interactions, bundle.axes
    add_attributes(bundle, many_examples(["Cap"], 1500))
    assert bundle.axes is axes
    assert bundle.interactions[:6].equal(before)
    assert bundle.interactions[6].abs().max() > 0.1


def test_the_papers_directions_are_the_same_for_every_face(bundle):
    add_attributes(bundle, many_examples(["Hat"]), "mean")
    assert not bundle.interactions[4].any()
    edit = plan_edit(bundle, ["hat"])
    latents = torch.randn(3, CONFIG.latent_dim)
    expected = latents + 1.5 * bundle.directions[4]
    torch.testing.assert_close(edit.apply(latents, torch.full((3, 1), 1.5)), expected)


def test_what_has_the_same_name_takes_the_place_of_what_was_known(bundle):
    before = tiny_bundle()
    learned(bundle, ["Smiling", "Scar"])
    assert [a.name for a in bundle.attributes] == [
        "Eyeglasses",
        "Male",
        "No_Beard",
        "Smiling",
        "Scar",
    ]
    assert bundle.directions[:3].equal(before.directions[[0, 2, 3]])
    assert bundle.scorers[:3].equal(before.scorers[[0, 2, 3]])
    assert not torch.allclose(bundle.directions[3], before.directions[1])
    ones = (bundle.directions[3:] * bundle.scorers[3:]).sum(1)
    torch.testing.assert_close(ones, torch.ones(2))
    # again, as it may be written too, and nothing is there twice
    learned(bundle, ["smiling"], seed=1)
    learned(bundle, ["Smiling"], seed=1)
    assert sorted(a.name for a in bundle.attributes) == sorted([*ATTRIBUTES, "Scar"])


def test_a_model_that_knows_nothing_learns(bundle):
    bundle.attributes, bundle.directions, bundle.scorers = [], None, None
    bundle.interactions = None
    assert learned(bundle, ["Scar"], method="mean") == ["Scar"]
    assert [(a.name, a.method) for a in bundle.attributes] == [("Scar", "mean")]
    expected = bundle.directions / bundle.directions.square().sum()
    torch.testing.assert_close(bundle.scorers, expected)


def test_where_nothing_is_learned_the_model_stays_as_it_is(bundle):
    before = tiny_bundle()
    same = np.stack(drawn(1) * 6)
    rows = [(p, f"{i}", np.array([i % 2], np.float32)) for i, p in enumerate(same)]
    assert add_attributes(bundle, examples_of_photos(bundle, rows, ["A"], [False])) == []
    assert bundle.attributes == before.attributes
    assert bundle.directions.equal(before.directions)


def test_glasses_are_told_apart_after_learning_them(bundle):
    """On drawings that it was not shown, by a network that was never trained."""
    rows = photos(drawn(40, glasses=True), drawn(40))
    add_attributes(bundle, examples_of_photos(bundle, rows, ["Spectacles"], [False]))
    scorer = bundle.scorers[-1]
    unseen = [
        np.stack([np.asarray(draw_face(i, CONFIG.size, glasses=g)) for i in range(100, 130)])
        for g in (True, False)
    ]
    with torch.no_grad():
        scores = [bundle.vae.encode(from_pixels(p))[0] @ scorer for p in unseen]
    right = (scores[0] > scores[1]).float().mean()
    assert right > 0.8
