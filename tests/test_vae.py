"""The networks are the paper's: their layers, their shapes, their number of weights."""

import dataclasses
import math

import pytest
import torch
from tiny import tiny_bundle, with_texture
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call

from facevae.config import SIZES, ModelConfig, preset
from facevae.networks.blocks import GroupNorm, ResidualBlock, Upsample, num_groups
from facevae.networks.prior import build_prior
from facevae.networks.vae import LOGVAR_RANGE, VAE, ConvTranspose, num_parameters, sample_posterior

TINY = ModelConfig(size=32, latent_dim=5, filters=(4, 6))


def build(config, seed=0):
    torch.manual_seed(seed)
    return VAE(config).eval()


@pytest.mark.parametrize("size", SIZES)
def test_images_become_latents_and_latents_images_at_every_size(size):
    vae = build(ModelConfig(size=size, latent_dim=7, filters=(4, 8, 8, 8)))
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        mean, logvar = vae.encode(images)
        decoded = vae.decode(mean)
    assert mean.shape == logvar.shape == (2, 7)
    assert decoded.shape == images.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_images_stay_in_range_however_far_the_latents_lie():
    decoded = build(TINY).decode(torch.randn(8, 5) * 1e4)
    assert decoded.isfinite().all()
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@pytest.mark.parametrize("halvings", [1, 5])
def test_any_number_of_halvings_is_undone_by_as_many_doublings(halvings):
    vae = build(ModelConfig(size=32, latent_dim=3, filters=tuple(range(4, 4 + halvings))))
    images = torch.rand(2, 3, 32, 32)
    assert vae(images, torch.zeros(2, 3))[0].shape == images.shape


def test_the_default_network_has_as_many_weights_as_its_layers_say():
    def convolution(before, after):
        return before * after * 3 * 3 + after

    def dense(before, after):
        return before * after + after

    def batch_norm(channels):
        return 2 * channels

    filters, latent_dim, side = (32, 64, 64, 64), 200, 128 // 2**4
    features = filters[-1] * side * side
    encoder = sum(map(convolution, (3, 32, 64, 64), filters)) + sum(map(batch_norm, filters))
    heads = 2 * dense(features, latent_dim)
    decoder = (
        dense(latent_dim, features)
        + sum(map(convolution, (64, 64, 64, 32), (64, 64, 32, 3)))
        + sum(map(batch_norm, (64, 64, 32)))
    )
    assert encoder + heads + decoder == 2_649_299
    assert num_parameters(VAE(ModelConfig())) == encoder + heads + decoder


def test_weights_that_do_not_train_are_not_counted():
    vae = VAE(TINY)
    total = num_parameters(vae)
    vae.encoder.mean.requires_grad_(requires_grad=False)
    assert num_parameters(vae) == total - sum(p.numel() for p in vae.encoder.mean.parameters())


def kinds(sequence):
    return [type(layer) for layer in sequence]


def test_the_encoder_is_four_times_convolution_batch_norm_and_leaky_relu():
    layers = VAE(ModelConfig()).encoder.convolutions
    assert kinds(layers) == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 4
    assert all(c.kernel_size == (3, 3) and c.stride == (2, 2) for c in layers[::3])
    assert [c.out_channels for c in layers[::3]] == [32, 64, 64, 64]


def test_the_decoder_ends_in_a_transposed_convolution_and_a_sigmoid_without_batch_norm():
    layers = VAE(ModelConfig()).decoder.convolutions
    inner = [ConvTranspose, nn.BatchNorm2d, nn.LeakyReLU] * 3
    assert kinds(layers) == [*inner, ConvTranspose, nn.Sigmoid]


def test_leaky_relu_leaks_a_fifth():
    slopes = {m.negative_slope for m in VAE(TINY).modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}


def test_there_is_no_dropout_unless_asked_for():
    assert not [m for m in VAE(TINY).modules() if isinstance(m, nn.Dropout)]


def leaves(module):
    return [m for m in module.modules() if not list(m.children())]


def test_weights_fit_with_dropout_and_without():
    dropping = VAE(ModelConfig(size=32, latent_dim=5, filters=(4, 6), dropout=0.25))
    dropping.load_state_dict(VAE(TINY).state_dict())


