"""The published features: which places they see, at what scale, and that they are what they were."""

import pytest
import torch
from torch.nn import functional

from facevae.latent_space.latents import decode, latents_of_seeds
from facevae.models.loading import load_model
from facevae.networks.image_features import CHANNELS, STRIDE, load_image_features

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    return load_image_features(CPU)


def test_each_level_is_half_as_large_as_the_one_before(network):
    levels = network(torch.rand(2, 3, 96, 96))
    assert [level.shape for level in levels] == [
        (2, channels, side, side) for channels, side in zip(CHANNELS, (24, 12, 6, 3), strict=True)
    ]


def test_features_are_those_of_the_published_network(network):
    """Its own code, at full precision and with batch norms, gave these of this picture of waves."""
    side = torch.arange(224) / 223
    rows = [side, side[:, None], (40 * side).sin() / 2 + 0.5]
    picture = torch.stack([values.expand(224, 224) for values in rows])[None]
    found = [
        [level.mean(), level.std(), level[0, 0, 0, 0], level[0, 5, 1, 2], level[0, -1, -1, -1]]
        for level in network.raw(picture)
    ]
    published = [
        [0.347, 8.773, 7.587, 3.200, 6.553],
        [0.089, 8.219, 1.133, 3.400, -12.264],
        [-0.153, 4.733, 3.284, -5.983, -0.990],
        [0.077, 2.778, 3.807, -2.213, -3.532],
    ]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(published), rtol=0.01, atol=0.06)


def test_channels_are_in_units_of_what_faces_have(network):
    bundle, _ = load_model("default")
    faces = decode(bundle.vae, latents_of_seeds(bundle, list(range(12))), 1.0)
    for level in network(functional.interpolate(faces, (192, 192), mode="bilinear")):
        assert level.mean().abs() < 0.1
        assert 0.9 < level.std() < 1.1


@pytest.mark.parametrize("level", [0, 1])  # further up each place sees the edges
def test_a_picture_that_has_moved_has_the_same_features_moved(network, level):
    wide = torch.rand(1, 3, 224, 256)
    here, moved = (
        list(network.raw(wide[..., start : start + 224]))[level] for start in (0, STRIDE)
    )
    side = here.shape[-1]
    by = side * STRIDE // 224
    inside, shifted = (slice(side * 3 // 7 - back, side * 4 // 7 - back) for back in (0, by))
    rows = slice(side * 3 // 7, side * 4 // 7)
    torch.testing.assert_close(
        here[..., rows, inside], moved[..., rows, shifted], rtol=1e-3, atol=1e-3
    )


def test_a_picture_is_told_from_its_blur_but_hardly_from_itself_in_another_light(network):
    """What a photograph's features hold still and what they do not: learned, not drawn at random."""
    bundle, _ = load_model("default")
    face = decode(bundle.vae, latents_of_seeds(bundle, [1]), 1.0)
    face = functional.interpolate(face, (192, 192), mode="bilinear")
    brighter = (face * 1.03).clamp(0, 1)
    blurred = functional.avg_pool2d(face, 9, stride=1, padding=4, count_include_pad=False)

    def distance(other):
        pairs = zip(network(face), network(other), strict=True)
        return [(a - b).square().mean().item() for a, b in pairs]

    for light, blur in zip(distance(brighter), distance(blurred), strict=True):
        assert 0 < light < 0.1 * blur


def test_gradients_reach_the_picture_and_no_weight(network):
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    sum(level.square().sum() for level in network(images)).backward()
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())
