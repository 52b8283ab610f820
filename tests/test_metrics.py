"""Metrics against their definitions, written out plainly."""

import math

import numpy as np
import pytest
import torch

from facevae import metrics


def random_images(seed, count=3, height=6, width=7):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_its_definition_of_each_image():
    made, real = random_images(0), random_images(1)
    expected = [
        10 * math.log10(1 / np.mean((a.double().numpy() - b.double().numpy()) ** 2))
        for a, b in zip(made, real, strict=True)
    ]
    assert metrics.psnr(made, real).tolist() == pytest.approx(expected, rel=1e-5)


def test_psnr_of_one_level_everywhere_is_that_of_8_bits():
    real = random_images(0) * 0.5
    assert metrics.psnr(real + 1 / 255, real).tolist() == pytest.approx(
        [20 * math.log10(255)] * 3, abs=1e-3
    )


def test_psnr_of_the_same_picture_is_high_and_finite():
    real = random_images(0)
    assert metrics.psnr(real, real).isfinite().all()
    assert metrics.psnr(real, real).min() > 100


def test_sharpness_is_the_variance_of_the_laplacian():
    images = random_images(2)
    for got, image in zip(metrics.sharpness(images), images.double().numpy(), strict=True):
        grey = image.mean(0)
        laplacian = [
            grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x]
            for y in range(1, grey.shape[0] - 1)
            for x in range(1, grey.shape[1] - 1)
        ]
        assert got.item() == pytest.approx(np.var(laplacian, ddof=1), rel=1e-4)


def test_sharpness_knows_no_brightness_and_no_slope_but_knows_blur():
    images = random_images(3, height=16, width=16)
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    assert metrics.sharpness(ramp).item() == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(metrics.sharpness(images * 0.5 + 0.3), metrics.sharpness(images) / 4)
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1)
    assert (metrics.sharpness(blurred) < metrics.sharpness(images) / 2).all()


def test_active_units_are_those_whose_mean_varies():
    draw = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.001, 0.0])  # variances from 1 down past 0.01
    mean = torch.randn(500, 6, generator=draw) * spread + 3
    assert metrics.active_units(mean) == 3
    assert metrics.active_units(mean, threshold=0.1) == 2
    assert metrics.active_units(torch.full((10, 4), 5.0)) == 0


def test_kl_nats_is_that_of_the_joint_distribution():
    draw = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 5, 3, generator=draw, dtype=torch.float64)
    prior = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    expected = [
        torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(m, v.exp().diag()), prior
        ).item()
        for m, v in zip(mean, logvar, strict=True)
    ]
    assert metrics.kl_nats(mean, logvar).tolist() == pytest.approx(expected)


def test_a_histogram_counts_every_value_once():
    values = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    counted = metrics.histogram(values, bins=5)
    expected, edges = np.histogram(values.numpy(), 5)
    assert counted["counts"] == expected.tolist()
    assert (counted["low"], counted["high"]) == (pytest.approx(edges[0]), pytest.approx(edges[-1]))
    assert counted["sum"] == pytest.approx(float(values.sum()), rel=1e-5)
    assert counted["sum_squares"] == pytest.approx(float(values.square().sum()), rel=1e-5)
    assert sum(metrics.histogram(torch.ones(4))["counts"]) == 4


def test_the_principal_plane_is_that_of_most_variance():
    draw = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 5.0, 0.2, 2.0])
    latents = 3 + torch.randn(500, 4, generator=draw) * spread
    places, shares = metrics.principal_plane(latents)
    centred = latents - latents.mean(0)
    for axis, dim in ((0, 1), (1, 3)):
        assert torch.corrcoef(torch.stack([places[:, axis], centred[:, dim]]))[0, 1] > 0.99
    expected = np.sort(np.linalg.eigvalsh(np.cov(latents.numpy().T)))[::-1]
    assert shares.tolist() == pytest.approx((expected / expected.sum())[:2].tolist(), rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (2, 3)])
def test_a_plane_of_hardly_anything_is_flat(shape):
    places, shares = metrics.principal_plane(torch.arange(math.prod(shape)).float().view(shape))
    assert places.shape == (shape[0], 2)
    assert places.isfinite().all()
    assert shares.isfinite().all()