def test_dropout_follows_every_activation_but_the_last():
    config = ModelConfig(size=32, latent_dim=5, filters=(4, 6), dropout=0.25)
    vae = VAE(config)
    block = [nn.BatchNorm2d, nn.LeakyReLU, nn.Dropout]
    assert kinds(leaves(vae.encoder.convolutions)) == [nn.Conv2d, *block] * 2
    decoder = [ConvTranspose, *block, ConvTranspose, nn.Sigmoid]
    assert kinds(leaves(vae.decoder.convolutions)) == decoder
    assert {m.p for m in vae.modules() if isinstance(m, nn.Dropout)} == {0.25}
    assert num_parameters(vae) == num_parameters(VAE(TINY))


def test_the_log_variance_is_clamped_and_the_mean_is_not():
    vae = build(TINY)
    with torch.no_grad():
        for head in (vae.encoder.mean, vae.encoder.logvar):
            head.weight.zero_()
            head.bias.copy_(torch.tensor([-1e6, -30.0, 1.5, 20.0, 1e6]))
        mean, logvar = vae.encode(torch.rand(1, 3, 32, 32))
    low, high = LOGVAR_RANGE
    assert logvar.tolist() == [[low, -30.0, 1.5, 20.0, high]]
    assert mean.tolist() == [[-1e6, -30.0, 1.5, 20.0, 1e6]]
    assert logvar.exp().isfinite().all()
    assert logvar.exp().gt(0).all()


def test_posteriors_are_float32_in_any_precision():
    vae = build(TINY)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        mean, logvar = vae.encode(torch.rand(2, 3, 32, 32))
    assert mean.dtype == logvar.dtype == torch.float32


def test_a_posterior_sample_is_mean_and_spread_times_noise():
    mean, logvar = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(9.0)]])
    got = sample_posterior(mean, logvar, torch.tensor([[2.0, -1.0]]))
    assert got.tolist()[0] == pytest.approx([3.0, -5.0])


def test_forward_is_encode_sample_decode():
    vae = build(TINY)
    images, noise = torch.rand(3, 3, 32, 32), torch.randn(3, 5)
    with torch.no_grad():
        reconstructions, mean, logvar = vae(images, noise)
        spread = logvar.exp().sqrt()
        torch.testing.assert_close(reconstructions, vae.decode(mean + spread * noise))
        torch.testing.assert_close((mean, logvar), vae.encode(images))


def test_every_weight_takes_part_in_a_training_step():
    vae = VAE(TINY).train()
    reconstructions, mean, logvar = vae(torch.rand(4, 3, 32, 32), torch.randn(4, 5))
    (reconstructions.square().mean() + mean.square().mean() + logvar.mean()).backward()
    without = [name for name, p in vae.named_parameters() if p.grad is None]
    assert without == []


def test_in_use_a_face_does_not_depend_on_its_neighbours():
    vae = build(TINY)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        together = vae.decode(vae.encode(images)[0])
        alone = torch.cat([vae.decode(vae.encode(one[None])[0]) for one in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


RESIDUAL = ModelConfig(size=32, latent_dim=5, filters=(8, 24), residual_blocks=2)


@pytest.mark.parametrize("size", SIZES)
def test_a_residual_network_makes_latents_of_images_and_images_of_latents(size):
    vae = build(ModelConfig(size, 7, (8, 16, 24, 32), residual_blocks=1))
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        mean, logvar = vae.encode(images)
        decoded = vae.decode(mean)
    assert mean.shape == logvar.shape == (2, 7)
    assert decoded.shape == images.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_a_residual_network_has_its_blocks_at_each_level_and_no_batch_norm():
    for coder in (VAE(RESIDUAL).encoder, VAE(RESIDUAL).decoder):
        blocks = [m for m in coder.modules() if isinstance(m, ResidualBlock)]
        widths = sorted(b.layers[2].in_channels for b in blocks)
        assert widths == [8, 8, 24, 24]
    assert not [m for m in VAE(RESIDUAL).modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_residual_block_begins_as_the_identity():
    features = torch.randn(2, 24, 5, 5)
    assert ResidualBlock(24)(features).equal(features)


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 1), (16, 1), (24, 1), (56, 1), (64, 4), (192, 12)]
)
def test_any_number_of_channels_can_be_normalised(channels, groups):
    assert num_groups(channels) == groups


def test_the_weights_of_a_residual_network_take_part_and_noise_reaches_the_picture():
    vae = build(RESIDUAL).train()
    reconstructions, mean, logvar = vae(torch.rand(4, 3, 32, 32), torch.randn(4, 5))
    (reconstructions.square().mean() + mean.square().mean() + logvar.mean()).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("config", [TINY, RESIDUAL], ids=["plain", "residual"])
