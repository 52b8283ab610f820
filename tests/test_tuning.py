"""Decoders that are tuned to photos."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from tiny import CONFIG, tiny_bundle, with_texture

from facevae.config import ModelConfig
from facevae.data.image_tensors import from_pixels
from facevae.faces.alignment import load_face
from facevae.latent_space import tuning
from facevae.latent_space.edits import measure_edit, plan_edit
from facevae.latent_space.latents import decode, encode_pixels, latents_of_seeds
from facevae.latent_space.tuning import tune
from facevae.models.loading import load_model

PORTRAIT = ROOT / ".github" / "pictures" / "astronaut.png"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """The small networks of these tests are untrained, and have far to go."""
    monkeypatch.setattr(tuning, "_LEARNING_RATE", 0.02)


def faces(count, size=CONFIG.size):
    return np.stack([np.asarray(draw_face(i, size)) for i in range(count)])


def errors(bundle, pixels, texture=0.0):
    drawn = decode(bundle.vae, encode_pixels(bundle, pixels), texture)
    return (drawn - from_pixels(pixels)).square().mean((1, 2, 3))


def tuned(bundle, pixels, texture=0.0, **more):
    return tune(bundle, from_pixels(pixels), encode_pixels(bundle, pixels), texture, **more)


@pytest.mark.parametrize("texture", [0.0, 0.3, 1.0])
def test_a_tuned_decoder_draws_the_photo_far_better(texture):
    bundle, pixels = with_texture(tiny_bundle()), faces(1)
    found = tuned(bundle, pixels, texture)
    assert torch.equal(found.before, errors(bundle, pixels, texture))
    assert torch.equal(found.after, errors(found.bundle, pixels, texture))
    assert found.after < 0.5 * found.before


def test_only_the_decoder_of_a_copy_changes():
    bundle, pixels = tiny_bundle(), faces(2)
    before = {name: tensor.clone() for name, tensor in bundle.vae.state_dict().items()}
    found = tuned(bundle, pixels).bundle
    after, kept = found.vae.state_dict(), bundle.vae.state_dict()
    assert all(torch.equal(kept[name], before[name]) for name in before)
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    # nor the statistics of batch norm, which a single photo would spoil
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert replace(found, vae=bundle.vae) == bundle


def test_residual_decoders_and_normal_priors_are_tuned_too():
    config = ModelConfig(size=32, latent_dim=8, filters=(8, 16), residual_blocks=1)
    bundle, pixels = tiny_bundle(config, kind="normal"), faces(1)
    found = tuned(bundle, pixels)
    assert found.after < 0.5 * found.before


def test_of_more_photos_than_a_step_takes_each_is_tuned_to(monkeypatch):
    monkeypatch.setattr(tuning, "_BATCH", 3)
    told = []
    found = tuned(tiny_bundle(), faces(7), progress=lambda *counts: told.append(counts))
    assert (found.after < found.before).all()
    total = 3 * tuning.NUM_STEPS
    assert told == [(step, total) for step in range(1, total + 1)]


def test_the_same_photo_is_tuned_to_alike():
    bundle, pixels = tiny_bundle(), faces(1)
    first, second = (tuned(bundle, pixels).bundle.vae.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_around_the_photo_the_decoder_is_held_to_what_it_was(monkeypatch):
    """So that edits do to a photo what they would have done without."""
    bundle, pixels = tiny_bundle(), faces(1)
    latents = encode_pixels(bundle, pixels)
    around = latents.lerp(latents_of_seeds(bundle, list(range(100, 132))), 0.7)

    def moved(found):
        return (decode(found.vae, around) - decode(bundle.vae, around)).square().mean()

    monkeypatch.setattr(tuning, "_HOLD", 3.0)
    held = tuned(bundle, pixels)
    monkeypatch.setattr(tuning, "_HOLD", 0.0)
    free = tuned(bundle, pixels)
    assert moved(held.bundle) < 0.8 * moved(free.bundle)


def test_a_portrait_and_its_edits_keep_their_likeness(monkeypatch):
    """With the model in the package, on a photo that it has not seen."""
    monkeypatch.undo()
    bundle, _ = load_model()
    pixels = load_face(PORTRAIT, bundle.config.size, bundle.framing)
    found = tuned(bundle, pixels[None])
    assert found.after < 0.25 * found.before  # 6 dB
    latent = encode_pixels(bundle, pixels[None])
    for name in ("glasses", "hat", "smile"):
        edit = plan_edit(bundle, [name])
        ends = torch.cat([latent, edit.apply(latent, edit.signs[None])])
        plain, drawn = (
            measure_edit(bundle, edit, decode(vae, ends)).moved[0]
            for vae in (bundle.vae, found.bundle.vae)
        )
        # as the encoder sees it, an edit does what it would have done
        assert drawn[0] > 0.8 * plain[0] > 0.5, name
        assert drawn[1:].abs().max() < 0.3, name


@pytest.mark.parametrize("rate", [0.0, 1e6, float("inf")])
def test_a_decoder_that_gets_no_better_stays_as_it_is(rate, monkeypatch):
    bundle, pixels = tiny_bundle(), faces(1)
    monkeypatch.setattr(tuning, "_LEARNING_RATE", rate)
    found = tuned(bundle, pixels)
    assert found.bundle is bundle
    assert torch.equal(found.after, found.before)


def test_a_photo_that_is_drawn_perfectly_stays_so():
    bundle = tiny_bundle()
    latents = latents_of_seeds(bundle, [0])
    images = decode(bundle.vae, latents)
    assert tune(bundle, images, latents, 0.0).after < 1e-6
