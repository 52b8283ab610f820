"""Figures of reconstructions by a coder with known errors."""

import pytest
import torch

from facevae.measures import metrics
from facevae.measures.figures import SCORES, reconstruct


class Dimmer:
    """Reconstructs every image a tenth too dark; its latents are the channels' means."""

    def encode(self, images):
        self.images = images
        mean = images.mean((2, 3))
        return mean, torch.full_like(mean, -2.0)

    def decode(self, _latents, _texture=0.0):
        return self.images * 0.9


def images(count=10):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_scores_do_not_depend_on_the_batch_size():
    real = images()
    for size in (1, 3, 10):
        found = reconstruct(Dimmer(), real.split(size))
        torch.testing.assert_close(found.scores["psnr"], metrics.psnr(real * 0.9, real))
        torch.testing.assert_close(found.mean, real.mean((2, 3)))
        assert found.sharpness == pytest.approx(0.81)


def test_a_custom_score_is_taken_beside_the_others():
    found = reconstruct(Dimmer(), [images()], {**SCORES, "ssim": metrics.ssim})
    assert found.average("ssim") == pytest.approx(
        float(metrics.ssim(images() * 0.9, images()).mean())
    )


def test_the_average_psnr_is_of_images_and_not_of_errors():
    dark, light = torch.full((1, 3, 16, 16), 0.1), torch.full((1, 3, 16, 16), 1.0)
    found = reconstruct(Dimmer(), [dark, light])
    assert found.average("psnr") == pytest.approx(30, abs=1e-3)  # of 40 and 20 dB


def test_figures_of_latents_are_those_of_metrics():
    found = reconstruct(Dimmer(), [images()])
    expected = float(metrics.kl_nats(found.mean, found.logvar).mean())
    assert found.kl_nats == pytest.approx(expected)
    assert found.active_units == metrics.active_units(found.mean)
    assert reconstruct(Dimmer(), [images(1)]).active_units == 3
