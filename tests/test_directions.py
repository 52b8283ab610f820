"""Directions and scorers against a plain reference implementation."""

import dataclasses

import numpy as np
import pytest
import torch

from facevae.attributes import directions as attributes_module
from facevae.attributes.directions import SHRINKAGE, Attribute, correlations, learn
from facevae.attributes.samples import Examples

# ---------------------------------------------------------------- learning


def random_case(seed=0, count=240, dims=6):
    """Faces with two yes-or-no and two continuous attributes, some labels of which are not known.

    Mirroring a face turns round the last two dimensions, and the last attribute, as it does yaw.
    """
    rng = np.random.default_rng(seed)
    known = np.column_stack(
        [rng.integers(0, 2, (count, 2)), 40 + 15 * rng.normal(size=count), rng.normal(size=count)]
    )
    ways = rng.normal(size=(4, dims))
    ways[:3, -2:], ways[3, :-2] = 0, 0
    ways[2] /= 15
    known[:, 3] *= 2
    latents = rng.normal(size=(count, dims)) + known @ ways
    mirrored = latents * np.array([1] * (dims - 2) + [-1, -1])
    mirrored += 0.1 * rng.normal(size=(count, dims))  # an encoder is not quite symmetric
    values = np.where(rng.random(known.shape) < 0.15, np.nan, known).astype(np.float32)
    return Examples(
        torch.from_numpy(latents),
        torch.from_numpy(mirrored),
        values,
        ["Glasses", "Hat", "Age", "Yaw"],
        np.array([False, False, True, True]),
        rng.random(count) < 0.25,
    )


def covariance_of(examples):
    return torch.cov(examples.latents.T)


def naive(examples, covariance):
    """One attribute after another, one face after another, each side of it on its own."""
    plain, mirrored = examples.latents.numpy(), examples.mirrored.numpy()
    sigma = covariance.numpy()
    shrunk = (1 - SHRINKAGE) * sigma + SHRINKAGE * np.diag(np.diag(sigma))
    directions, scorers, accuracies, correlation = [], [], [], []
    for column, continuous in zip(examples.values.T, examples.is_continuous, strict=True):
        rows = [i for i, v in enumerate(column) if not np.isnan(v)]
        taught = [i for i in rows if not examples.held_out[i]]
        labels = np.array([float(column[i]) for i in taught])
        sides = []
        for latents in (plain[taught], mirrored[taught]):
            if continuous:
                deviations = labels - labels.mean()
                slope = (deviations[:, None] * (latents - latents.mean(0))).mean(0)
                sides.append(slope / labels.std())
            else:
                sides.append(latents[labels == 1].mean(0) - latents[labels == 0].mean(0))
        cosine = sides[0] @ sides[1] / np.linalg.norm(sides[0]) / np.linalg.norm(sides[1])
        turned = -1 if cosine < -0.3 else 1
        direction = (sides[0] + turned * sides[1]) / 2
        scorer = np.linalg.inv(shrunk) @ direction
        scorer /= scorer @ direction

        if continuous:
            middle = plain[taught].mean(0)
            above = [column[i] > labels.mean() for i in rows]
        else:
            # between the two averages, of which one half of the way is on either side
            share = labels.mean()
            middle = plain[taught].mean(0) + (0.5 - share) * direction
            above = [column[i] == 1 for i in rows]
        measured = [(i, has) for i, has in zip(rows, above, strict=True) if examples.held_out[i]]
        right = {True: [], False: []}
        for i, has in measured:
            right[bool(has)].append(((plain[i] - middle) @ scorer > 0) == has)
        scores = [plain[i] @ scorer for i, _ in measured]
        directions.append(direction)
        scorers.append(scorer)
        accuracies.append((np.mean(right[True]) + np.mean(right[False])) / 2)
        correlation.append(np.corrcoef(scores, [column[i] for i, _ in measured])[0, 1])
    return np.array(directions), np.array(scorers), accuracies, correlation


