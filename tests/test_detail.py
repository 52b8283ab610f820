"""What edits change of a photo, and what they leave."""

import numpy as np
import pytest

from facevae.faces.detail import redrawn, share_kept, with_detail, with_details

SIDE = 48
LEFT, RIGHT = slice(0, 12), slice(36, 48)  # far from the middle, where half pictures meet


def flat(level):
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def noise(seed, low=60, high=200):
    return np.random.default_rng(seed).integers(low, high, (SIDE, SIDE, 3), dtype=np.uint8)


def halves(left, right):
    """The left half of one picture beside the right half of another."""
    return np.concatenate([left[:, : SIDE // 2], right[:, SIDE // 2 :]], axis=1)


def test_all_is_kept_where_nothing_changes_and_nothing_where_all_does():
    before = noise(0)
    kept = share_kept(halves(before, 255 - before), before)
    assert kept.shape == (SIDE, SIDE)
    assert (kept[:, LEFT] == 255).all()
    assert kept[:, RIGHT].max() < 40
    assert (np.diff(kept.mean(0)) <= 1).all(), "without an edge between them"


def test_without_a_change_the_photo_stays():
    photo = noise(0)
    assert np.array_equal(with_detail(noise(1), noise(1), photo), photo)


def test_detail_goes_where_an_edit_changes_a_lot():
    photo, before = noise(0), flat(130)
    found = with_detail(halves(before, flat(20)), before, photo).astype(int)
    assert np.array_equal(found[:, LEFT], photo[:, LEFT])
    assert abs(found[:, RIGHT] - 20).max() < 3


def test_a_small_change_is_added_to_the_photo():
    photo = noise(0)
    found = with_detail(flat(132), flat(130), photo)
    assert abs(found.astype(int) - photo - 2).max() <= 1


def test_a_face_between_photos_has_some_detail_of_those_that_are_like_it():
    photo, drawn = noise(0), flat(130)
    assert np.array_equal(with_details(drawn, [(1, drawn, photo), (0, drawn, noise(1))]), photo)
    half = with_details(drawn, [(0.5, drawn, photo), (0.5, flat(250), noise(1))])
    assert abs(half - (drawn / 2 + photo / 2)).max() <= 1, "none of the one that is unlike it"
    assert np.array_equal(with_details(drawn, []), drawn)


def test_a_grey_photo_gets_no_colours():
    photo = np.repeat(noise(0)[..., :1], 3, axis=2)
    found = with_detail(noise(1), noise(2), photo)
    assert (found == found[..., :1]).all()


def test_an_edit_is_redrawn_only_where_it_changes_a_lot():
    """By the plain decoder, in the light in which the tuned one drew the face."""
    start, changed = flat(100), halves(flat(100), flat(220))
    tuned_start, tuned = flat(110), noise(1)
    found = redrawn(tuned, changed, tuned_start, start).astype(int)
    assert np.array_equal(found[:, LEFT], tuned[:, LEFT])
    assert abs(found[:, RIGHT] - 230).max() < 4


@pytest.mark.parametrize("level", [0, 255])
def test_nothing_wraps_around(level):
    assert (redrawn(flat(level), flat(level), flat(255 - level), flat(level)) == level).all()
    assert (with_detail(flat(level), flat(255 - level), flat(level)) == level).all()