def test_texture_begins_as_nothing(config):
    vae, latents = build(config), torch.randn(3, 5)
    with torch.no_grad():
        plain = vae.decode(latents)
        assert vae.decode(latents, 1.0).equal(plain)
        vae.decoder.add_texture()
        for texture in (0.0, 0.3, 1.0):
            torch.testing.assert_close(vae.decode(latents, texture), plain)


@pytest.mark.parametrize("config", [TINY, RESIDUAL], ids=["plain", "residual"])
def test_texture_goes_from_none_to_all_by_the_weights(config):
    vae, latents = with_texture(tiny_bundle(config)).vae, torch.randn(3, config.latent_dim)
    half = VAE(config).eval()
    half.load_state_dict(vae.plain_state())
    ends = [*vae.decoder.textured.levels.parameters()]
    last = [*half.decoder.parameters()][-len(ends) :]
    with torch.no_grad():
        without, whole = vae.decode(latents, 0.0), vae.decode(latents, 1.0)
        assert without.equal(half.decode(latents))
        for mine, end in zip(last, ends, strict=True):
            mine.lerp_(end, 0.5)
        for grain in vae.decoder.textured.grains:
            grain.weight.zero_()
        for block in (b for blocks in vae.decoder.textured.blocks for b in blocks):
            block.layers[-1].weight.zero_()
            block.layers[-1].bias.zero_()
        torch.testing.assert_close(vae.decode(latents, 0.5), half.decode(latents))
    assert not whole.allclose(without, atol=0.01)


@pytest.mark.parametrize("which", ["blocks.1.0", "blocks.1.1", "mends.0", "mends.1"])
def test_what_a_block_of_texture_adds_grows_with_texture(which):
    vae = build(dataclasses.replace(RESIDUAL, filters=(8, 8, 8, 8)))
    vae.decoder.add_texture()
    with torch.no_grad():
        vae.decoder.textured.get_submodule(which).layers[-1].weight.normal_(0, 1e-3)
        latents = torch.randn(4, 5)
        none, some, half, whole = (vae.decode(latents, texture) for texture in (0, 0.1, 0.5, 1.0))
    torch.testing.assert_close(half - none, (whole - none) / 2, rtol=0.1, atol=1e-5)
    torch.testing.assert_close(some - none, (whole - none) / 10, rtol=0.1, atol=1e-5)
    assert not whole.allclose(none, atol=1e-4)


def test_grain_is_always_the_same_and_goes_with_texture():
    vae = build(RESIDUAL)
    vae.decoder.add_texture()
    with torch.no_grad():
        vae.decoder.textured.grains[-1].weight.fill_(0.1)
        latents = torch.randn(1, 5)
        some, half, whole = (vae.decode(latents, texture) for texture in (0.0, 0.5, 1.0))
        assert vae.decode(latents, 1.0).equal(whole)
    assert (half - some).norm() < (whole - some).norm()
    again = build(RESIDUAL, seed=3).decoder
    again.add_texture()
    for mine, other in zip(vae.decoder.textured.buffers(), again.textured.buffers(), strict=True):
        assert mine.equal(other)


def test_levels_before_the_finest_are_mended_two_at_most_and_for_texture_alone():
    config = ModelConfig(size=64, latent_dim=5, filters=(4, 6, 8, 10, 12), residual_blocks=1)
    vae, latents = with_texture(tiny_bundle(config)).vae, torch.randn(2, 5)
    mends = vae.decoder.textured.mends
    assert [mend.layers[2].in_channels for mend in mends] == [10, 8]
    assert {mend.layers[2].out_channels for mend in mends} == {16}
    features = {}
    coarse, _ = vae.decoder._levels()
    for mend, level in zip(mends, coarse[-2:], strict=True):
        # what a mend gives is what its level takes
        mend.register_forward_hook(lambda m, _, out: features.update({m: out}))
        level[0].register_forward_pre_hook(lambda m, given: features.update({m: given[0]}))
    with torch.no_grad():
        plain = vae.decode(latents)
        assert not any(mend in features for mend in mends)
        features.clear()
        vae.decode(latents, 1.0)
        for mend, level in zip(mends, coarse[-2:], strict=True):
            assert features[mend].equal(features[level[0]])
        for mend in mends:
            mend.layers[-1].weight.zero_()
            mend.layers[-1].bias.zero_()
        assert vae.decode(latents).equal(plain)