@pytest.mark.parametrize("seed", range(4))
def test_what_is_learned_is_what_a_plain_loop_finds(seed):
    examples = random_case(seed)
    covariance = covariance_of(examples)
    attributes, directions, scorers = learn(examples, covariance)
    expected = naive(examples, covariance)
    np.testing.assert_allclose(directions.numpy(), expected[0], atol=1e-6)
    np.testing.assert_allclose(scorers.numpy(), expected[1], rtol=1e-4, atol=1e-5)
    assert [a.name for a in attributes] == list(examples.names)
    assert [a.accuracy for a in attributes] == pytest.approx(expected[2])
    assert [a.correlation for a in attributes] == pytest.approx(expected[3], abs=1e-5)


def test_what_is_known_of_an_attribute_is_what_it_was_learned_from():
    examples = random_case()
    attributes, _, _ = learn(examples, covariance_of(examples))
    training = examples.values[~examples.held_out]
    for column, attribute in zip(training.T, attributes, strict=True):
        known = column[~np.isnan(column)].astype(float)
        middle = known.mean() if attribute.continuous else 0.5
        assert attribute.num_positives == (known > middle).sum()
        assert attribute.num_negatives == (known <= middle).sum()
        assert attribute.unit == pytest.approx(known.std() if attribute.continuous else 1)
        assert attribute.method == "lda"
    assert [a.continuous for a in attributes] == [False, False, True, True]


def test_a_scorer_reads_1_more_at_the_end_of_its_direction():
    for method in ("lda", "mean"):
        examples = random_case()
        _, directions, scorers = learn(examples, covariance_of(examples), method)
        ones = torch.ones(4, dtype=torch.float64)
        torch.testing.assert_close((directions * scorers).sum(1), ones)


def test_alpha_1_carries_the_average_without_to_the_average_with():
    examples = random_case(seed=1)
    plain = dataclasses.replace(examples, mirrored=examples.latents)
    _, directions, _ = learn(plain, covariance_of(examples))
    taught = ~examples.held_out
    latents, marks = examples.latents.numpy()[taught], examples.values[taught]
    for i in (0, 1):
        without, with_it = (latents[marks[:, i] == mark].mean(0) for mark in (0, 1))
        np.testing.assert_allclose(without + directions[i].numpy(), with_it, atol=1e-6)


def test_alpha_1_of_a_number_is_one_standard_deviation_of_it():
    """Where latents are the number times a way, and noise, it goes that way by so much."""
    rng = np.random.default_rng(0)
    age, way = 50 + 12 * rng.normal(size=400), np.array([0.1, -0.2, 0.05])
    latents = torch.from_numpy(age[:, None] * way + 1e-4 * rng.normal(size=(400, 3)))
    values = age[:, None].astype(np.float32)
    none = np.zeros(400, bool)
    examples = Examples(latents, latents, values, ["Age"], np.array([True]), none)
    [attribute], directions, _ = learn(examples, torch.eye(3))
    np.testing.assert_allclose(directions[0].numpy(), age.std() * way, rtol=1e-3)
    assert attribute.unit == pytest.approx(age.std(), rel=1e-5)


def test_a_scorer_finds_the_attribute_where_the_noise_is_not():
    """The discriminant tells apart what the difference of means, drowned in one noise, does not."""
    rng = np.random.default_rng(3)
    marks = rng.integers(0, 2, 600)
    noise = rng.normal(size=(600, 4)) * (10, 1, 1, 1)
    latents = torch.from_numpy(noise + marks[:, None] * np.array([2.0, 2, 0, 0]))
    values = marks[:, None].astype(np.float32)
    held_out = np.arange(600) % 3 == 0
    examples = Examples(latents, latents, values, ["A"], np.array([False]), held_out)
    accuracy = {m: learn(examples, torch.cov(latents.T), m)[0][0].accuracy for m in ("lda", "mean")}
    assert accuracy["lda"] > 0.8
    assert accuracy["mean"] < 0.7


