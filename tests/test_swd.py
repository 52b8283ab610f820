"""The sliced Wasserstein distance against its definition, written out plainly."""

import numpy as np
import pytest
import torch

from facevae.measures import swd
from facevae.measures.swd import SlicedWasserstein, laplacian_pyramid, level_sizes


def pictures(seed, count=24, size=32):
    """Fields of colour with noise on them."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=draw)
    fine = torch.rand(count, 3, size, size, generator=draw)
    return 0.8 * coarse.repeat_interleave(8, 2).repeat_interleave(8, 3) + 0.2 * fine


def plain_smooth(image):
    """One channel under the binomial kernel, mirrored at the edges."""
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    padded = np.pad(image, 2, mode="reflect")
    height, width = image.shape
    return np.array(
        [
            [(padded[y : y + 5, x : x + 5] * kernel).sum() for x in range(width)]
            for y in range(height)
        ]
    )


def test_levels_halve_down_to_16():
    assert level_sizes(128) == [128, 64, 32, 16]
    assert level_sizes(16) == [16]
    assert [band.shape[-1] for band in laplacian_pyramid(pictures(0, 2, 64))] == [64, 32, 16]


def test_a_pyramid_is_what_burt_and_adelson_define():
    image = pictures(1, 1)
    fine, coarse = laplacian_pyramid(image)
    plane = image[0, 1].double().numpy()
    expected_coarse = plain_smooth(plane)[::2, ::2]
    spread = np.zeros_like(plane)
    spread[::2, ::2] = expected_coarse
    np.testing.assert_allclose(coarse[0, 1], expected_coarse, atol=1e-6)
    np.testing.assert_allclose(fine[0, 1], plane - 4 * plain_smooth(spread), atol=1e-6)


def test_a_flat_picture_has_no_detail():
    fine, coarse = laplacian_pyramid(torch.full((1, 3, 32, 32), 0.7))
    assert fine.abs().max() < 1e-6
    torch.testing.assert_close(coarse, torch.full((1, 3, 16, 16), 0.7))


def test_the_distance_is_its_definition():
    real, made = pictures(2, 5), pictures(3, 5) ** 2
    found = SlicedWasserstein(real.split(2), 32, seed=4)(made.split(3))
    for side, a, b in zip((32, 16), laplacian_pyramid(real), laplacian_pyramid(made), strict=True):
        rows, columns, directions = swd._draw_places(
            side, swd.generator(4, swd.Stream.PATCHES, side)
        )
        corners = list(zip(rows[:, 0, 0].tolist(), columns[:, 0, 0].tolist(), strict=True))
        assert len(corners) == 64
        patches = [
            np.array(
                [x[:, r : r + 7, c : c + 7].double().numpy() for x in band for r, c in corners]
            )
            for band in (a, b)
        ]
        mean = patches[0].mean((0, 2, 3), keepdims=True)
        deviation = patches[0].std((0, 2, 3), keepdims=True)
        projected = [
            np.sort(((p - mean) / deviation).reshape(len(p), -1) @ directions.double().numpy(), 0)
            for p in patches
        ]
        expected = 1000 * np.abs(projected[0] - projected[1]).mean()
        assert found[str(side)] == pytest.approx(expected, rel=1e-4)


def test_directions_have_length_one_and_patches_lie_within():
    rows, columns, directions = swd._draw_places(16, torch.Generator().manual_seed(0))
    assert directions.shape == (147, 128)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(128))
    assert rows.min() >= 0
    assert max(rows.max(), columns.max()) <= 15


def test_a_set_is_nowhere_from_itself_in_any_order_and_batches():
    real = pictures(5)
    distance = SlicedWasserstein(real.split(24), 32)
    assert max(distance(real.flip(0).split(7)).values()) < 0.01


def test_blur_shows_at_the_finest_level_and_colour_at_the_coarsest():
    real = pictures(6, 40)
    distance = SlicedWasserstein(real.split(16), 32)
    floor = distance(pictures(7, 40).split(16))
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1, count_include_pad=False)
    assert distance(blurred.split(16))["32"] > 5 * floor["32"]
    tinted = real * torch.tensor([1, 0.4, 0.4]).view(1, 3, 1, 1)
    assert distance(tinted.split(16))["16"] > 3 * floor["16"]


def test_the_same_seed_gives_the_same_distance_and_another_does_not():
    real, made = pictures(8), pictures(9)
    first, again, other = (SlicedWasserstein([real], 32, seed=s)([made]) for s in (0, 0, 1))
    assert first == again != other


def test_flat_sets_have_a_distance():
    flat = torch.full((3, 3, 32, 32), 0.5)
    assert all(np.isfinite(v) for v in SlicedWasserstein([flat], 32)([flat]).values())
