"""The encoder, from images to posteriors of their latents, and the decoder, back to images.

The networks of Panguluri & Kamarajugadda 2020, section 3: four convolutions, each with batch norm
and LeakyReLU, and dense layers for mean and log-variance; a dense layer and four transposed
convolutions. Numbers of filters and the kernel size are those of Foster, Generative Deep Learning,
chapter 3, on which the paper builds. With `residual_blocks`, the convolutions are those of `blocks`.
"""

from itertools import chain, islice
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from facevae.config import TRUE_TEXTURE, ModelConfig
from facevae.networks.blocks import residual_decoder, residual_encoder
from facevae.networks.texture import TEXTURED, Texture
from facevae.system.runtime import generator

SLOPE = 0.2  # of LeakyReLU; the paper does not say
# the finest levels, which a texture copies, and the levels before them, which it corrects
_TEXTURED_LEVELS, _MENDED_LEVELS = 2, 2
LOGVAR_RANGE = (-30.0, 20.0)  # keeps exp(logvar) finite; the range that diffusers' VAE uses


class Coder(Protocol):
    """A model with an encoder and a decoder: a VAE, or a baseline."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, size, size) in [0, 1] → mean and log-variance, each (B, D)."""

    def decode(self, latents: Tensor, texture: float = ...) -> Tensor:
        """latents (B, D) → images (B, 3, size, size) in [0, 1]."""


class ConvTranspose(nn.ConvTranspose2d):
    """features (B, C, H, W) → (B, C', 2 H, 2 W), by a kernel of 3 × 3.

    The bias is added outside the convolution: on a CPU, oneDNN's gradient of the bias would take a
    quarter of the time of a whole training step.
    """

    bias: nn.Parameter

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, kernel_size=3, stride=2, padding=1, output_padding=1)

    def forward(self, features: Tensor, _output_size: list[int] | None = None) -> Tensor:
        """Features of twice the height and width."""
        upsampled = nn.functional.conv_transpose2d(
            features, self.weight, stride=2, padding=1, output_padding=1
        )
        return upsampled.add_(self.bias.to(upsampled.dtype).view(-1, 1, 1))


class Encoder(nn.Module):
    """images (B, 3, size, size) in [0, 1] → mean and log-variance, each (B, latent_dim)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers = (
            residual_encoder(config.filters, config.residual_blocks)
            if config.residual_blocks
            else _plain_encoder(config)
        )
        self.convolutions = nn.Sequential(*layers)
        features = config.filters[-1] * (config.size >> len(config.filters)) ** 2
        self.mean = nn.Linear(features, config.latent_dim)
        self.logvar = nn.Linear(features, config.latent_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance; the latter is not clamped."""
        features = self.convolutions(images).flatten(1)
        return self.mean(features), self.logvar(features)


class Decoder(nn.Module):
    """latents (B, latent_dim) → images (B, 3, size, size) in [0, 1].

    A finished decoder has two versions of its finest levels: the plain ones, which are true to the
    pixels of a face, and `textured`, which adds plausible detail. The textured levels started as a
    copy of the plain ones, so that weights can be interpolated between them: by `texture`, from
    0 (plain) to 1 (Wang et al. 2018, ESRGAN, section 3.4, interpolate networks in this way).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        side = config.size >> len(config.filters)
        self.shape = (config.filters[-1], side, side)
        self.dense = nn.Linear(config.latent_dim, config.filters[-1] * side * side)
        levels = (
            residual_decoder(config.filters, config.residual_blocks)
            if config.residual_blocks
            else _plain_decoder(config)
        )
        levels[-1].append(nn.Sigmoid())
        self.convolutions = nn.Sequential(*chain.from_iterable(levels))
        self._num_layers = [len(level) for level in levels]
        self._widths, self._size = config.filters[::-1], config.size
        self.textured: Texture | None = None

    def add_texture(self) -> None:
        """Add textured levels, if there are none. They start as copies, so all images stay the same."""
        if self.textured is None:
            coarse, fine = self._levels()
            mended = self._widths[: len(coarse)][-_MENDED_LEVELS:]
            texture = Texture(fine, self._widths[-len(fine) :], mended, self._size)
            self.textured = texture.to(self.dense.weight.device)

    def forward(self, latents: Tensor, texture: float = 0.0) -> Tensor:
        """Images, the output of a sigmoid."""
        features: Tensor = self.dense(latents).unflatten(1, self.shape)
        images: Tensor
        if self.textured is None or not texture:
            images = self.convolutions(features)
            return images
        coarse, fine = self._levels()
        if texture == 1:
            images = self.textured(features, coarse)
        else:
            weights = self.textured.part_of(texture, fine)
            images = functional_call(self.textured, weights, (features, coarse))
        return images

    def coarse_and_fine(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the levels before the finest ones, and of the finest ones.

        The latter include the texture, with its corrections of coarser levels.
        """
        coarse, fine = self._levels()
        before = [self.dense, *chain.from_iterable(coarse)]
        after = [*chain.from_iterable(fine), *([self.textured] if self.textured else [])]
        coarse_parameters, fine_parameters = (
            [p for module in modules for p in module.parameters()] for modules in (before, after)
        )
        return coarse_parameters, fine_parameters

    def _levels(self) -> tuple[list[list[nn.Module]], list[list[nn.Module]]]:
        """Layers of each level before the finest ones, and of each of the finest ones."""
        layers = iter(self.convolutions)
        levels = [list(islice(layers, count)) for count in self._num_layers]
        return levels[:-_TEXTURED_LEVELS], levels[-_TEXTURED_LEVELS:]


