"""A classifier of attributes: what it should answer, and that it learns to."""

import numpy as np
import pytest
import torch
from tiny import TinyFeatures

from facevae.attributes import classifier
from facevae.attributes.classifier import SIDE, Answers, AttributeClassifier, train_classifier
from facevae.attributes.samples import Examples, Sample

CPU = torch.device("cpu")
NAN = np.nan


def sample_of(values, *, continuous=(), latents=None, mirrored=None, held_out=()):
    """A sample of faces with these labels (N, A), whose latents do not matter if not given."""
    values = np.array(values, np.float32)
    count = len(values)
    latents = torch.zeros(count, 3) if latents is None else latents
    return Sample(
        Examples(
            latents,
            latents if mirrored is None else mirrored,
            values,
            [f"a{i}" for i in range(values.shape[1])],
            np.array([i in continuous for i in range(values.shape[1])]),
            np.array([i in held_out for i in range(count)]),
        )
    )


def test_answers_are_labels_and_numbers_in_standard_deviations():
    answers = Answers.of(sample_of([[1, 10], [0, 30], [0, NAN], [NAN, 20]], continuous=[1]))
    deviation = np.std([10, 20, 30])
    expected = [[1, -10 / deviation], [0, 10 / deviation], [0, 0], [0, 0]]
    torch.testing.assert_close(answers.right[0], torch.tensor(expected).float())
    assert answers.right[1].equal(answers.right[0]), "mirroring changes neither"
    assert answers.known.tolist() == [[1, 1], [1, 1], [1, 0], [0, 1]]


def test_a_mirror_image_has_the_opposite_of_what_turns_round_with_it():
    turned = torch.tensor([[2.0, 0, 0], [-2, 0, 0], [1, 0, 0], [-1, 0, 0]])
    values = [[1, 2], [0, -2], [1, 1], [0, -1]]
    sample = sample_of(values, continuous=[1], latents=turned, mirrored=-turned)
    answers = Answers.of(sample)
    assert answers.right[1, :, 0].tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(answers.right[1, :, 1], -answers.right[0, :, 1])


def test_both_answers_count_the_same_and_unknown_ones_not_at_all():
    answers = Answers.of(sample_of([[1], [0], [0], [0], [NAN]]))
    weights = answers.weights[:, 0]
    torch.testing.assert_close(weights, torch.tensor([2, 2 / 3, 2 / 3, 2 / 3, 0]))
    rows, sides = torch.arange(5), torch.zeros(5, dtype=torch.long)
    seen = torch.tensor([[3.0], [-3], [-3], [-3], [50]])
    right = answers.loss(seen, rows, sides)
    seen[4] = -50
    assert answers.loss(seen, rows, sides) == right
    assert answers.loss(-seen, rows, sides) > 10 * right


def test_what_is_learned_is_the_same_each_time_and_whatever_came_before(monkeypatch):
    monkeypatch.setattr(classifier, "load_image_features", TinyFeatures)
    images = torch.randint(0, 256, (40, 3, SIDE, SIDE), dtype=torch.uint8)
    answers = Answers.of(sample_of([[i % 2] for i in range(40)]))
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        network = train_classifier(images, answers, torch.arange(30), CPU, lambda *_: None)
        assert torch.get_rng_state().equal(before)
        found.append(network(images[:4] / 255))
    assert found[0].equal(found[1])


def test_it_learns_to_tell_faces_it_has_not_seen(monkeypatch):
    """Red from blue, and how bright, with the pretrained network itself."""
    monkeypatch.setattr(classifier, "_BATCH", 16)
    monkeypatch.setattr(classifier, "_EPOCHS", 6)
    numbers = np.random.default_rng(0)
    values = np.stack([np.arange(60) % 2, numbers.uniform(60, 200, 60)], 1)
    images = torch.zeros(60, 3, SIDE, SIDE)
    for image, (is_blue, level) in zip(images, values, strict=True):
        image[2 if is_blue else 0] = level
    images += 30 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    images = images.clamp(0, 255).byte()
    done = []
    answers = Answers.of(sample_of(values, continuous=[1]))
    network = train_classifier(
        images, answers, torch.arange(48), CPU, lambda *step: done.append(step)
    )
    assert done == [(i + 1, 18) for i in range(18)]
    assert not any(parameter.requires_grad for parameter in network.parameters())
    seen = network(images[48:] / 255)
    right = answers.right[0, 48:]
    assert ((seen[:, 0] > 0) == (right[:, 0] > 0)).all()
    assert torch.corrcoef(torch.stack([seen[:, 1], right[:, 1]]))[0, 1] > 0.6


@pytest.mark.parametrize("side", [32, SIDE, 128])
def test_it_sees_images_of_any_size(side, monkeypatch):
    monkeypatch.setattr(classifier, "load_image_features", TinyFeatures)
    network = AttributeClassifier(5, CPU).eval()
    flat = torch.full((2, 3, side, side), 0.3)
    assert network(flat).shape == (2, 5)
    same = network(torch.full((2, 3, SIDE, SIDE), 0.3))
    torch.testing.assert_close(network(flat), same)
