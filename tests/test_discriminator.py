"""A discriminator judges whole and patches, and soon; what it is shown is changed alike."""

import pytest
import torch
from torch import nn

from facevae.stages.discriminator import Augmentation, Discriminator, mean_logit, penalty_logit
from facevae.system.runtime import generator


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_discriminator_tells_whole_and_patches_of_each_image_and_features_of_each_level(size):
    network = Discriminator(size, 4)
    logits, features = network(torch.rand(3, 3, size, size))
    assert logits.shape == (3, 1 + (size // 8) ** 2)
    sides = [size // 2 ** (i + 1) for i in range(len(features))]
    assert [f.shape[-1] for f in features] == sides
    assert sides[-1] == 4


def test_a_patch_is_judged_by_what_is_within_28_pixels():
    network = Discriminator(64, 4)
    images = torch.rand(1, 3, 64, 64)
    changed = images.clone()
    changed[..., :24, :24] = 0
    before, after = network(images)[0], network(changed)[0]
    moved = (before != after)[0]
    assert moved[0]
    assert moved[1]
    # the square of 28 pixels about a patch's middle, at 8 pixels from one to the next
    assert not moved[1:].view(8, 8)[5:, 5:].any()


def test_whole_and_patches_count_half_each():
    logits = torch.tensor([[2.0, 0.0, 4.0, 8.0]])
    assert mean_logit(logits).tolist() == [3.0]


def test_r1_takes_many_patches_for_as_steep_as_one():
    """Logits that each see pixels of their own, all as steeply."""
    sizes = []
    for num_patches in (1, 4, 64):
        images = torch.rand(2, 1, 1 + num_patches, requires_grad=True)
        logits = 3 * images.flatten(1)
        (gradient,) = torch.autograd.grad(penalty_logit(logits).sum(), images)
        sizes.append(gradient.square().sum().item() / 2)
    assert sizes == pytest.approx([9.0] * 3)


def test_a_discriminator_soon_tells_texture_that_is_faint_beside_light_and_shade():
    """Fields of any colour, real ones with noise of 5 levels of 255 on them."""
    torch.manual_seed(0)
    network = Discriminator(32, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(40):
        fields = torch.rand(2, 16, 3, 1, 1).expand(2, 16, 3, 32, 32)
        noisy = fields[0] + 0.02 * torch.randn(16, 3, 32, 32)
        real, made = network(noisy)[0], network(fields[1])[0]
        loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(made).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mean_logit(real).min() > mean_logit(made).max()


def test_augmentation_is_alike_for_all_of_a_step_and_gradients_pass_it():
    images = torch.rand(4, 3, 32, 32, requires_grad=True)
    augment = Augmentation.sample(4, 32, generator(1, 2))
    once, again = augment(images), augment(images)
    assert once.equal(again)
    assert once.shape == images.shape
    assert not once.equal(Augmentation.sample(4, 32, generator(1, 3))(images))
    once.sum().backward()
    assert images.grad.abs().sum() > 0


def test_augmentation_is_light():
    images = torch.rand(64, 3, 32, 32).clamp(0.3, 0.7)
    for seed in range(20):
        augmented = Augmentation.sample(64, 32, generator(seed))(images)
        inner = augmented[:, :, 4:-4, 4:-4]
        assert inner.min() > 0
        assert inner.max() < 1
        # moved by two pixels at most: somewhere within reach lies the same picture
        centre = images.mean(1)
        distances = [
            (augmented.mean(1).roll((dy, dx), (1, 2)) - centre)[:, 4:-4, 4:-4].std()
            for dy in range(-2, 3)
            for dx in range(-2, 3)
        ]
        assert min(distances) < 0.6 * max(distances)