class VAE(nn.Module):
    """Encoder and decoder over one latent space."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, size, size) in [0, 1] → mean and log-variance, float32 (B, latent_dim)."""
        mean, logvar = self.encoder(images)
        return mean.float(), logvar.float().clamp(*LOGVAR_RANGE)

    def decode(self, latents: Tensor, texture: float = TRUE_TEXTURE) -> Tensor:
        """latents (B, latent_dim) → images (B, 3, size, size) in [0, 1].

        `texture`, from 0 to 1, is how much invented detail a finished decoder adds; it has no effect
        on other decoders.
        """
        images: Tensor = self.decoder(latents, texture)
        return images

    def plain_state(self) -> dict[str, Tensor]:
        """All weights except the texture's: those that every VAE of this configuration has."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(TEXTURED)}

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images, standard normal noise (B, latent_dim) → reconstructions, mean, log-variance."""
        mean, logvar = self.encode(images)
        return self.decode(sample_posterior(mean, logvar, noise)), mean, logvar


def remove_variance(vae: VAE) -> None:
    """Make a VAE a plain autoencoder, in place: its posteriors have almost no variance.

    They keep it so in training: the log-variance is below the range to which it is clamped, where
    it has no gradient.
    """
    nn.init.zeros_(vae.encoder.logvar.weight)
    nn.init.constant_(vae.encoder.logvar.bias, LOGVAR_RANGE[0] - 1)


def _plain_encoder(config: ModelConfig) -> list[nn.Module]:
    """The paper's convolutions: images (B, 3, H, W) to features, half as large at each level."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *config.filters), config.filters, strict=False):
        layers += [
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1),
            nn.BatchNorm2d(after),
            _activation(config.dropout),
        ]
    return layers


def _plain_decoder(config: ModelConfig) -> list[list[nn.Module]]:
    """The paper's transposed convolutions, by level; the last one is followed by a sigmoid."""
    widths = config.filters[::-1]
    levels: list[list[nn.Module]] = [
        [ConvTranspose(before, after), nn.BatchNorm2d(after), _activation(config.dropout)]
        for before, after in zip(widths, (*widths[1:], 3), strict=True)
    ]
    del levels[-1][1:]  # a sigmoid takes the place of batch norm and activation
    return levels


def _activation(dropout: float) -> nn.Module:
    """LeakyReLU and dropout, as one layer, so that names of weights do not depend on dropout."""
    # in place, which saves a sixth of a step's memory: for the gradients batch norm needs its input,
    # and LeakyReLU its output
    activation = nn.LeakyReLU(SLOPE, inplace=True)
    return nn.Sequential(activation, nn.Dropout(dropout)) if dropout else activation


def sample_posterior(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Samples z = mean + σ · ε (B, D) of posteriors, for noise ε (B, D)."""
    return mean + (0.5 * logvar).exp() * noise


def draw_posteriors(mean: Tensor, logvar: Tensor, *key: int) -> Tensor:
    """A sample (N, D) of each posterior, with noise that `key` determines."""
    noise = torch.randn(mean.shape, generator=generator(*key)).to(mean)
    return sample_posterior(mean, logvar, noise)


def num_parameters(module: nn.Module) -> int:
    """Number of trainable parameters of `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
