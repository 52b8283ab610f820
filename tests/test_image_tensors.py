"""Pixels become tensors and come back unchanged."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from facevae.data.image_tensors import from_pixels, to_pixels
from facevae.data.images import load_square, save_picture


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_all_levels_come_back_from_images():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    made = from_pixels(levels)
    assert made.shape == (3, 1, 256)
    assert made.dtype == torch.float32
    assert (made.min().item(), made.max().item()) == (0.0, 1.0)
    np.testing.assert_array_equal(to_pixels(made), levels)


@settings(deadline=None)
@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5), st.just(3)),
    )
)
def test_to_pixels_is_the_inverse_of_from_pixels(pixels):
    made = from_pixels(pixels)
    assert made.shape == (len(pixels), 3, *pixels.shape[1:3])
    np.testing.assert_array_equal(to_pixels(made), pixels)


def test_channels_and_rows_stay_where_they_are():
    pixels = random_pixels(2, 4, 5, 3)
    made = from_pixels(pixels)
    assert made[1, 2, 3, 4].item() == pytest.approx(pixels[1, 3, 4, 2] / 255)


def test_to_pixels_rounds_to_the_nearest_level_and_clips():
    made = torch.tensor([-0.5, 0.0, 0.49 / 255, 0.51 / 255, 254.4 / 255, 1.0, 7.0])
    got = to_pixels(made.expand(3, 1, 7))
    assert got[0, :, 0].tolist() == [0, 0, 0, 1, 254, 255, 255]


def test_a_loaded_picture_becomes_an_image_without_a_warning(tmp_path):
    save_picture(tmp_path / "a.png", random_pixels(8, 8, 3))
    pixels = load_square(tmp_path / "a.png", 8)
    assert pixels.flags.writeable  # torch warns about read-only memory, once per process
    assert from_pixels(pixels).shape == (3, 8, 8)
