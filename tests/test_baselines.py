"""Eigenfaces against a plain decomposition, and the autoencoder against the VAE."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from tiny import CONFIG, TRAIN, Ear, differing, tensors_of, tiny_bundle, tiny_run

from facevae.config import STAGES, TrainConfig
from facevae.data.batches import batches_of
from facevae.data.dataset import Faces, load_faces
from facevae.data.image_tensors import from_pixels
from facevae.errors import DataError, Stopped
from facevae.evaluation import baselines
from facevae.evaluation.baselines import autoencoder_run, fit_eigenfaces
from facevae.latent_space.latents import posteriors
from facevae.models.bundle import load
from facevae.training.training import train

CPU = torch.device("cpu")


@pytest.fixture
def noise():
    """200 pictures of 32 px: 12 directions of decreasing strength, plus noise."""
    rng = np.random.default_rng(0)
    bases = rng.normal(size=(12, 32 * 32 * 3)) * (40 * 0.8 ** np.arange(12))[:, None]
    values = 128 + rng.normal(size=(200, 12)) @ bases + rng.normal(size=(200, 32 * 32 * 3))
    pixels = values.clip(0, 255).astype(np.uint8).reshape(200, 32, 32, 3)
    return Faces(pixels, [str(i) for i in range(200)], np.arange(180), np.arange(180, 200), [], "")


def decomposed(faces):
    images = from_pixels(torch.from_numpy(faces.pixels[faces.train])).flatten(1).double()
    mean = images.mean(0)
    _, values, rows = torch.linalg.svd(images - mean, full_matrices=False)
    return mean, values / np.sqrt(len(images) - 1), rows


def test_eigenfaces_are_the_principal_components(noise, monkeypatch):
    # as with many faces: the initial guess is from a subset, and a batch does not hold all
    monkeypatch.setattr(baselines, "_NUM_FIRST", 40)
    monkeypatch.setattr(baselines, "_CHUNK", 32)
    fitted = fit_eigenfaces(noise, noise.train, 8, CPU)
    mean, deviations, rows = decomposed(noise)
    torch.testing.assert_close(fitted.mean.double(), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(fitted.deviations.double(), deviations[:8], rtol=2e-3, atol=0)
    overlap = (fitted.components.double() @ rows[:8].T).abs()
    torch.testing.assert_close(overlap, torch.eye(8).double(), atol=0.02, rtol=0)


def test_eigenfaces_reconstruct_as_well_as_any_plane_can(noise):
    fitted = fit_eigenfaces(noise, noise.train, 8, CPU)
    mean, _, rows = decomposed(noise)
    images = next(batches_of(noise, noise.held_out, CPU))
    centred = images.flatten(1).double() - mean
    best = (mean + centred @ rows[:8].T @ rows[:8]).clamp(0, 1).view_as(images)
    found = fitted.decode(fitted.encode(images)[0])
    torch.testing.assert_close(found.double(), best, atol=2e-3, rtol=0)


def test_samples_of_eigenfaces_are_spread_as_the_faces_are(noise):
    fitted = fit_eigenfaces(noise, noise.train, 8, CPU)
    drawn = fitted.prior()(torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0)))
    coefficients, logvar = posteriors(fitted, batches_of(noise, noise.train, CPU))
    torch.testing.assert_close(drawn.std(0), coefficients.std(0), rtol=0.03, atol=0)
    assert drawn.mean(0).abs().max() < 0.05 * coefficients.std()
    assert (logvar < -20).all()


def test_eigenfaces_of_few_faces_are_fewer_and_give_those_faces_back(noise):
    fitted = fit_eigenfaces(noise, noise.train[:5], 50, CPU)
    assert len(fitted.components) == 4
    images = next(batches_of(noise, noise.train[:5], CPU))
    torch.testing.assert_close(fitted.decode(fitted.encode(images)[0]), images, atol=1e-3, rtol=0)


def test_one_face_has_no_eigenfaces(noise):
    with pytest.raises(DataError, match="two training faces"):
        fit_eigenfaces(noise, noise.train[:1], 8, CPU)


def test_eigenfaces_are_the_same_each_time_and_tell_how_far_they_are(noise):
    told = []
    one = fit_eigenfaces(noise, noise.train, 8, CPU, lambda *values: told.append(values))
    two = fit_eigenfaces(noise, noise.train, 8, CPU)
    assert one.components.equal(two.components)
    assert told[-1][1] == told[-1][2]
    assert [t[1] for t in told] == sorted(t[1] for t in told)


# ---------------------------------------------------------------- the autoencoder


@pytest.fixture
def faces(tmp_path, faces_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    return load_faces([faces_folder], CONFIG.size, cache=tmp_path / "cache")


def test_the_autoencoder_has_the_models_network_training_and_prior(tmp_path, faces):
    bundle = tiny_bundle()
    bundle.provenance = {"train": TRAIN.to_dict() | {"of_a_later_version": 1}}
    run = autoencoder_run(bundle, faces, tmp_path, CPU)
    assert run.model == bundle.config
    assert run.train == dataclasses.replace(TRAIN, kl_weight=0.0)
    assert run.folder.parent == tmp_path


def test_the_autoencoder_of_a_model_trained_by_time_gets_as_many_epochs(tmp_path, faces):
    bundle = tiny_bundle()
    timed = dataclasses.replace(TRAIN, stages=STAGES, max_seconds=60.0)
    bundle.provenance = {"train": json.loads(json.dumps(timed.to_dict())), "epochs": 7}
    run = autoencoder_run(bundle, faces, tmp_path, CPU)
    assert run.train == dataclasses.replace(TRAIN, kl_weight=0.0, epochs=7)


@pytest.mark.parametrize("provenance", [None, "text", [1]])
def test_a_model_without_training_settings_gets_the_defaults(tmp_path, faces, provenance):
    bundle = tiny_bundle()
    bundle.provenance = {"train": provenance}
    assert autoencoder_run(bundle, faces, tmp_path, CPU).train == TrainConfig(kl_weight=0.0)


def test_instead_of_a_standard_normal_prior_the_autoencoder_gets_a_fitted_gaussian(tmp_path, faces):
    bundle = tiny_bundle()
    bundle.provenance = {"train": TRAIN.to_dict() | {"prior": "normal"}}
    assert autoencoder_run(bundle, faces, tmp_path, CPU).train.prior == "gaussian"


def test_more_epochs_share_a_folder_and_other_settings_get_another(tmp_path, faces):
    bundle = tiny_bundle()
    bundle.provenance = {"train": TRAIN.to_dict()}
    folder = autoencoder_run(bundle, faces, tmp_path, CPU).folder
    longer = autoencoder_run(bundle, faces, tmp_path, CPU, epochs=9)
    assert longer.train.epochs == 9
    assert longer.folder == folder
    bundle.provenance = {"train": TRAIN.to_dict() | {"seed": 77}}
    assert autoencoder_run(bundle, faces, tmp_path, CPU).folder != folder


def test_an_autoencoder_has_no_spread_before_and_after_training(tmp_path, faces):
    config = dataclasses.replace(TRAIN, kl_weight=0.0, prior="gaussian")
    bundle = train(tiny_run(tmp_path / "run", faces, train=config), Ear())
    mean, logvar = posteriors(bundle.vae, batches_of(faces, faces.train, CPU))
    assert (logvar == -30).all()
    # so the prior is as wide as the latents, including those of mirrored faces, and no wider
    drawn = bundle.prior(torch.randn(20_000, CONFIG.latent_dim))
    assert (drawn.std(0) < 1.5 * mean.std(0)).all()
    assert mean.std(0).max() < 0.9  # less than the deviation of 1 that posteriors could add
    again = load(tmp_path / "run" / "model.safetensors")
    assert differing(tensors_of(bundle), tensors_of(again)) == []


def test_without_a_kl_divergence_reconstructions_are_better(tmp_path, faces):
    figures = {}
    for weight in (1.0, 0.0):
        config = dataclasses.replace(TRAIN, epochs=12, kl_weight=weight, prior="gaussian")
        bundle = train(tiny_run(tmp_path / f"{weight}", faces, train=config), Ear())
        figures[weight] = bundle.provenance["figures"]["mse"]
    assert figures[0.0] < figures[1.0]


def test_a_resumed_autoencoder_is_identical_to_one_never_stopped(tmp_path, faces):
    config = dataclasses.replace(TRAIN, kl_weight=0.0)
    whole = train(tiny_run(tmp_path / "whole", faces, train=config), Ear())

    class Impatient(Ear):
        def epoch(self, _figures):
            raise KeyboardInterrupt

    stopped = tiny_run(tmp_path / "stopped", faces, train=config)
    with pytest.raises((Stopped, KeyboardInterrupt)):
        train(stopped, Impatient())
    assert differing(tensors_of(whole), tensors_of(train(stopped, Ear()))) == []