def logistic_case(seed=4, count=800):
    """Faces and mirror images of which one label says the side, and the other something rarer."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(count, 5)) * (1, 3, 0.5, 1, 2)
    rare = (latents[:, 0] + 0.5 * rng.normal(size=count) > 0.9).astype(np.float32)
    left = (latents[:, 2] + 0.2 * rng.normal(size=count) > 0).astype(np.float32)
    mirrored = latents * (1, 1, -1, 1, 1) + 0.1 * rng.normal(size=latents.shape)
    values = np.stack([rare, left], 1)
    values[::7, 0] = np.nan
    names, numbers = ["Rare", "Left"], np.array([False, False])
    held_out = np.arange(count) % 5 == 0
    sides = torch.from_numpy(latents), torch.from_numpy(mirrored)
    return Examples(*sides, values, names, numbers, held_out)


@pytest.mark.parametrize(("column", "turn"), [(0, 1), (1, -1)])
def test_logistic_weights_are_where_the_penalised_likelihood_is_flat(column, turn):
    """Its gradient, written out for both sides, yes and no weighted alike, is nothing there."""
    examples = logistic_case()
    _, directions, scorers = learn(examples, covariance_of(examples))
    labels = examples.values[:, column]
    rows = ~np.isnan(labels) & ~examples.held_out
    x = np.concatenate([examples.latents.numpy()[rows], turn * examples.mirrored.numpy()[rows]])
    wanted = np.tile(labels[rows].astype(float), 2)
    weights = attributes_module._logistic(torch.from_numpy(x), torch.from_numpy(wanted)).numpy()
    scorer = scorers[column].numpy()
    np.testing.assert_allclose(scorer, weights / (weights @ directions[column].numpy()))
    each = np.where(wanted == 1, 0.25 / wanted.mean(), 0.25 / (1 - wanted.mean()))

    def slope_at(intercept):
        chance = 1 / (1 + np.exp(-(x @ weights + intercept)))
        return (each * (chance - wanted)).sum(), x.T @ (each * (chance - wanted))

    low, high = -50.0, 50.0
    for _ in range(80):  # the intercept at which the first is nothing
        middle = (low + high) / 2
        low, high = (middle, high) if slope_at(middle)[0] < 0 else (low, middle)
    penalty = attributes_module.PENALTY * weights * x.std(0, ddof=1) ** 2
    np.testing.assert_allclose(slope_at(middle)[1], -penalty, rtol=1e-4, atol=1e-3)


def test_logistic_regression_is_used_where_there_are_enough_of_both():
    examples = logistic_case()
    attributes, directions, scorers = learn(examples, covariance_of(examples))
    assert [a.method for a in attributes] == ["logistic", "logistic"]
    assert min(a.accuracy for a in attributes) > 0.8
    torch.testing.assert_close((directions * scorers).sum(1), torch.ones(2, dtype=torch.float64))
    by_lda = learn(examples, covariance_of(examples), "lda")
    assert directions.equal(by_lda[1])
    assert [a.method for a in by_lda[0]] == ["lda", "lda"]
    few = dataclasses.replace(examples, held_out=np.arange(800) >= 300)
    assert [a.method for a in learn(few, covariance_of(few))[0]] == ["lda", "logistic"]


@pytest.mark.parametrize(("num_without", "method"), [(99, "lda"), (100, "logistic")])
def test_a_hundred_with_and_without_are_enough(num_without, method):
    latents = np.linspace(-1, 1, 101 + num_without)
    labels = np.arange(len(latents)) >= num_without
    examples = one_dimension(latents, labels, np.zeros(len(latents)))
    assert learn(examples, torch.eye(1))[0][0].method == method


def test_what_is_rare_and_of_one_side_is_told_apart_in_faces_that_look_to_that_side():
    rng = np.random.default_rng(0)
    latents = rng.normal((0.8, 0, 0, 0), size=(3000, 4))
    left = (latents[:, :1] > np.quantile(latents[:, 0], 0.9)).astype(np.float32)
    sides = torch.from_numpy(latents), torch.from_numpy(latents * (-1, 1, 1, 1))
    held_out = np.arange(3000) % 5 == 0
    examples = Examples(*sides, left, ["Left"], np.array([False]), held_out)
    [attribute], directions, scorers = learn(examples, covariance_of(examples))
    assert attribute.method == "logistic"
    assert attribute.accuracy > 0.9
    assert float((directions * scorers).sum()) == pytest.approx(1)
    assert scorers.abs().max() < 1


def test_the_mean_method_is_the_papers_own_direction_and_nothing_else():
    examples = random_case()
    attributes, directions, scorers = learn(examples, covariance_of(examples), "mean")
    same = learn(examples, covariance_of(examples))[1]
    assert directions.equal(same)
    expected = directions / directions.square().sum(1, keepdim=True)
    torch.testing.assert_close(scorers, expected)
    assert [a.method for a in attributes] == ["mean"] * 4


def test_an_attribute_that_mirroring_turns_round_is_not_cancelled_by_it():
    examples = random_case()
    _, directions, _ = learn(examples, covariance_of(examples))
    alone = dataclasses.replace(examples, mirrored=examples.latents)
    _, of_one_side, _ = learn(alone, covariance_of(examples))
    torch.testing.assert_close(directions[3, -2:], of_one_side[3, -2:], rtol=0.02, atol=0.02)
    assert directions[3].norm() > 0.9 * of_one_side[3].norm()
    # and what it does not turn round keeps nothing of what lies to one side
    assert (directions[:3, -2:].abs() < 0.2 * of_one_side[:3, -2:].abs()).all()
    turned = dataclasses.replace(examples, values=examples.values * [1, 1, 1, -1])
    _, found, _ = learn(turned, covariance_of(examples))
    torch.testing.assert_close(found[3], -directions[3])


def test_a_few_photos_that_happen_to_look_to_one_side_do_not_turn_an_attribute_round():
    """Of three faces with it two look left and one right: more of that than of what they share."""
    shared, aside = np.array([1.0, 0]), np.array([0, 1.2])
    latents = np.stack([shared + aside, shared + aside, shared - aside / 2, 0 * shared, 0 * shared])
    mirrored = latents * [1, -1]
    examples = Examples(
        *map(torch.from_numpy, (latents, mirrored)),
        np.array([[1, 1, 1, 0, 0]], np.float32).T,
        ["Freckles"],
        np.array([False]),
        np.zeros(5, bool),
    )
    _, directions, _ = learn(examples, torch.eye(2))
    torch.testing.assert_close(directions[0], torch.from_numpy(shared))


def test_what_is_learned_depends_neither_on_the_order_of_faces_nor_on_that_of_attributes():
    examples = random_case()
    covariance = covariance_of(examples)
    attributes, directions, scorers = learn(examples, covariance)
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(len(examples.values)), np.array([2, 0, 3, 1])
    shuffled = Examples(
        examples.latents[rows],
        examples.mirrored[rows],
        examples.values[rows][:, columns],
        [examples.names[i] for i in columns],
        examples.is_continuous[columns],
        examples.held_out[rows],
    )
    found = learn(shuffled, covariance)
    torch.testing.assert_close(found[1], directions[columns])
    torch.testing.assert_close(found[2], scorers[columns])
    for ours, theirs in zip(found[0], [attributes[i] for i in columns], strict=True):
        assert dataclasses.replace(ours, correlation=theirs.correlation, unit=theirs.unit) == theirs
        assert ours.correlation == pytest.approx(theirs.correlation)


def test_no_attribute_depends_on_the_others_beside_it():
    examples = random_case()
    whole = learn(examples, covariance_of(examples))
    for i, name in enumerate(examples.names):
        alone = dataclasses.replace(
            examples,
            values=examples.values[:, [i]],
            names=[name],
            is_continuous=examples.is_continuous[[i]],
        )
        found = learn(alone, covariance_of(examples))
        torch.testing.assert_close(found[1][0], whole[1][i])
        torch.testing.assert_close(found[2][0], whole[2][i])
        assert found[0][0].accuracy == whole[0][i].accuracy


def glasses_of_both_genders(num_women_with):
    """600 women and 400 men, 300 of the men with glasses: dimensions of gender, and of each one's glasses."""
    rng = np.random.default_rng(0)
    male = np.repeat([0.0, 1.0], [600, 400])
    glasses = np.concatenate([np.arange(600) < num_women_with, np.arange(400) < 300]).astype(float)
    latents = np.stack([4 * male, 2 * glasses * (1 - male), 2 * glasses * male], 1)
    latents = torch.from_numpy(latents + 0.1 * rng.normal(size=(1000, 3)))
    values = np.stack([male, glasses], 1).astype(np.float32)
    nobody, numbers = np.zeros(1000, bool), np.zeros(2, bool)
    return Examples(latents, latents, values, ["Male", "Eyeglasses"], numbers, nobody)