@pytest.mark.parametrize("config", [TINY, RESIDUAL], ids=["plain", "residual"])
def test_texture_is_added_where_the_decoder_is(config):
    vae = VAE(config).to("meta")
    vae.decoder.add_texture()
    assert {t.device.type for t in vae.state_dict().values()} == {"meta"}


def test_texture_is_of_the_finest_levels_alone():
    config = ModelConfig(size=32, latent_dim=5, filters=(4, 6, 8), residual_blocks=1)
    vae = with_texture(tiny_bundle(config)).vae
    blocks = [m for m in vae.decoder.textured.modules() if isinstance(m, ResidualBlock)]
    assert [b.layers[2].in_channels for b in blocks] == [6, 4, 6, 6, 4, 4, 8], (
        "those of the levels, two more before each, and one before the level before them"
    )
    vae.decoder.add_texture()  # once is enough
    assert [b for b in vae.decoder.textured.modules() if isinstance(b, ResidualBlock)] == blocks


@pytest.mark.parametrize(
    ("name", "least", "most"), [("compact", 13e6, 16e6), ("sharp", 55e6, 65e6)]
)
def test_the_residual_presets_are_as_large_as_they_say(name, least, most):
    with torch.device("meta"):
        vae = VAE(preset(name).model)
        prior = build_prior(preset(name).train.prior_config, vae.config.latent_dim)
    assert least < num_parameters(vae) < most
    if name == "compact":  # with its prior it goes into the package, at half precision
        vae.decoder.add_texture()
        stored = sum(t.numel() for m in (vae, prior) for t in m.state_dict().values())
        stored += vae.config.latent_dim  # two triangles, in place of the prior's one whole matrix
        assert 2 * stored < 45e6


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_transposed_convolution_with_its_bias_beside_it_is_the_usual_one(precision):
    torch.manual_seed(0)
    ours, usual = ConvTranspose(6, 4), nn.ConvTranspose2d(6, 4, 3, 2, 1, 1)
    usual.load_state_dict(ours.state_dict())
    features = torch.randn(5, 6, 8, 8).to(memory_format=torch.channels_last)
    found = []
    for layer in (ours, usual):
        given = features.clone().requires_grad_()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            out = layer(given)
        assert out.dtype == precision
        out.float().square().sum().backward()
        found.append((out.detach().float(), given.grad, layer.weight.grad, layer.bias.grad))
    tolerance = 1e-5 if precision == torch.float32 else 0.02
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(
            mine, wanted, rtol=tolerance, atol=float(tolerance * wanted.abs().max())
        )


def test_group_norm_is_torchs_own_and_keeps_the_precision_of_its_features():
    features = torch.randn(2, 32, 4, 4)
    norm, usual = GroupNorm(2, 32), nn.GroupNorm(2, 32)
    nn.init.normal_(norm.weight)
    usual.load_state_dict(norm.state_dict())
    assert norm(features).equal(usual(features))
    rounded = norm(features.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), usual(features), rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_on_cuda_what_stands_between_convolutions_keeps_their_precision():
    """Shown with fake tensors, which have no values, but have a device and a dtype."""
    mode = FakeTensorMode()

    def on_cuda(tensor):
        return FakeTensor(mode, tensor.to("meta"), torch.device("cuda:0"))

    layers = {
        "own": (GroupNorm(2, 32), Upsample(scale_factor=2)),
        "torch's": (nn.GroupNorm(2, 32), nn.Upsample(scale_factor=2)),
    }
    features = on_cuda(torch.zeros(2, 32, 4, 4, dtype=torch.bfloat16))
    torch.set_autocast_enabled("cuda", True)  # noqa: FBT003 - torch.autocast itself wants a GPU
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with torch.no_grad():
            found = {
                whose: {
                    functional_call(layer, weights(layer, on_cuda), features).dtype
                    for layer in both
                }
                for whose, both in layers.items()
            }
    finally:
        torch.set_autocast_enabled("cuda", False)  # noqa: FBT003
    assert found == {"own": {torch.bfloat16}, "torch's": {torch.float32}}


def weights(layer, on_cuda):
    return {name: on_cuda(parameter.detach()) for name, parameter in layer.named_parameters()}
