"""Edits: what they move, what they hold still, and how far they say they went."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import ATTRIBUTES, tiny_bundle

from facevae.attributes.directions import Attribute
from facevae.data.image_tensors import to_pixels
from facevae.errors import UsageError
from facevae.latent_space import edits
from facevae.latent_space.edits import (
    edit_directions,
    edit_faces,
    kept_by_default,
    measure_edit,
    plan_edit,
    relative_distance,
    sum_of_faces,
    without_effect,
)
from facevae.latent_space.latents import decode, encode_pixels, latents_of_seeds
from facevae.models.loading import load_model

NAMES = ["5_o_Clock_Shadow", "Blond_Hair", "Eyeglasses", "Male", "No_Beard", "Smiling"]
NAMES += ["Wavy_Hair", "Wearing_Hat", "Young"]


@pytest.fixture
def bundle():
    return tiny_bundle()


def effects(bundle, edit):
    """How far each of the edit's ways moves every attribute's score, (E, A)."""
    return (edit.etas @ bundle.scorers.T) * edit.signs[:, None]


def column(name):
    return ATTRIBUTES.index(name)


def test_by_default_gender_age_smile_and_glasses_are_held_still(bundle):
    edit = plan_edit(bundle, ["glasses"])
    assert edit.edited == ["Eyeglasses"]
    assert sorted(edit.kept) == ["Male", "Smiling"]
    (moved,) = effects(bundle, edit)
    expected = {"Eyeglasses": 1.0, "Male": 0.0, "Smiling": 0.0}
    for name, value in expected.items():
        assert float(moved[column(name)]) == pytest.approx(value, abs=1e-5)
    assert abs(moved[column("No_Beard")]) > 0.01, "nobody holds that one"


def test_with_nothing_kept_an_edit_is_the_plain_direction(bundle):
    for none in (["none"], ["None"], []):
        edit = plan_edit(bundle, ["Smiling"], none)
        assert edit.kept == []
        torch.testing.assert_close(edit.etas[0], bundle.directions[column("Smiling")])


def test_all_the_others_can_be_kept(bundle):
    for word in ("all", "ALL"):
        edit = plan_edit(bundle, ["male", "smile"], [word])
        assert edit.edited == ["Male", "Smiling"]
        assert edit.kept == ["Eyeglasses", "No_Beard"]
        moved = effects(bundle, edit)
        for row, name in enumerate(edit.edited):
            expected = torch.zeros(len(ATTRIBUTES))
            expected[column(name)] = 1
            torch.testing.assert_close(moved[row], expected, rtol=0, atol=1e-5)


def test_attributes_to_keep_are_known_by_any_of_their_names_once(bundle):
    edit = plan_edit(bundle, ["smile"], ["beard", "no beard", "woman", "MALE"])
    assert edit.kept == ["No_Beard", "Male"]


def test_words_of_the_opposite_turn_the_edit_round(bundle):
    man, woman = (plan_edit(bundle, [word], ["none"]) for word in ("man", "woman"))
    assert man.edited == woman.edited == ["Male"]
    latents, alphas = latents_of_seeds(bundle, [1, 2]), torch.tensor([[0.5], [2.0]])
    torch.testing.assert_close(woman.apply(latents, alphas), man.apply(latents, -alphas))
    beard = plan_edit(bundle, ["beard", "smile"])
    assert beard.signs.tolist() == [-1, 1]
    moved = beard.scores(beard.apply(latents, torch.tensor([[1.0, 0.5]] * 2)))
    moved = moved - beard.scores(latents)
    expected = torch.zeros(len(beard.kept))
    torch.testing.assert_close(
        moved[0], torch.cat([torch.tensor([-1.0, 0.5]), expected]), rtol=0, atol=1e-4
    )


def test_an_edit_adds_alpha_times_its_ways(bundle):
    """w = w_new + Σ α · η, a row of alphas for each face."""
    latents = latents_of_seeds(bundle, [1, 2, 3])
    edit = plan_edit(bundle, ["glasses", "smile"])
    assert edit.apply(latents, torch.zeros(3, 2)).equal(latents)
    alphas = torch.tensor([[0.0, 1.0], [1.5, 0.0], [2.0, -3.0]])
    expected = latents.double().numpy()
    for face, z in enumerate(latents):
        for i in range(2):
            eta = edit.etas[i].double().numpy()
            for row, offset, step in zip(
                bundle.axes.rows, bundle.axes.offsets, edit.interactions[i], strict=True
            ):
                place = min(max(float(row @ z - offset), -2.5), 2.5)
                eta = eta + place * step.double().numpy()
            expected[face] += float(alphas[face, i]) * eta
    np.testing.assert_allclose(edit.apply(latents, alphas).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_scores_move_by_alpha_wherever_a_face_lies(bundle):
    draw = torch.Generator().manual_seed(0)
    latents = 0.3 * torch.randn(50, bundle.config.latent_dim, generator=draw)
    for keep in (None, ["none"], ["all"]):
        edit = plan_edit(bundle, ["glasses", "beard"], keep)
        assert edit.interactions.abs().max() > 0.01
        ends = edit.apply(latents, torch.tensor([[1.5, 2.0]]).expand(50, 2))
        assert not torch.allclose(ends[0] - latents[0], ends[1] - latents[1], atol=0.1)
        moved = edit.scores(ends) - edit.scores(latents)
        expected = torch.tensor([[1.5, -2.0] + [0.0] * len(edit.kept)]).expand_as(moved)
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-3)


def test_steps_keep_what_no_direction_can_take_from_them():
    """As in a damaged file, whose direction moves its own score by nothing."""
    steps, nothing = torch.randn(2, 3, 8), torch.zeros(1, 8)
    assert without_effect(steps, nothing, torch.ones(1, 8)).equal(steps)


def test_what_is_edited_and_not_asked_to_move_is_held_still(bundle):
    """α = 0 of an attribute that is edited too keeps it where it was."""
    edit = plan_edit(bundle, ["smile", "beard"], ["none"])
    latents = latents_of_seeds(bundle, [4])
    after = edit.scores(edit.apply(latents, torch.tensor([[1.0, 0.0]])))
    moved = after - edit.scores(latents)
    torch.testing.assert_close(moved, torch.tensor([[1.0, 0.0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("wanted", "keep", "said"),
    [
        (["smile", "SMILING"], None, "attribute=SMILING: is named twice"),
        (["beard", "smile", "no_beard"], None, "attribute=no_beard: is named twice"),
        (["man", "woman"], None, "attribute=woman: is named twice"),
        (["smile"], ["glasses", "Smiling"], "keep=Smiling: is to be edited too"),
        (["smile"], ["nothing"], "keep=nothing: "),
        (["smile"], ["none", "all"], "keep=none: "),
        (["hair"], None, "attribute=hair: "),
    ],
)
def test_what_cannot_be_meant_is_refused(bundle, wanted, keep, said):
    with pytest.raises(UsageError) as caught:
        plan_edit(bundle, wanted, keep)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_what_is_too_alike_is_refused_and_can_be_edited_without_the_other(bundle):
    bundle.directions[column("Male")] = bundle.directions[column("Smiling")]
    bundle.scorers[column("Male")] = bundle.scorers[column("Smiling")]
    with pytest.raises(UsageError, match="too alike"):
        plan_edit(bundle, ["smile"], ["gender"])
    assert plan_edit(bundle, ["smile"], ["glasses"]).kept == ["Eyeglasses"]
    # nobody asked for Male to be kept, so it gives way
    assert plan_edit(bundle, ["smile"]).kept == ["Eyeglasses"]


def test_a_model_without_attributes_has_nothing_to_edit(bundle):
    bare = dataclasses.replace(
        bundle, attributes=[], directions=None, scorers=None, interactions=None
    )
    with pytest.raises(UsageError, match="knows no attributes"):
        plan_edit(bare, ["smile"])


def test_what_was_learned_by_the_papers_means_is_edited_by_them_alone(bundle):
    place = column("Smiling")
    bundle.attributes[place] = dataclasses.replace(bundle.attributes[place], method="mean")
    edit = plan_edit(bundle, ["smile"])
    assert edit.kept == []
    torch.testing.assert_close(edit.etas[0], bundle.directions[place])
    assert plan_edit(bundle, ["smile"], ["male"]).kept == ["Male"], "unless it is asked for"


# ---------------------------------------------------------------- directions of edits


@pytest.fixture
def learned():
    """Directions (5, 12) of which some have much in common, with their scorers."""
    rng = np.random.default_rng(6)
    directions = rng.normal(size=(5, 12))
    directions[1] = 0.6 * directions[0] + 0.8 * directions[1]
    mixing = rng.normal(size=(12, 12))
    scorers = directions @ np.linalg.inv(mixing @ mixing.T / 4 + np.eye(12))
    scorers /= (scorers * directions).sum(1, keepdims=True)
    return torch.from_numpy(directions).float(), torch.from_numpy(scorers).float()


@pytest.mark.parametrize(
    ("edited", "kept"),
    [([0], [1]), ([0], [1, 2, 3]), ([1, 0], []), ([3, 1], [0, 4]), ([2, 4, 0], [1])],
)
def test_an_edit_moves_its_own_score_by_1_and_those_of_others_not_at_all(learned, edited, kept):
    directions, scorers = learned
    etas = edit_directions(directions, scorers, edited, kept)
    effects = etas @ scorers[[*edited, *kept]].T
    torch.testing.assert_close(
        effects, torch.eye(len(edited), len(edited) + len(kept)), rtol=0, atol=1e-5
    )
    assert etas.dtype == torch.float32


def test_with_one_edited_and_none_kept_an_edit_goes_the_plain_direction(learned):
    directions, scorers = learned
    for i in range(5):
        torch.testing.assert_close(edit_directions(directions, scorers, [i])[0], directions[i])


def test_an_edit_is_the_shortest_way_that_the_directions_allow(learned):
    """It is a sum of the directions of what is edited and kept, and of no others."""
    directions, scorers = learned
    eta = edit_directions(directions, scorers, [0], [1, 3])[0].double().numpy()
    basis = directions[[0, 1, 3]].double().numpy()
    weights, *_ = np.linalg.lstsq(basis.T, eta, rcond=None)
    np.testing.assert_allclose(weights @ basis, eta, atol=1e-5)


def test_the_order_of_what_is_kept_does_not_count(learned):
    directions, scorers = learned
    first = edit_directions(directions, scorers, [0, 2], [1, 3, 4])
    torch.testing.assert_close(first, edit_directions(directions, scorers, [0, 2], [4, 1, 3]))
    swapped = edit_directions(directions, scorers, [2, 0], [1, 3, 4])
    torch.testing.assert_close(first, swapped[[1, 0]])


@pytest.mark.parametrize("difference", [0.0, 1e-9, 0.01])
def test_attributes_that_are_too_alike_to_be_told_apart_are_refused(learned, difference):
    directions, scorers = (part.clone() for part in learned)
    directions[1] = directions[0] + difference * directions[1]
    scorers[1] = scorers[0] + difference * scorers[1]
    with pytest.raises(UsageError, match=r"too alike.*`keep`"):
        edit_directions(directions, scorers, [0], [1])
    with pytest.raises(UsageError, match="too alike"):
        edit_directions(directions, scorers, [0, 1])
    edit_directions(directions, scorers, [0], [2, 3])


def attributes_of(*names, method="lda"):
    return [Attribute(name, 1, 1, method=method) for name in names]


def test_gender_age_smile_and_glasses_are_kept_by_default_as_far_as_there_are():
    attributes = attributes_of(*NAMES)
    kept = [NAMES[i] for i in kept_by_default(attributes, [NAMES.index("Wearing_Hat")])]
    assert sorted(kept) == ["Eyeglasses", "Male", "Smiling", "Young"]
    kept = [
        NAMES[i] for i in kept_by_default(attributes, [NAMES.index("Male"), NAMES.index("Young")])
    ]
    assert sorted(kept) == ["Eyeglasses", "Smiling"]
    # FFHQ's names for them
    ffhq = attributes_of("Headwear", "Age", "Smile", "Female", "Eyeglasses", "Sunglasses")
    assert sorted(kept_by_default(ffhq, [0])) == [1, 2, 3, 4]
    assert kept_by_default(attributes_of("Hat", "Freckles"), [0]) == []


def test_what_was_learned_by_the_papers_means_keeps_nothing():
    attributes = attributes_of(*NAMES)
    attributes[2] = dataclasses.replace(attributes[2], method="mean")
    assert kept_by_default(attributes, [2]) == []
    assert kept_by_default(attributes, [0, 2]) == []
    assert 2 in kept_by_default(attributes, [0])


# ---------------------------------------------------------------- correcting


def lossy(bundle, monkeypatch):
    """Pictures of latents keep a part of how they differ in each score, and let scores mix."""
    numbers = torch.Generator().manual_seed(0)
    mix = 0.1 * torch.randn(len(ATTRIBUTES), len(ATTRIBUTES), generator=numbers)
    mix -= 0.2 * torch.eye(len(ATTRIBUTES))
    inverse = torch.linalg.pinv(bundle.scorers).T  # moves each score by 1

    def shown(_vae, latents, *_):
        return latents + latents @ bundle.scorers.T @ mix @ inverse

    monkeypatch.setattr(edits, "decode", shown)
    monkeypatch.setattr(edits, "posteriors", lambda _vae, batches: (torch.cat(list(batches)), None))
    return lambda edit, latents: edit.scores(shown(None, latents))


@pytest.mark.parametrize("wanted", [["glasses"], ["beard", "smile"]])
def test_edits_are_corrected_until_pictures_show_what_was_asked(bundle, monkeypatch, wanted):
    seen = lossy(bundle, monkeypatch)
    latents, edit = latents_of_seeds(bundle, list(range(70))), plan_edit(bundle, wanted)
    alphas = torch.linspace(-0.8, 0.8, 70)[:, None].expand(70, len(wanted))
    goal = torch.cat([alphas * edit.signs, torch.zeros(70, len(edit.kept))], 1)

    def errors(ends):
        return (seen(edit, ends) - seen(edit, latents) - goal).abs().amax(1)

    corrected = edit_faces(bundle, edit, latents, alphas)
    assert errors(edit.apply(latents, alphas)).max() > 0.1
    assert errors(corrected).max() < 0.03
    # those that are near enough at once are left as they are
    is_near = errors(edit.apply(latents, alphas)) < edits._TOLERANCE
    assert 0 < is_near.sum() < 10
    assert corrected[is_near].equal(edit.apply(latents, alphas)[is_near])


def test_an_edit_by_nothing_is_the_face_itself(bundle):
    latents = latents_of_seeds(bundle, [1, 2, 3])
    edit = plan_edit(bundle, ["glasses", "smile"])
    assert edit_faces(bundle, edit, latents, torch.zeros(3, 2)).equal(latents)
    assert edit_faces(bundle, edit, latents[:0], torch.zeros(0, 2)).shape == latents[:0].shape


def test_nothing_is_corrected_where_pictures_do_not_follow(bundle, monkeypatch):
    """A decoder that draws always the same would have them grow without end."""
    monkeypatch.setattr(edits, "decode", lambda _vae, latents: torch.zeros(len(latents), 3, 32, 32))
    latents, edit = latents_of_seeds(bundle, [1, 2]), plan_edit(bundle, ["glasses"])
    alphas = torch.tensor([[1.5], [-1.5]])
    assert edit_faces(bundle, edit, latents, alphas).equal(edit.apply(latents, alphas))


def test_what_is_edited_is_not_pushed_where_it_follows_no_more(bundle, monkeypatch):
    """But what is to be held still is held."""
    latents, edit = latents_of_seeds(bundle, [1, 2, 3]), plan_edit(bundle, ["glasses"])
    before, inverse = edit.scores(latents), torch.linalg.pinv(edit.scorers).T

    def shown(_vae, given, *_):
        moved = edit.scores(given) - before
        seen = torch.cat([moved[:, :1].clamp(-1, 1), 0.8 * moved[:, 1:] + 0.1 * moved[:, :1]], 1)
        return latents + seen @ inverse

    monkeypatch.setattr(edits, "decode", shown)
    monkeypatch.setattr(edits, "posteriors", lambda _vae, batches: (torch.cat(list(batches)), None))
    alphas = torch.tensor([[1.5], [-1.5], [0.9]])
    edited = edit_faces(bundle, edit, latents, alphas)
    moved = edit.scores(edited) - before
    torch.testing.assert_close(moved[:, :1], alphas, rtol=0, atol=1e-3)
    assert (edit.scores(shown(None, edited)) - before)[:, 1:].abs().max() < 0.02


def test_edits_by_a_little_more_differ_by_little():
    """So that corrections do not leap from frame to frame where a face follows no more."""
    packaged, _ = load_model()
    edit, alphas = plan_edit(packaged, ["smile"]), torch.linspace(0.6, 1.6, 21)[:, None]
    ends = edit_faces(packaged, edit, latents_of_seeds(packaged, [2]).repeat(21, 1), alphas)
    steps = relative_distance(packaged, ends[1:] - ends[:-1])
    assert steps.max() < 2.5 * steps.mean()


def test_scores_that_are_too_alike_are_not_corrected():
    """A step that moved lipstick but not gender would be so long that it broke the face."""
    packaged, _ = load_model()
    edit = plan_edit(packaged, ["lipstick"])
    corrected = dict(zip([*edit.edited, *edit.kept], edit.corrections.any(1).tolist(), strict=True))
    assert not corrected["Wearing_Lipstick"]
    assert not corrected["Male"]
    assert corrected["Young"]
    assert plan_edit(packaged, ["glasses"]).corrections.any(1).all()


def test_the_papers_means_are_not_corrected(bundle):
    bundle.attributes[column("Eyeglasses")] = dataclasses.replace(
        bundle.attributes[column("Eyeglasses")], method="mean"
    )
    edit, latents = plan_edit(bundle, ["glasses"]), latents_of_seeds(bundle, [1, 2])
    alphas = torch.tensor([[1.5], [-1.0]])
    assert not edit.corrections.any()
    assert edit_faces(bundle, edit, latents, alphas).equal(edit.apply(latents, alphas))


# ---------------------------------------------------------------- measuring


def test_an_edit_is_measured_on_the_pictures_that_came_of_it(bundle):
    edit = plan_edit(bundle, ["glasses"])
    before = latents_of_seeds(bundle, [3])[0]
    alphas = torch.tensor([[0.0], [1.0], [-2.0]])
    images = decode(bundle.vae, edit.apply(before.repeat(3, 1), alphas))
    unedited = decode(bundle.vae, before[None])
    found = measure_edit(bundle, edit, torch.cat([unedited, images]))
    assert found.moved.shape == (3, 3)
    assert found.distance.shape == (3,)
    # the same by hand: encode the pictures again, the unedited reconstruction first
    with torch.no_grad():
        seen = bundle.vae.encode(torch.cat([unedited, images]))[0]
    rows = [ATTRIBUTES.index(name) for name in (*edit.edited, *edit.kept)]
    scores = seen @ bundle.scorers[rows].T
    torch.testing.assert_close(found.moved, scores[1:] - scores[:1], rtol=1e-3, atol=1e-4)
    # α = 0 went nowhere
    assert found.moved[0].abs().max() < 1e-4
    assert found.distance[0] < 1e-4
    assert (found.distance[1:] > 0.01).all()


def test_more_pictures_than_are_encoded_at_once_are_measured_in_their_order(bundle):
    edit = plan_edit(bundle, ["glasses"])
    before = latents_of_seeds(bundle, [3])[0]
    alphas = torch.linspace(-2, 2, 70)[:, None]
    images = decode(bundle.vae, edit.apply(before.repeat(70, 1), alphas))
    unedited = decode(bundle.vae, before[None])
    many = measure_edit(bundle, edit, torch.cat([unedited, images]))
    few = measure_edit(bundle, edit, torch.cat([unedited, images[-3:]]))
    torch.testing.assert_close(many.moved[-3:], few.moved, rtol=1e-3, atol=1e-4)


def test_a_sum_of_faces_is_drawn_back_to_where_faces_are(bundle):
    a, b, c = latents_of_seeds(bundle, [1, 2, 3])
    centre = bundle.latent_mean
    found, plain = sum_of_faces(bundle, a, [b, b], [c]), a + 2 * b - c - centre
    distances = relative_distance(bundle, torch.stack([found, plain, a, b, c]) - centre).tolist()
    assert distances[0] == pytest.approx(max(distances[2:]), rel=1e-4)
    assert distances[1] > distances[0]
    # straight towards the average face
    alike = torch.nn.functional.cosine_similarity(found - centre, plain - centre, dim=0)
    assert float(alike) == pytest.approx(1, abs=1e-5)


def test_a_sum_that_is_among_faces_stays_as_it_is(bundle):
    a, b, c = latents_of_seeds(bundle, [1, 2, 3])
    torch.testing.assert_close(sum_of_faces(bundle, a, [c], [a]), c)
    torch.testing.assert_close(sum_of_faces(bundle, a, [b, c], [b, a]), c)
    assert sum_of_faces(bundle, a, [], []).equal(a)


def test_distance_1_is_between_two_faces_taken_at_random(bundle):
    rng = np.random.default_rng(0)
    covariance = bundle.latent_covariance.double().numpy()
    faces = rng.normal(size=(4000, len(covariance))) @ np.linalg.cholesky(covariance).T
    steps = torch.from_numpy(faces[:2000] - faces[2000:]).float()
    distances = relative_distance(bundle, steps)
    assert float(distances.square().mean().sqrt()) == pytest.approx(1, abs=0.03)
    # Mahalanobis' length, whatever the units of the dimensions
    squares = np.einsum("nd,de,ne->n", steps.numpy(), np.linalg.inv(covariance), steps.numpy())
    expected = np.sqrt(squares / (2 * len(covariance)))
    np.testing.assert_allclose(distances.numpy(), expected, rtol=2e-3)
    torch.testing.assert_close(relative_distance(bundle, 3 * steps), 3 * distances)
    assert relative_distance(bundle, torch.zeros(2, len(covariance))).tolist() == [0, 0]


@pytest.mark.parametrize("rank", [0, 1])
def test_distances_are_finite_where_faces_hardly_differ(bundle, rank):
    """As of a model whose latents have collapsed."""
    one = torch.zeros_like(bundle.latent_covariance)
    one[0, 0] = rank
    bundle.prior.whitening.factor.copy_(one)
    assert relative_distance(bundle, torch.eye(len(one))).isfinite().all()


def test_the_packages_model_moves_what_it_is_asked_to_and_little_else():
    """As its own encoder sees its pictures again, over ten faces."""
    packaged, _ = load_model()
    pixels = to_pixels(decode(packaged.vae, latents_of_seeds(packaged, list(range(10)))))
    latents, alphas = encode_pixels(packaged, pixels), torch.ones(10, 1)
    plain_errors = []
    for name in ("glasses", "smile", "male", "hat"):
        edit = plan_edit(packaged, [name])
        wanted = torch.tensor([1.0] + [0.0] * len(edit.kept))
        plain, corrected = (
            torch.cat(
                [outcome(packaged, edit, z, end) for z, end in zip(latents, ends, strict=True)]
            )
            for ends in (edit.apply(latents, alphas), edit_faces(packaged, edit, latents, alphas))
        )
        assert (corrected - wanted)[:, 1:].abs().max() < 0.15, name
        assert (corrected - wanted)[:, 1:].abs().mean() < 0.02, name
        # but a smile as broad as can be becomes no broader
        assert (corrected - wanted)[:, 0].abs().median() < 0.03, name
        plain_errors.append((plain - wanted).abs().mean())
    # pictures say less than the latents they are decoded from
    assert min(plain_errors) > 0.03


def outcome(bundle, edit, latent, end):
    """How far scores (1, E + K) move from one latent's picture to another's; neither goes far."""
    found = measure_edit(bundle, edit, decode(bundle.vae, torch.stack([latent, end])))
    assert found.distance.max() < 1
    return found.moved


def test_all_that_is_held_by_default_is_held_first_where_all_is_to_be():
    packaged, _ = load_model()
    for name in ("gender", "beard", "lipstick", "glasses"):
        held = plan_edit(packaged, [name], ["all"]).kept
        assert set(plan_edit(packaged, [name]).kept) <= set(held), name
        assert len(held) > 10, name