@pytest.mark.parametrize("method", ["logistic", "lda"])
def test_what_more_men_have_is_not_a_mans_where_there_are_enough_women_too(method):
    examples = glasses_of_both_genders(60)
    _, directions, _ = learn(examples, covariance_of(examples), method)
    along = directions[1] / directions[1].norm()
    # three of five faces are women's
    wanted = torch.tensor([0.0, 0.6, 0.4]).to(directions) / 0.52**0.5
    torch.testing.assert_close(along, wanted, rtol=0, atol=0.05)
    assert directions[0, 0] == pytest.approx(4, abs=0.1)
    few = glasses_of_both_genders(30)
    _, directions, _ = learn(few, covariance_of(few), method)
    assert directions[1, 0] > 1
    _, directions, _ = learn(examples, covariance_of(examples), "mean")
    assert directions[1, 0] > 1, "the paper's method looks at all of them together"


def test_faces_without_a_label_teach_nothing_about_it():
    examples = random_case()
    unknown = np.isnan(examples.values[:, 0])
    latents = examples.latents.clone()
    latents[torch.from_numpy(unknown)] += 100
    moved = dataclasses.replace(examples, latents=latents)
    covariance = covariance_of(examples)
    first, second = learn(examples, covariance), learn(moved, covariance)
    torch.testing.assert_close(first[1][0], second[1][0])
    assert first[0][0] == second[0][0]
    assert not torch.allclose(first[1][1], second[1][1])


