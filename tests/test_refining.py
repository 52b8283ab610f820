"""Directions refined through the decoder: more of what was asked shows, and α means what it did."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CONFIG, tiny_bundle
from torch import nn

from facevae.attributes.interactions import no_axes
from facevae.attributes.samples import Examples
from facevae.errors import DataError
from facevae.latent_space import judging, refining
from facevae.latent_space.edits import plan_edit
from facevae.latent_space.judging import Judge
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
            "_FEWEST": 100,
            "_FEWEST_OF_KIND": 20,
            "_FEWEST_HELD_OUT": 5,
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
        done = eyes(decode(model.vae, edited))[:, 0] * alphas[:, 0] > 0
        shares.append((done[has].float().mean() + done[~has].float().mean()).item() / 2)
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


def test_what_is_told_is_true_of_the_model_with_all_that_was_refined(eyes):
    """Directions of gender, smile and glasses are in each other's edits too."""
    bundle, examples = tiny_bundle(), examples_of(eyes)
    refined, _ = refine_attributes(bundle, examples, NAMES)
    assert len(refined) > 1
    judge = Judge(tiny_bundle(), examples, lambda *_: None)
    for name, effect in refined.items():
        assert judge.measured(tiny_bundle(), name)[1] == effect.before
        assert judge.measured(bundle, name)[1] == effect.after


@pytest.mark.parametrize("limits", [{"_FEWEST_OF_KIND": 130}, {"_FEWEST_HELD_OUT": 40}])
def test_attributes_of_few_faces_are_left_alone(eyes, monkeypatch, limits):
    for name, value in limits.items():
        monkeypatch.setattr(judging, name, value)
    bundle = tiny_bundle()
    refined, reasons = refine_attributes(bundle, examples_of(eyes), NAMES)
    assert refined == {}
    assert set(reasons) == set(NAMES)
    assert all(reason.startswith("too few labelled faces") for reason in reasons.values())
    assert bundle.directions.equal(tiny_bundle().directions)


def test_an_attribute_that_none_of_the_faces_looked_at_has_is_left_alone(eyes, monkeypatch):
    monkeypatch.setattr(judging, "_MOST", 2)
    monkeypatch.setattr(judging, "_FEWEST", 2)
    examples = examples_of(eyes)
    examples.values[[0, COUNT - HELD_OUT - 1], 1] = 1
    _, reasons = refine_attributes(tiny_bundle(), examples, ["Male"])
    assert reasons["Male"].startswith("too few labelled faces")


def test_edits_that_do_enough_are_left_alone(eyes, monkeypatch):
    monkeypatch.setattr(refining, "_WORKS", 0.0)
    bundle = tiny_bundle()
    for continuous in ((), ["Smiling"]):
        examples = examples_of(eyes, continuous=continuous)
        refined, reasons = refine_attributes(bundle, examples, ["Smiling"])
        assert (refined, reasons) == ({}, {"Smiling": "its edits do enough already"})


def test_what_a_classifier_does_not_see_is_left_alone(eyes, monkeypatch):
    monkeypatch.setattr(judging, "_CLEAR", 1.01)
    _, reasons = refine_attributes(tiny_bundle(), examples_of(eyes), ["Smiling"])
    assert reasons == {"Smiling": "a classifier does not see it well"}


def test_a_refinement_that_does_not_help_is_not_kept(eyes, monkeypatch):
    monkeypatch.setattr(refining, "_LEARNING_RATE", 50.0)
    bundle, before = tiny_bundle(), tiny_bundle()
    refined, reasons = refine_attributes(bundle, examples_of(eyes), ["Smiling"])
    assert (refined, reasons) == ({}, {"Smiling": "it would not help"})
    assert bundle.directions.equal(before.directions)


@pytest.mark.parametrize("weight", ["_HELD", "_COLOURS"])
def test_what_changes_besides_speaks_against_an_edit(eyes, monkeypatch, weight):
    bundle, examples = tiny_bundle(), examples_of(eyes)
    losses = []
    for value in (0.0, 1.0, 2.0):
        monkeypatch.setattr(judging, weight, value)
        judge = Judge(bundle, examples, lambda *_: None)
        losses.append(judge.measured(bundle, "Smiling")[0])
    assert losses[1] > losses[0] + 1e-3
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


def test_labels_of_what_is_held_still_may_have_another_name(eyes):
    examples = examples_of(eyes)
    losses = []
    for names in (NAMES, ("Smiling", "Male", "glasses"), ("Smiling", "Male", "something else")):
        judge = Judge(tiny_bundle(), replace(examples, names=names), lambda *_: None)
        losses.append(judge.measured(tiny_bundle(), "Smiling")[0])
    assert losses[0] == losses[1] > losses[2]


def test_models_whose_directions_do_not_vary_are_refined_too(eyes):
    bundle = tiny_bundle()
    bundle.axes = no_axes(CONFIG.latent_dim)
    bundle.interactions = bundle.interactions[:, :0]
    refined, _ = refine_attributes(bundle, examples_of(eyes), ["Smiling"])
    assert refined["Smiling"].after >= refined["Smiling"].before
    assert bundle.interactions.shape == (4, 0, CONFIG.latent_dim)
    assert not bundle.directions.equal(tiny_bundle().directions)


@pytest.mark.parametrize("held_out", [True, False])
def test_too_few_faces_are_refused(eyes, held_out):
    examples = examples_of(eyes)
    if held_out:
        examples.held_out[:] = False
    else:
        examples.values[90:] = np.nan
    with pytest.raises(DataError, match="is held out" if held_out else "too few to refine"):
        refine_attributes(tiny_bundle(), examples, ["Smiling"])


def test_of_many_faces_some_are_looked_at(eyes, monkeypatch):
    monkeypatch.setattr(judging, "_MOST", 110)
    monkeypatch.setattr(judging, "_MOST_HELD_OUT", 30)
    told = []
    refine_attributes(
        tiny_bundle(), examples_of(eyes), ["Smiling"], lambda *step: told.append(step)
    )
    assert ("Drawing faces", 140, 140) in told
