"""Copies of training faces are detected; new faces are as far away as held-out ones."""

import numpy as np
import pytest
import torch

from facevae.data.batches import batches_of
from facevae.data.dataset import Faces
from facevae.evaluation.novelty import measure_novelty
from facevae.latent_space.latents import posteriors

CPU = torch.device("cpu")


class Shrinker:
    """Encodes faces as 4 × 4 thumbnails, with posteriors of little variance."""

    def encode(self, images):
        small = torch.nn.functional.avg_pool2d(images, 8).flatten(1)
        return small, torch.full_like(small, -12.0)


@pytest.fixture(scope="module")
def faces():
    coarse = np.random.default_rng(0).integers(0, 256, (330, 4, 4, 3), np.uint8)
    pixels = coarse.repeat(8, axis=1).repeat(8, axis=2)
    rows = np.arange(330)
    return Faces(pixels, [str(i) for i in rows], rows[:300], rows[300:], [], "")


def draws(count, seed=1):
    """Latents of new faces, from the distribution of all faces."""
    levels = torch.randint(256, (count, 48), generator=torch.Generator().manual_seed(seed))
    return levels / 255


def test_new_faces_are_as_far_away_as_held_out_ones(faces):
    found = measure_novelty(Shrinker(), faces, draws(200)).figures()
    assert found["ratio"] == pytest.approx(1, abs=0.08)
    assert (found["num_samples"], found["num_held_out"]) == (200, 30)


def test_copies_are_near_and_their_originals_are_shown(faces):
    mean, _ = posteriors(Shrinker(), batches_of(faces, faces.train[40:60], CPU))
    found = measure_novelty(Shrinker(), faces, mean)
    assert found.figures()["ratio"] < 0.05
    assert found.samples.max() < 1e-3
    assert np.array_equal(found.neighbours, faces.pixels[40:56])


def test_a_copy_of_a_mirrored_face_is_detected(faces):
    flipped = next(batches_of(faces, faces.train[7:8], CPU)).flip(-1)
    found = measure_novelty(Shrinker(), faces, Shrinker().encode(flipped)[0])
    assert found.samples.max() < 1e-3
    assert np.array_equal(found.neighbours[0], faces.pixels[7][:, ::-1])


def test_the_distance_does_not_depend_on_the_scale_of_the_latents(faces):
    class Louder(Shrinker):
        def encode(self, images):
            mean, logvar = super().encode(images)
            return 50 * mean, logvar + 2 * np.log(50)

    one = measure_novelty(Shrinker(), faces, draws(50)).figures()
    other = measure_novelty(Louder(), faces, 50 * draws(50)).figures()
    assert other["samples"] == pytest.approx(one["samples"], rel=1e-3)
    assert other["held_out"] == pytest.approx(one["held_out"], rel=1e-3)


def test_repeated_measurements_are_equal(faces):
    one, two = (measure_novelty(Shrinker(), faces, draws(50), seed=3) for _ in range(2))
    assert one.figures() == two.figures()