def test_held_out_faces_change_no_direction():
    examples = random_case(seed=2)
    latents = examples.latents.clone()
    latents[torch.from_numpy(examples.held_out)] += 100
    moved = dataclasses.replace(examples, latents=latents)
    pair = [learn(each, covariance_of(examples)) for each in (examples, moved)]
    assert pair[0][1].equal(pair[1][1])
    assert pair[0][2].equal(pair[1][2])
    assert pair[0][0] != pair[1][0], "they measure, though"


def one_dimension(latents, values, held_out, *, continuous=False):
    column = torch.tensor(latents)[:, None]
    return Examples(
        column,
        column,
        np.array(values, np.float32)[:, None],
        ["a"],
        np.array([continuous]),
        np.array(held_out, bool),
    )


def test_accuracy_is_of_held_out_faces_alone_and_balanced():
    # trained on four faces that it tells apart; held out: three without, of which one looks as
    # if with, and one with
    examples = one_dimension(
        [-1.0, -1.0, 1.0, 1.0, -2.0, -3.0, 5.0, 0.5], [0, 0, 1, 1, 0, 0, 0, 1], [0] * 4 + [1] * 4
    )
    [attribute], directions, _ = learn(examples, torch.eye(1))
    assert directions.tolist() == [[2.0]]
    assert attribute.accuracy == pytest.approx((2 / 3 + 1) / 2)


def test_unequal_numbers_of_faces_with_and_without_move_no_border():
    """Of nine without at 0 and one with at 1, the border is at 0.5."""
    latents = [0.0] * 9 + [1.0] + [0.4, 0.6]
    examples = one_dimension(latents, [0] * 9 + [1, 0, 1], [0] * 10 + [1, 1])
    assert learn(examples, torch.eye(1))[0][0].accuracy == 1
    latents[-2:] = [0.6, 0.4]
    examples = one_dimension(latents, [0] * 9 + [1, 0, 1], [0] * 10 + [1, 1])
    assert learn(examples, torch.eye(1))[0][0].accuracy == 0


