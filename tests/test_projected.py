"""Discriminators by features of photographs: what they are shown, and that they learn by it."""

import pytest
import torch
from torch.nn import functional

from facevae.latent_space.latents import decode, latents_of_seeds
from facevae.models.loading import load_model
from facevae.stages.projected import ProjectedCritic, ProjectedDiscriminator, Projection
from facevae.system.runtime import seeded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def projection():
    return Projection(CPU)


@pytest.fixture(scope="module")
def faces():
    """24 generated faces of 64 px."""
    bundle, _ = load_model("default")
    made = decode(bundle.vae, latents_of_seeds(bundle, list(range(24))), 1.0)
    return functional.avg_pool2d(made, 2)


def critic():
    with seeded(3):
        return ProjectedCritic(CPU, 8, records=False)


@pytest.mark.parametrize(("size", "finest"), [(32, 16), (64, 24), (128, 48), (256, 96)])
def test_pictures_are_seen_about_one_and_a_half_times_as_large(projection, size, finest):
    levels = projection(torch.rand(1, 3, size, size))
    assert [level.shape[-1] for level in levels] == [finest // 2**i for i in range(4)]


def test_mixing_keeps_the_scale_and_is_the_same_each_time(projection, faces):
    levels = projection(faces)
    for level, again in zip(levels, Projection(CPU)(faces), strict=True):
        assert 0.3 < level.std() < 3
        assert level.equal(again)


def test_finer_levels_hold_what_coarser_ones_found(projection):
    """A far corner, which the finest features do not see, changes them by way of the others."""
    images = torch.full((1, 3, 64, 64), 0.5)
    changed = images.clone()
    changed[..., 40:, 40:] = 1.0
    finest, mixed = (
        (a - b)[..., :2, :2].abs().max()
        for a, b in (
            (projection.features(images)[0], projection.features(changed)[0]),
            (projection(images)[0], projection(changed)[0]),
        )
    )
    assert finest == 0 < mixed


def test_it_soon_tells_faces_from_blurred_ones_that_it_has_not_seen(projection, faces):
    blurred = functional.avg_pool2d(faces, 5, stride=1, padding=2, count_include_pad=False)
    real, made = (list(map(torch.Tensor.detach, projection(images))) for images in (faces, blurred))
    discriminator = critic()

    def part(levels, rows):
        return [level[rows] for level in levels]

    for index in range(30):
        rows = slice(8 * (index % 2), 8 * (index % 2) + 8)
        _, is_sound = discriminator.update(part(real, rows), part(made, rows))
        assert is_sound
    rest = slice(16, 24)
    of_real, of_made = (discriminator.generator_loss(part(some, rest)) for some in (real, made))
    assert of_real < of_made - 0.5


def test_its_verdict_leads_back_to_pictures_and_teaches_it_nothing(projection, faces):
    discriminator = critic()
    images = faces[:4].clone().requires_grad_()
    discriminator.generator_loss(projection(images)).backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.network.parameters())


def test_the_spectral_norm_of_each_kernel_is_one():
    with seeded(0):
        network = ProjectedDiscriminator()
    for _ in range(50):  # until the power iterations have found the largest singular values
        levels = [torch.randn(2, c, s, s) for c, s in ((32, 24), (64, 12), (128, 6), (256, 3))]
        network(levels)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            norm = torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)
            assert norm.item() == pytest.approx(1, abs=0.05)


def test_going_on_from_a_state_is_going_on(projection, faces):
    levels = [level.detach() for level in projection(faces)]
    real, made = ([level[rows] for level in levels] for rows in (slice(0, 8), slice(8, 16)))
    first = critic()
    first.update(real, made)
    with seeded(9):
        other = ProjectedCritic(CPU, 8, records=False)
    other.restore({name: tensor.clone() for name, tensor in first.state().items()})
    assert first.update(real, made)[0].equal(other.update(real, made)[0])
    assert first.generator_loss(made).equal(other.generator_loss(made))
