"""Decoders that are tuned to photos."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from tiny import CONFIG, tiny_bundle, with_texture

from facevae.config import ModelConfig
from facevae.data.image_tensors import from_pixels, to_pixels
from facevae.faces.alignment import load_face
from facevae.faces.detail import redrawn
from facevae.latent_space import tuning
from facevae.latent_space.edits import measure_edit, plan_edit
from facevae.latent_space.latents import decode, encode_pixels, latents_of_seeds
from facevae.latent_space.tuning import draw_edits, tune
from facevae.measures.metrics import psnr
from facevae.models.loading import load_model

PORTRAIT = ROOT / ".github" / "pictures" / "astronaut.png"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """The small networks of these tests are untrained, and have far to go."""
    monkeypatch.setattr(tuning, "_LEARNING_RATE", 0.02)


def faces(count, size=CONFIG.size):
    return np.stack([np.asarray(draw_face(i, size)) for i in range(count)])


def likeness(bundle, pixels, texture=0.0):
    drawn = decode(bundle.vae, encode_pixels(bundle, pixels), texture)
    return psnr(drawn, from_pixels(pixels))


def tuned(bundle, pixels, texture=0.0, **more):
    return tune(bundle, from_pixels(pixels), encode_pixels(bundle, pixels), texture, **more)


@pytest.mark.parametrize("texture", [0.0, 0.3, 1.0])
def test_a_tuned_decoder_draws_the_photo_far_better(texture):
    bundle, pixels = with_texture(tiny_bundle()), faces(1)
    found = tuned(bundle, pixels, texture)
    assert torch.equal(found.before, likeness(bundle, pixels, texture))
    assert torch.equal(found.after, likeness(found.bundle, pixels, texture))
    assert found.after > found.before + 3


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
    # what is shared takes no memory, and gradients none either
    assert found.vae.encoder is bundle.vae.encoder
    assert all(parameter.grad is None for parameter in found.vae.parameters())


@pytest.mark.parametrize("more", [{"residual_blocks": 1}, {"dropout": 0.3}], ids=str)
def test_other_decoders_and_normal_priors_are_tuned_too(more):
    config = ModelConfig(size=32, latent_dim=8, filters=(8, 16), **more)
    bundle, pixels = tiny_bundle(config, kind="normal"), faces(1)
    found = tuned(bundle, pixels)
    assert found.after > found.before + 3


@pytest.mark.parametrize(("count", "num_steps"), [(1, 60), (3, 60), (4, 80), (7, 140)])
def test_each_photo_takes_part_in_sixty_steps(count, num_steps, monkeypatch):
    monkeypatch.setattr(tuning, "_BATCH", 3)
    told = []
    found = tuned(tiny_bundle(), faces(count), progress=lambda *counts: told.append(counts))
    assert (found.after > found.before + 1).all()
    assert told == [(step, num_steps) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_does_not_matter_whether_the_caller_computes_gradients(mode):
    bundle, pixels = tiny_bundle(), faces(1)
    images, latents = from_pixels(pixels), encode_pixels(bundle, pixels)
    expected = tuned(bundle, pixels)
    bundle.vae.requires_grad_(requires_grad=False)
    with mode():
        images, latents = images.clone(), latents.clone()
        if mode is torch.enable_grad:
            images, latents = images.requires_grad_(), latents.requires_grad_()
        found = tune(bundle, images, latents, 0.0)
    assert torch.equal(found.after, expected.after)
    assert images.grad is None
    assert not found.after.requires_grad


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

    monkeypatch.setattr(tuning, "_LOCALITY", 3.0)
    held = tuned(bundle, pixels)
    monkeypatch.setattr(tuning, "_LOCALITY", 0.0)
    free = tuned(bundle, pixels)
    assert moved(held.bundle) < 0.8 * moved(free.bundle)


def test_a_portrait_and_its_edits_keep_their_likeness(monkeypatch):
    """With the model in the package, on a photo that it has not seen."""
    monkeypatch.undo()
    bundle, _ = load_model()
    pixels = load_face(PORTRAIT, bundle.config.size, bundle.framing)
    found = tuned(bundle, pixels[None])
    assert found.after > found.before + 6
    latent = encode_pixels(bundle, pixels[None])
    for name in ("glasses", "hat", "smile"):
        edit = plan_edit(bundle, [name])
        ends = torch.cat([latent, edit.apply(latent, edit.signs[None])])
        plain, drawn = (
            measure_edit(bundle, edit, decode(vae, ends)).moved[0]
            for vae in (bundle.vae, found.bundle.vae)
        )
        # as the encoder sees it, an edit does what it would have done
        assert drawn[0] > 0.88 * plain[0] > 0.5, name
        assert drawn[1:].abs().max() < 0.17, name


def test_edits_are_drawn_by_both_decoders():
    """By the tuned one where they change little: all of an edit by nothing."""
    bundle, pixels = with_texture(tiny_bundle()), faces(1)
    found = tuned(bundle, pixels, 0.5).bundle
    latent = encode_pixels(bundle, pixels)[0]
    ends = torch.stack([latent, *latents_of_seeds(bundle, [3])])
    (start,), (same, far) = draw_edits(bundle.vae, found.vae, latent[None], ends, 0.5)
    by_tuned, by_plain = (to_pixels(decode(vae, ends, 0.5)) for vae in (found.vae, bundle.vae))
    assert np.array_equal(start, by_tuned[0])
    assert np.array_equal(same, by_tuned[0])
    assert np.array_equal(far, redrawn(by_tuned[1], by_plain[1], by_tuned[0], by_plain[0]))
    _, plain = draw_edits(bundle.vae, bundle.vae, latent[None], ends, 0.5)
    assert np.array_equal(plain, by_plain)


def test_edits_of_several_faces_are_drawn_each_from_its_own():
    bundle, pixels = with_texture(tiny_bundle()), faces(1)
    found = tuned(bundle, pixels, 0.5).bundle
    starts, edited = latents_of_seeds(bundle, [3, 4]), latents_of_seeds(bundle, [5, 6])
    vaes = bundle.vae, found.vae
    together = draw_edits(*vaes, starts, edited, 0.5)
    for i in range(2):
        (start,), (alone,) = draw_edits(*vaes, starts[i, None], edited[i, None], 0.5)
        assert abs(together[0][i].astype(int) - start).max() <= 1
        assert abs(together[1][i].astype(int) - alone).max() <= 1


@pytest.mark.parametrize("rate", [0.0, 1e6, float("inf")])
def test_a_decoder_that_gets_no_better_stays_as_it_is(rate, monkeypatch):
    bundle, pixels = tiny_bundle(), faces(1)
    monkeypatch.setattr(tuning, "_LEARNING_RATE", rate)
    found = tuned(bundle, pixels)
    assert found.bundle is bundle
    assert torch.equal(found.after, found.before)


def test_a_photo_that_is_drawn_perfectly_is_not_spoiled():
    bundle = tiny_bundle()
    latents = latents_of_seeds(bundle, [0])
    drawn = to_pixels(decode(bundle.vae, latents))
    found = tune(bundle, from_pixels(drawn), latents, 0.0)
    assert found.before > 55  # all but rounding
    assert found.after >= found.before
    assert all(tensor.isfinite().all() for tensor in found.bundle.vae.parameters())