def test_figures_are_not_known_where_there_is_nothing_to_measure_by():
    examples = one_dimension([-1.0, 1.0, 2.0], [0, 1, 1], [0, 0, 1])
    [attribute], _, _ = learn(examples, torch.eye(1))
    assert (attribute.accuracy, attribute.correlation) == (None, None)
    examples = one_dimension([-1.0, 1.0], [0, 1], [0, 0])
    [attribute], _, _ = learn(examples, torch.eye(1))
    assert (attribute.accuracy, attribute.correlation) == (None, None)


def test_attributes_that_all_faces_or_none_have_are_left_out():
    examples = random_case(seed=3)
    values = np.tile(examples.values[:, :1], 6)
    values[:, 0] = 1
    values[:, 1] = np.nan
    values[:, 3] = np.where(examples.held_out, values[:, 2], np.nan)  # of held-out faces only
    values[:, 4] = 37.5
    values[:, 5] = np.where(examples.held_out, values[:, 2], 0)
    several = dataclasses.replace(
        examples,
        values=values,
        names=list("abcdef"),
        is_continuous=np.array([False] * 4 + [True] * 2),
    )
    attributes, directions, scorers = learn(several, covariance_of(examples))
    assert [a.name for a in attributes] == ["c"]
    assert directions.shape == scorers.shape == (1, 6)
    assert directions.isfinite().all()
    assert scorers.isfinite().all()


def test_where_nothing_differs_nothing_is_learned():
    examples = random_case()
    alike = dataclasses.replace(examples, values=np.ones_like(examples.values))
    attributes, directions, scorers = learn(alike, covariance_of(examples))
    assert attributes == []
    assert directions.shape == scorers.shape == (0, 6)


@pytest.mark.parametrize("covariance", [torch.eye(6), torch.zeros(6, 6)])
def test_what_the_latents_do_not_show_is_left_out(covariance):
    """As where the same picture stands for having and for lacking."""
    examples = random_case()
    same = examples.latents[:1].expand(len(examples.values), -1)
    alike = dataclasses.replace(examples, latents=same, mirrored=same)
    for method in ("lda", "mean"):
        attributes, directions, scorers = learn(alike, covariance, method)
        assert attributes == []
        assert directions.shape == scorers.shape == (0, 6)


def test_float32_latents_give_float32_directions():
    examples = random_case(seed=4)
    single = dataclasses.replace(
        examples, latents=examples.latents.float(), mirrored=examples.mirrored.float()
    )
    _, directions, scorers = learn(single, covariance_of(single))
    assert directions.dtype == scorers.dtype == torch.float32
    expected = naive(examples, covariance_of(examples))
    np.testing.assert_allclose(directions.numpy(), expected[0], atol=1e-4)
    np.testing.assert_allclose(scorers.numpy(), expected[1], atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 5},
        {"num_positives": -1},
        {"num_negatives": 2.0},
        {"num_positives": True},
        {"accuracy": "x"},
        {"accuracy": float("nan")},
        {"correlation": float("inf")},
        {"unit": None},
        {"unit": float("nan")},
        {"continuous": 1},
        {"method": "median"},
        {"method": ["lda"]},
    ],
)
def test_an_attribute_is_refused_that_a_damaged_file_may_hold(changes):
    sound = {"name": "A", "num_positives": 1, "num_negatives": 1}
    Attribute(**sound)
    with pytest.raises(ValueError, match="attribute"):
        Attribute(**sound | changes)


# ---------------------------------------------------------------- learned attributes


def test_correlations_are_those_of_scores_over_faces():
    rng = np.random.default_rng(7)
    latents = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    scorers = rng.normal(size=(3, 6))
    spreads, joint = correlations(torch.from_numpy(scorers), torch.from_numpy(np.cov(latents.T)))
    scores = latents @ scorers.T
    np.testing.assert_allclose(spreads.numpy(), scores.std(0, ddof=1))
    np.testing.assert_allclose(joint.numpy(), np.corrcoef(scores.T))
