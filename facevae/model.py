"""The networks: an image to the posterior of its latent, and a latent to an image.

Panguluri & Kamarajugadda 2020, section 3: four convolutions, each with batch norm and LeakyReLU,
dense layers for mean and log-variance; a dense layer and four transposed convolutions. Filters
and kernel are those of the lineage it builds on (Foster, Generative Deep Learning, chapter 3).
With `residual_blocks` the convolutions are those of `blocks` instead.
"""

from itertools import chain, islice
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from facevae.blocks import residual_decoder, residual_encoder
from facevae.config import TRUE_TEXTURE, ModelConfig
from facevae.runtime import generator
from facevae.texture import TEXTURED, Texture

SLOPE = 0.2  # of LeakyReLU; the paper names none
_TEXTURED_LEVELS, _MENDED_LEVELS = 2, 2  # the finest, and those before them
LOGVAR_RANGE = (-30.0, 20.0)  # keeps exp(logvar) finite; the range that diffusers' VAE uses


class Coder(Protocol):
    """What makes latents of images and images of latents: a VAE, or what it is compared with."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, size, size) in [0, 1] → mean and log-variance, each (B, D)."""

    def decode(self, latents: Tensor, texture: float = ...) -> Tensor:
        """latents (B, D) → images (B, 3, size, size) in [0, 1]."""


class ConvTranspose(nn.ConvTranspose2d):
    """features (B, C, H, W) → (B, C', 2 H, 2 W), by a kernel of 3 × 3.

    Its bias is added outside of the convolution: as oneDNN takes that bias's gradient on a CPU, it
    would be a quarter of a whole step.
    """

    bias: nn.Parameter

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, kernel_size=3, stride=2, padding=1, output_padding=1)

    def forward(self, features: Tensor, _output_size: list[int] | None = None) -> Tensor:
        """Twice as large features."""
        widened = nn.functional.conv_transpose2d(
            features, self.weight, stride=2, padding=1, output_padding=1
        )
        return widened + self.bias.to(widened.dtype).view(-1, 1, 1)


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
        """Mean and log-variance, not yet clamped."""
        features = self.convolutions(images).flatten(1)
        return self.mean(features), self.logvar(features)


class Decoder(nn.Module):
    """latents (B, latent_dim) → images (B, 3, size, size) in [0, 1].

    After a finish the layers of its finest levels are there twice: those that hold on to a face's
    pixels, and `textured` ones, which need not. Since these began as those, there is a way from the
    ones to the others: `texture`, from 0 to 1, says how far along it the weights are (Wang et al.
    2018, ESRGAN, section 3.4, interpolate networks so).
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
        """Have the layers of the finest levels twice, if they are not yet: all images stay the same."""
        if self.textured is None:
            coarse, fine = self._levels()
            mended = self._widths[: len(coarse)][-_MENDED_LEVELS:]
            texture = Texture(fine, self._widths[-len(fine) :], mended, self._size)
            self.textured = texture.to(self.dense.weight.device)

    def forward(self, latents: Tensor, texture: float = 0.0) -> Tensor:
        """Images, through a sigmoid."""
        features: Tensor = self.dense(latents).unflatten(1, self.shape)
        images: Tensor
        if self.textured is None or not texture:
            images = self.convolutions(features)
            return images
        coarse, fine = self._levels()
        if texture == 1:
            images = self.textured(features, coarse)
        else:
            between = self.textured.part_of(texture, fine)
            images = functional_call(self.textured, between, (features, coarse))
        return images

    def coarse_and_fine(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters before the finest levels, and those of these, plain and textured.

        What mends the levels before for the texture goes with the latter.
        """
        coarse, fine = self._levels()
        first = [self.dense, *chain.from_iterable(coarse)]
        then = [*chain.from_iterable(fine), *([self.textured] if self.textured else [])]
        before, after = (
            [p for module in modules for p in module.parameters()] for modules in (first, then)
        )
        return before, after

    def _levels(self) -> tuple[list[list[nn.Module]], list[list[nn.Module]]]:
        """The layers of each level before the finest ones, and of each of these."""
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

        `texture` from 0 to 1 is how much detail a finished decoder makes up, beside what it knows of a
        face; the others make up none.
        """
        images: Tensor = self.decoder(latents, texture)
        return images

    def plain_state(self) -> dict[str, Tensor]:
        """All weights but those of the texture: those that every VAE of this configuration has."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(TEXTURED)}

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images, standard normal noise (B, latent_dim) → reconstructions, mean, log-variance."""
        mean, logvar = self.encode(images)
        return self.decode(sample_posterior(mean, logvar, noise)), mean, logvar


def remove_variance(vae: VAE) -> None:
    """Make it a plain autoencoder, in place: its posteriors are their means, and stay so.

    The log-variance is put below its floor, where no gradient reaches it.
    """
    nn.init.zeros_(vae.encoder.logvar.weight)
    nn.init.constant_(vae.encoder.logvar.bias, LOGVAR_RANGE[0] - 1)


def _plain_encoder(config: ModelConfig) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in zip((3, *config.filters), config.filters, strict=False):
        layers += [
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1),
            nn.BatchNorm2d(after),
            _activation(config.dropout),
        ]
    return layers


def _plain_decoder(config: ModelConfig) -> list[list[nn.Module]]:
    inward = config.filters[::-1]
    levels: list[list[nn.Module]] = [
        [ConvTranspose(before, after), nn.BatchNorm2d(after), _activation(config.dropout)]
        for before, after in zip(inward, (*inward[1:], 3), strict=True)
    ]
    del levels[-1][1:]  # its batch norm and activation give way to a sigmoid
    return levels


def _activation(dropout: float) -> nn.Module:
    """LeakyReLU, with dropout after it in the same place, so that weights fit with or without."""
    activation = nn.LeakyReLU(SLOPE)
    return nn.Sequential(activation, nn.Dropout(dropout)) if dropout else activation


def sample_posterior(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """z = mean + σ · ε: (B, D) from three (B, D)."""
    return mean + (0.5 * logvar).exp() * noise


def draw_posteriors(mean: Tensor, logvar: Tensor, *key: int) -> Tensor:
    """A sample of each posterior, (N, D) from two (N, D), that depends on `key` beside them alone."""
    noise = torch.randn(mean.shape, generator=generator(*key)).to(mean)
    return sample_posterior(mean, logvar, noise)


def num_parameters(module: nn.Module) -> int:
    """Trainable numbers in `module`."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
