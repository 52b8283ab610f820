"""Directions refined through the decoder: more of what was asked shows, and α means what it did."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_bundle
from torch import nn

from facevae.attributes.samples import Examples
from facevae.errors import DataError
from facevae.latent_space import judging, refining
from facevae.latent_space.edits import plan_edit
from facevae.latent_space.latents import decode, latents_of_seeds
from facevae.latent_space.refining import refine_attributes

COUNT, HELD_OUT = 240, 60
NAMES = ("Smiling", "Male", "Eyeglasses")


class Colours(nn.Module):
    """A classifier of flat facts: how red, green and blue parts of a picture are.

    Centred over the faces of the tiny model, so that about half have each.
    """

    def __init__(self, gain=8.0):
        super().__init__()
        self.gain = gain
        self.register_buffer("centre", torch.zeros(len(NAMES)))
        self.centre.copy_(self(pictures()).median(0).values)

    def forward(self, images):
        halves = images[..., :16].mean((2, 3)), images[..., 16:].mean((2, 3))
        facts = [halves[0][:, 0] - halves[1][:, 0], halves[0][:, 1], halves[1][:, 2]]
        return self.gain * torch.stack(facts, 1) - self.centre


def latents():
    return latents_of_seeds(tiny_bundle(), list(range(COUNT)))


def pictures():
    return decode(tiny_bundle().vae, latents())


@pytest.fixture
def eyes(monkeypatch):
    """Have pictures judged by their colours, seen as they are, and little of everything."""
    found = Colours()
    for module, values in {
        judging: {
            "train_classifier": lambda *_: found,
            "reduced": lambda images: images,
            "SIDE": 32,
            "FEWEST": 100,
            "_FEWEST_OF_KIND": 20,
            "_COLOURS": 0.0,
        },
        refining: {"_STEPS": 40, "_WORKS": 1.1, "_LEARNING_RATE": 0.2, "_PRIOR": 1e-3},
    }.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    return found


def examples_of(eyes, *, continuous=()):
    """Labels as the classifier sees them, of samples, with the last of them held out."""
    with torch.no_grad():
        seen = eyes(pictures()).numpy()
    is_continuous = np.array([name in continuous for name in NAMES])
    return Examples(
        latents(),
        latents(),
        np.where(is_continuous, seen, seen > 0).astype(np.float32),
        NAMES,
        is_continuous,
        np.arange(COUNT) >= COUNT - HELD_OUT,
    )


def test_more_of_what_was_asked_shows(eyes):
    bundle = tiny_bundle()
    told = []
    refined, reasons = refine_attributes(
        bundle, examples_of(eyes), ["Smiling"], lambda *step: told.append(step)
    )
    assert reasons == {}
    effect = refined["Smiling"]
    assert effect.after > effect.before + 0.15
    assert {title for title, *_ in told} == {"Drawing faces", "Refining"}
    assert told[-1] == ("Refining", 40, 40)

    # that is what an edit does to held-out faces now
    faces = latents()[-HELD_OUT:]
    has = examples_of(eyes).values[-HELD_OUT:, 0] > 0
    alphas = torch.where(torch.from_numpy(has), -1.5, 1.5)[:, None]
    shares = []
    for model in (tiny_bundle(), bundle):
        edited = plan_edit(model, ["Smiling"]).apply(faces, alphas)
        seen = eyes(decode(model.vae, edited))[:, 0]
        shares.append((seen * alphas[:, 0] > 0).float().mean().item())
    assert shares == pytest.approx([effect.before, effect.after], abs=0.02)


def test_a_number_moves_by_its_standard_deviation(eyes):
    """For α = 1, or nearer to it than before."""
    bundle = tiny_bundle()
    examples = examples_of(eyes, continuous=["Smiling"])
    refined, _ = refine_attributes(bundle, examples, ["Smiling"])
    effect = refined["Smiling"]
    assert 1 > effect.after > 3 * effect.before > 0


def test_scores_move_by_alpha_as_before_and_those_held_still_do_not(eyes):
    bundle, old = tiny_bundle(), tiny_bundle()
    refined, _ = refine_attributes(bundle, examples_of(eyes), NAMES)
    assert refined
    for name in refined:
        edit = plan_edit(bundle, [name])
        assert edit.kept == plan_edit(old, [name]).kept
        faces = latents()[:20]
        moved = edit.scores(edit.apply(faces, torch.full((20, 1), 2.0))) - edit.scores(faces)
        expected = torch.zeros(20, 1 + len(edit.kept))
        expected[:, 0] = 2
        torch.testing.assert_close(moved, expected, atol=1e-3, rtol=1e-3)
        row = [a.name for a in bundle.attributes].index(name)
        assert not bundle.directions[row].equal(old.directions[row])
        assert not bundle.interactions[row].equal(old.interactions[row])


def test_all_else_of_a_model_stays_as_it_is(eyes):
    bundle, old = tiny_bundle(), tiny_bundle()
    refine_attributes(bundle, examples_of(eyes), ["Smiling"])
    others = [i for i, a in enumerate(bundle.attributes) if a.name != "Smiling"]
    assert bundle.directions[others].equal(old.directions[others])
    assert bundle.interactions[others].equal(old.interactions[others])
    assert bundle.scorers.equal(old.scorers)
    assert bundle.attributes == old.attributes
    weights = dict(old.vae.named_parameters())
    for name, parameter in bundle.vae.named_parameters():
        assert parameter.equal(weights[name])
        assert parameter.requires_grad
        assert parameter.grad is None


def test_the_same_comes_of_it_each_time_whoever_asks(eyes):
    found = []
    for mode in (torch.enable_grad, torch.inference_mode):
        bundle = tiny_bundle()
        torch.manual_seed(len(found))
        with mode():
            refine_attributes(bundle, examples_of(eyes), NAMES)
        found.append(bundle)
    assert found[0].directions.equal(found[1].directions)
    assert found[0].interactions.equal(found[1].interactions)


def test_of_those_that_are_not_refined_the_reason_is_told(eyes, monkeypatch):
    examples = examples_of(eyes)
    examples.values[:170, 1] = np.nan
    bundle = tiny_bundle()
    bundle.attributes[0] = replace(bundle.attributes[0], method="mean")
    before = bundle.directions.clone()
    refined, reasons = refine_attributes(bundle, examples, NAMES)
    assert set(refined) == {"Smiling"}
    assert reasons == {
        "Male": "fewer than 20 labelled faces have it, or lack it",
        "Eyeglasses": "it was learned by the paper's means",
    }
    monkeypatch.setattr(refining, "_WORKS", 0.0)
    _, reasons = refine_attributes(bundle, examples, ["Smiling"])
    assert "already" in reasons["Smiling"]
    monkeypatch.setattr(judging, "_CLEAR", 1.01)
    _, reasons = refine_attributes(bundle, examples, ["Smiling"])
    assert "does not see it" in reasons["Smiling"]
    others = [0, *range(2, len(before))]
    assert bundle.directions[others].equal(before[others])


def test_a_refinement_that_does_not_help_is_not_kept(eyes, monkeypatch):
    monkeypatch.setattr(refining, "_LEARNING_RATE", 50.0)
    bundle, before = tiny_bundle(), tiny_bundle()
    refined, reasons = refine_attributes(bundle, examples_of(eyes), ["Smiling"])
    assert (refined, reasons) == ({}, {"Smiling": "it would not help"})
    assert bundle.directions.equal(before.directions)


def test_a_number_that_no_held_out_face_has_is_not_measured(eyes):
    examples = examples_of(eyes, continuous=["Smiling"])
    examples.values[-HELD_OUT:, 0] = np.nan
    _, reasons = refine_attributes(tiny_bundle(), examples, ["Smiling"])
    assert reasons == {"Smiling": "no held-out faces have it, or none lack it"}


@pytest.mark.parametrize("held_out", [True, False])
def test_too_few_faces_are_refused(eyes, held_out):
    examples = examples_of(eyes)
    if held_out:
        examples.held_out[:] = False
    else:
        examples.values[90:] = np.nan
    with pytest.raises(DataError, match="too few to refine"):
        refine_attributes(tiny_bundle(), examples, ["Smiling"])


def test_of_many_faces_some_are_looked_at(eyes, monkeypatch):
    monkeypatch.setattr(judging, "_MOST", 110)
    monkeypatch.setattr(judging, "_MOST_HELD_OUT", 30)
    told = []
    refine_attributes(
        tiny_bundle(), examples_of(eyes), ["Smiling"], lambda *step: told.append(step)
    )
    assert ("Drawing faces", 140, 140) in told
