"""Metrics against plain implementations of their definitions."""

import math

import numpy as np
import pytest
import torch

from facevae.measures import metrics


def random_images(seed, count=3, height=6, width=7):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_its_definition_of_each_image():
    made, real = random_images(0), random_images(1)
    expected = [
        10 * math.log10(1 / np.mean((a.double().numpy() - b.double().numpy()) ** 2))
        for a, b in zip(made, real, strict=True)
    ]
    assert metrics.psnr(made, real).tolist() == pytest.approx(expected, rel=1e-5)


def test_psnr_of_an_error_of_one_level_of_8_bits():
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


def test_sharpness_ignores_brightness_and_slopes_but_not_blur():
    images = random_images(3, height=16, width=16)
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    assert metrics.sharpness(ramp).item() == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(metrics.sharpness(images * 0.5 + 0.3), metrics.sharpness(images) / 4)
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1)
    assert (metrics.sharpness(blurred) < metrics.sharpness(images) / 2).all()


def test_active_units_are_those_whose_mean_varies():
    rng = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.001, 0.0])  # variances from 1 down past 0.01
    mean = torch.randn(500, 6, generator=rng) * spread + 3
    assert metrics.active_units(mean) == 3
    assert metrics.active_units(mean, threshold=0.1) == 2
    assert metrics.active_units(torch.full((10, 4), 5.0)) == 0


def test_kl_nats_is_that_of_the_joint_distribution():
    rng = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 5, 3, generator=rng, dtype=torch.float64)
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
    rng = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.1, 5.0, 0.2, 2.0])
    latents = 3 + torch.randn(500, 4, generator=rng) * spread
    coordinates, shares = metrics.principal_plane(latents)
    centred = latents - latents.mean(0)
    for axis, dim in ((0, 1), (1, 3)):
        assert torch.corrcoef(torch.stack([coordinates[:, axis], centred[:, dim]]))[0, 1] > 0.99
    expected = np.sort(np.linalg.eigvalsh(np.cov(latents.numpy().T)))[::-1]
    assert shares.tolist() == pytest.approx((expected / expected.sum())[:2].tolist(), rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (2, 3)])
def test_the_principal_plane_of_few_points_or_dimensions_is_finite(shape):
    coordinates, shares = metrics.principal_plane(
        torch.arange(math.prod(shape)).float().view(shape)
    )
    assert coordinates.shape == (shape[0], 2)
    assert coordinates.isfinite().all()
    assert shares.isfinite().all()


def plain_ssim(x, y):
    """SSIM of one channel by Wang et al. 2004, window by window."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (image[top : top + 11, left : left + 11] for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            shared = (window * (a - mean_a) * (b - mean_b)).sum()
            similarity = (2 * mean_a * mean_b + 0.01**2) * (2 * shared + 0.03**2)
            total = (mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)
            found.append(similarity / total)
    return np.mean(found)


def test_ssim_is_its_definition_of_each_image():
    real = random_images(4, count=2, height=14, width=13)
    made = (real + 0.3 * random_images(5, count=2, height=14, width=13)).clamp(0, 1)
    expected = [
        np.mean([plain_ssim(a, b) for a, b in zip(x, y, strict=True)])
        for x, y in zip(made.double().numpy(), real.double().numpy(), strict=True)
    ]
    assert metrics.ssim(made, real).tolist() == pytest.approx(expected, rel=1e-4)


def test_ssim_is_that_of_torchmetrics():
    image = pytest.importorskip("torchmetrics.functional.image")
    real = random_images(6, height=24, width=24)
    made = (0.7 * real + 0.3 * random_images(7, height=24, width=24)).clamp(0, 1)
    _, windows = image.structural_similarity_index_measure(
        made, real, data_range=1.0, reduction="none", return_full_image=True
    )
    expected = windows[..., 5:-5, 5:-5].flatten(1).mean(1)  # those that lie inside the image
    torch.testing.assert_close(metrics.ssim(made, real), expected, rtol=1e-3, atol=1e-4)


def test_ssim_of_the_same_picture_is_one_and_of_its_negative_is_less():
    real = random_images(8, height=16, width=16)
    assert metrics.ssim(real, real).tolist() == pytest.approx([1, 1, 1])
    assert (metrics.ssim(1 - real, real) < 0).all()


def test_the_distance_from_a_standard_normal_is_that_of_the_moments():
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(200_000, 3, generator=rng) * torch.tensor([2.0, 0.5, 0.0])
    mean += torch.tensor([0.0, 1.0, 0.0])
    logvar = torch.tensor([0.0, math.log(0.75), 0.0]).expand_as(mean)
    # the aggregate is N((0, 1, 0), diag(5, 1, 1))
    expected = math.sqrt(1 + (math.sqrt(5) - 1) ** 2)
    assert metrics.normal_distance(mean, logvar) == pytest.approx(expected, rel=1e-2)
    standard = torch.randn(200_000, 3, generator=rng)
    assert metrics.normal_distance(standard, torch.full_like(standard, -30)) < 0.02


def test_the_distance_from_a_standard_normal_sees_dependence_between_dimensions():
    shared = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 2)
    # each is N(0, 1), but the covariance's eigenvalues are 2 and 0
    expected = math.sqrt((math.sqrt(2) - 1) ** 2 + 1)
    assert metrics.normal_distance(shared, torch.full_like(shared, -30)) == pytest.approx(
        expected, rel=1e-2
    )


def test_the_nearest_is_found_with_its_distance():
    rng = torch.Generator().manual_seed(0)
    others = torch.randn(50, 4, generator=rng)
    points = torch.cat([torch.randn(9, 4, generator=rng), others[33:34]])
    distances, rows = metrics.nearest(points, others, chunk=4)
    every = (points[:, None] - others[None]).double().norm(dim=2)
    assert rows.tolist() == every.argmin(1).tolist()
    torch.testing.assert_close(distances, every.min(1).values.float())
    assert (rows[-1], distances[-1]) == (33, 0)
