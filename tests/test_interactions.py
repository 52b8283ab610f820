"""Directions that vary from face to face: the axes, and what is learned along them."""

import numpy as np
import pytest
import torch

from facevae.attributes.interactions import Axes, find_axes, learn_interactions, no_axes
from facevae.attributes.samples import Examples

DIM = 12
TURNED = (0, 1, 11)  # dimensions that mirroring turns round
MIRROR = torch.tensor([-1.0 if i in TURNED else 1.0 for i in range(DIM)])


def faces(count, seed=0):
    """Latents (N, D) whose first dimensions vary most, and those of the mirror images."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.tensor([3.0, 2.0, 2.5, 1.5, 1.4, 1.3] + [0.5] * (DIM - 6))
    latents = torch.randn(count, DIM, generator=draw) * spread
    return latents, latents * MIRROR


def examples_of(latents, mirrored, labels, names=("Hat",), held_out=None, *, continuous=False):
    values = np.asarray(labels, np.float32).reshape(len(latents), -1)
    kept = np.zeros(len(latents), bool) if held_out is None else held_out
    return Examples(latents, mirrored, values, list(names), np.full(len(names), continuous), kept)


def with_step(latents, mirrored, has, step):
    """Add `step` (N, D) to the faces that `has` (N,) chooses, and its mirror image to theirs."""
    moved = has[:, None].float() * step
    return latents + moved, mirrored + moved * MIRROR


def test_axes_are_of_what_mirroring_turns_round_and_then_of_the_rest():
    latents, mirrored = faces(4000)
    axes = find_axes(examples_of(latents + 5, mirrored + 5, np.zeros(4000)))
    assert len(axes) == 6
    shares = axes.rows.square() / axes.rows.square().sum(1, keepdim=True)
    assert shares.argmax(1).tolist() == [0, 1, 2, 3, 4, 5]
    assert shares.amax(1).min() > 0.9
    places = (latents + 5) @ axes.rows.T - axes.offsets
    torch.testing.assert_close(places.std(0), torch.ones(6), rtol=0.05, atol=0)
    torch.testing.assert_close(places.mean(0), torch.zeros(6), rtol=0, atol=0.06)
    turned = (mirrored + 5) @ axes.rows.T - axes.offsets
    torch.testing.assert_close(turned[:, :2], -places[:, :2], rtol=0, atol=1e-4)


def test_axes_do_not_depend_on_the_order_of_faces_or_on_held_out_ones():
    latents, mirrored = faces(3000)
    axes = find_axes(examples_of(latents[:2000], mirrored[:2000], np.zeros(2000)))
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(4))
    held_out = np.arange(3000) >= 2000
    again = find_axes(
        examples_of(latents[order], mirrored[order], np.zeros(3000), held_out=held_out[order])
    )
    torch.testing.assert_close(again.rows, axes.rows, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again.offsets, axes.offsets, rtol=1e-3, atol=1e-4)


def test_few_faces_have_no_axes():
    assert len(find_axes(examples_of(*faces(999), np.zeros(999)))) == 0
    assert len(find_axes(examples_of(*faces(1000), np.zeros(1000)))) == 6


def test_faces_that_do_not_differ_have_no_axes():
    same = torch.ones(1000, DIM)
    assert len(find_axes(examples_of(same, same, np.zeros(1000)))) == 0


def test_rounding_errors_are_no_axes():
    """As of a network that hardly sees which side of a face is which."""
    latents, _ = faces(2000)
    hardly = latents + 1e-6 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    axes = find_axes(examples_of(latents, hardly, np.zeros(2000)))
    assert len(axes) == 4
    assert axes.rows.abs().max() < 10


def test_coordinates_end_where_there_are_few_faces():
    axes = Axes(torch.eye(DIM)[:1], torch.tensor([0.5]))
    latents = torch.zeros(4, DIM)
    latents[:, 0] = torch.tensor([-9.0, 0.0, 1.5, 9.0])
    torch.testing.assert_close(
        axes.coordinates(latents), torch.tensor([[-2.5], [-0.5], [1.0], [2.5]])
    )
    assert no_axes(DIM).coordinates(latents).shape == (4, 0)


@pytest.mark.parametrize(("axis", "dimension"), [(0, 11), (3, 8)])
def test_a_direction_that_varies_along_an_axis_is_found(axis, dimension):
    """A hat moves dimension 7 by 2 in every face, and another one by 0.8 a step along the axis."""
    latents, mirrored = faces(6000)
    axes = find_axes(examples_of(latents, mirrored, np.zeros(6000)))
    has = torch.rand(6000, generator=torch.Generator().manual_seed(1)) < 0.2
    step = torch.zeros(6000, DIM)
    step[:, 7], step[:, dimension] = 2, 0.8 * axes.coordinates(latents)[:, axis]
    both = examples_of(*with_step(latents, mirrored, has, step), has)
    expected = torch.zeros(1, 6, DIM)
    expected[0, axis, dimension] = 0.8
    found = learn_interactions(both, ["Hat"], axes)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_what_the_mirror_image_takes_back_is_not_learned():
    """A step that depends on how a face is turned, but whose mirror image does not."""
    latents, mirrored = faces(6000)
    axes = find_axes(examples_of(latents, mirrored, np.zeros(6000)))
    has = torch.arange(6000) % 4 == 0
    step = torch.zeros(6000, DIM)
    step[:, 8] = axes.coordinates(latents)[:, 0]
    both = examples_of(*with_step(latents, mirrored, has, step), has)
    assert learn_interactions(both, ["Hat"], axes).abs().max() < 0.15


def test_it_is_the_difference_between_the_slopes_of_the_two_groups():
    """By plain loops, without a penalty to speak of."""
    latents, mirrored = faces(4000, seed=3)
    axes = find_axes(examples_of(latents, mirrored, np.zeros(4000)))
    has = torch.arange(4000) % 2 == 0
    latents = latents + has[:, None] * 0.3 * latents[:, 2:3]
    (found,) = learn_interactions(examples_of(latents, mirrored, has), ["Hat"], axes)
    slopes = []
    for group in (False, True):
        both = torch.cat([latents[has == group], mirrored[has == group]]).double()
        design = torch.cat([torch.ones(len(both), 1), axes.coordinates(both)], 1).double()
        slopes.append(torch.linalg.lstsq(design, both).solution[1:])
    torch.testing.assert_close(found.double(), slopes[1] - slopes[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_of_what_mirroring_turns_round_the_other_side_has_the_other_label(share):
    """A face that looks left has a mirror image that does not."""
    latents, mirrored = faces(8000)
    axes = find_axes(examples_of(latents, mirrored, np.zeros(8000)))
    left = torch.arange(8000) < 8000 * share

    def turned(sign):
        """Steps of the faces with a sign for left and right: dimension 11, more so along axis 3."""
        step = torch.zeros(8000, DIM)
        step[:, 11] = sign * (2 + 0.8 * axes.coordinates(latents)[:, 3])
        return step

    sign = torch.where(left, 1.0, -1.0)
    both = examples_of(latents + turned(sign), mirrored + turned(-sign), left)
    expected = torch.zeros(1, 6, DIM)
    expected[0, 3, 11] = 1.6
    found = learn_interactions(both, ["Hat"], axes)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.15)


def test_interactions_of_a_number_are_for_one_standard_deviation():
    latents, mirrored = faces(4000)
    axes = find_axes(examples_of(latents, mirrored, np.zeros(4000)))
    age = 40 + 12 * torch.randn(4000, generator=torch.Generator().manual_seed(6))
    step = torch.zeros(4000, DIM)
    step[:, 7] = 2 * (age - 40) / 12
    step[:, 8] = 0.4 * step[:, 7] * axes.coordinates(latents)[:, 2]
    labels = torch.where(torch.arange(4000) % 10 == 0, torch.nan, age)  # some are unknown
    both = examples_of(latents + step, mirrored + step, labels, ("Age",), continuous=True)
    expected = torch.zeros(1, 6, DIM)
    expected[0, 2, 8] = 0.8
    found = learn_interactions(both, ["Age"], axes)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


@pytest.mark.parametrize(("count", "is_learned"), [(99, False), (100, True)])
def test_a_hundred_faces_with_and_without_are_enough(count, is_learned):
    latents, mirrored = faces(1200)
    axes = find_axes(examples_of(latents, mirrored, np.zeros(1200)))
    for rare in (np.arange(1200) < count, np.arange(1200) >= count):
        found = learn_interactions(examples_of(latents, mirrored, rare), ["Hat"], axes)
        assert bool(found.any()) == is_learned


def test_what_may_be_noise_is_shrunk_and_what_is_not_is_kept():
    """Beside plain least squares, of labels that mean nothing but for one interaction."""
    latents, mirrored = faces(4000)
    axes = find_axes(examples_of(latents, mirrored, np.zeros(4000)))
    has = torch.rand(4000, generator=torch.Generator().manual_seed(8)) < 0.05
    step = torch.zeros(4000, DIM)
    step[:, 7] = axes.coordinates(latents)[:, 3]
    latents, mirrored = with_step(latents, mirrored, has, step)
    (found,) = learn_interactions(examples_of(latents, mirrored, has), ["Hat"], axes)
    slopes = []
    for group in (False, True):
        both = torch.cat([latents[has == group], mirrored[has == group]]).double()
        design = torch.cat([torch.ones(len(both), 1), axes.coordinates(both)], 1).double()
        slopes.append(torch.linalg.lstsq(design, both).solution[1:])
    plain = slopes[1] - slopes[0]
    kept = found.norm(dim=1) / plain.norm(dim=1)
    assert kept[3] > 0.9
    assert kept[[0, 1, 2, 4, 5]].mean() < 0.5


def test_what_men_are_like_along_the_axes_is_not_taken_for_the_attribute():
    """Men's dimension 9 varies along axis 2; hats, which more men wear, change nothing."""
    latents, mirrored = faces(6000)
    axes = find_axes(examples_of(latents, mirrored, np.zeros(6000)))
    draw = torch.Generator().manual_seed(5)
    male = torch.rand(6000, generator=draw) < 0.5
    hat = torch.rand(6000, generator=draw) < torch.where(male, 0.6, 0.1)
    step = torch.zeros(6000, DIM)
    step[:, 9] = axes.coordinates(latents)[:, 2]
    latents, mirrored = with_step(latents, mirrored, male, step)
    labels = torch.stack([hat, male], 1).numpy()
    both = examples_of(latents, mirrored, labels, ("Hat", "Male"))
    of_hat, of_male = learn_interactions(both, ["Hat", "Male"], axes)
    assert of_hat[2, 9].abs() < 0.1
    assert of_male[2, 9] == pytest.approx(1, abs=0.1)
    alone = examples_of(latents, mirrored, hat, ("Hat",))
    assert learn_interactions(alone, ["Hat"], axes)[0, 2, 9] > 0.3


def test_held_out_and_unlabelled_faces_teach_nothing():
    latents, mirrored = faces(2000)
    axes = find_axes(examples_of(latents, mirrored, np.zeros(2000)))
    has = torch.arange(1500) % 3 == 0
    expected = learn_interactions(
        examples_of(latents[:1500], mirrored[:1500], has.float()), ["Hat"], axes
    )
    labels = torch.cat([has.float(), torch.full((250,), torch.nan), torch.ones(250)])
    held_out = np.arange(2000) >= 1750
    found = learn_interactions(
        examples_of(latents, mirrored, labels, held_out=held_out), ["Hat"], axes
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_without_axes_there_is_nothing_to_learn():
    both = faces(500)
    found = learn_interactions(examples_of(*both, np.arange(500) % 2), ["Hat"], no_axes(DIM))
    assert found.shape == (1, 0, DIM)
