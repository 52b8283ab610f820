"""The finish of a decoder against a discriminator, with encoder and prior as they are.

A likelihood of pixels blurs what a latent leaves open. Here the decoder goes on until what it
makes, of faces and of the prior's samples, is not told from faces, while it holds on to the
pixels; since the encoder does not change, latents, prior and directions stay valid (Esser et al.
2021 finish their autoencoder at once with such a loss).
"""

import copy
import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from facevae import losses, parallel
from facevae.batches import Batches
from facevae.budget import Budget
from facevae.config import TrainConfig
from facevae.guard import Guard
from facevae.model import VAE
from facevae.perceptual import Perceptual
from facevae.prior import Prior, sample_latents
from facevae.runtime import generator, seeded, training_precision
from facevae.states import average, optimizer_state, part, prefixed, restore_optimizer

# what a generator's numbers are for, so that no two uses share them
_SAMPLES, _AUGMENTATION = 5, 6

MAX_BATCH_SIZE = 16  # many small steps sharpen more than fewer large ones of as many images
_LEARNING_RATE = 5e-4
_WARM_UP_STEPS = 100  # until the discriminator counts in full
_COOL_DOWN = 0.3  # of the budget, in which the learning rates fall to zero
_EMA_IMAGES = 10_000  # half-life of the averaged decoder
CYCLE = 16  # steps, of which the first draws the prior's samples for all, and takes the penalty
_PENALTY = 0.02  # of R1, taken now and then (Karras et al. 2020, section 3.1)
# weights of log(mean squared error), of feature matching, and of a perceptual distance
_PIXELS, _FEATURES, _PERCEPTUAL = 5.0, 2.0, 5.0
_COARSE = 32  # side in pixels at which samples stay what they were
_SMALLEST = 4  # side in pixels of the discriminator's last features
_PATCH_LEVEL = 3  # of its features, those that see patches of 24 pixels
_DETAIL = 32.0  # times a pixel's difference from its neighbourhood, which is about 0.02 in faces


def batch_size(config: TrainConfig) -> int:
    """Of the finish: as the training's, but for what is more than is of use."""
    return min(config.batch_size, max(MAX_BATCH_SIZE, parallel.size()))


class Discriminator(nn.Module):
    """images (B, 3, size, size) in [0, 1] → logits (B, 1 + P), and features of each level.

    The first logit is of the whole image, the others are of patches, which tell texture sooner
    (Isola et al. 2017, section 3.2.2). Detail is given apart and amplified, as by a level of a
    Laplacian pyramid (Denton et al. 2015): by pixels alone it takes thousands of steps until what
    is faint beside light and shade counts. Convolutions of stride 2 as in DCGAN (Radford et al.
    2016), `width` channels at first and at most 8 × as many, without norms: what keeps it in
    check is R1.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        halvings = int(math.log2(size // _SMALLEST))
        widths = [6, *(min(width * 2**i, 8 * width) for i in range(halvings))]
        self.levels = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1)
            for before, after in pairwise(widths)
        )
        self.of_patches = nn.Conv2d(widths[_PATCH_LEVEL], 1, kernel_size=1)
        self.of_whole = nn.Linear(widths[-1] * _SMALLEST**2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and features."""
        detail = _DETAIL * (images - _neighbourhoods(images))
        hidden = torch.cat([2 * images - 1, detail], 1)
        features = []
        for level in self.levels:
            hidden = functional.leaky_relu(level(hidden), 0.2)
            features.append(hidden)
        of_patches = self.of_patches(features[_PATCH_LEVEL - 1])
        logits = torch.cat([self.of_whole(hidden.flatten(1)), of_patches.flatten(1)], 1)
        return logits.float(), features


def _neighbourhoods(images: Tensor) -> Tensor:
    """The mean of the 3 × 3 pixels about each: images (B, 3, H, W) → (B, 3, H, W).

    Sums of shifted images take a third of the time of `avg_pool2d` or less, and are not
    rounded to bfloat16 as a convolution's are.
    """
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    columns = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return (columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]) / 9


def of_images(values: Tensor) -> Tensor:
    """Of the whole image and of its patches (B, 1 + P), each kind counting half: (B,)."""
    return (values[:, 0] + values[:, 1:].mean(1)) / 2


def steepness(logits: Tensor) -> Tensor:
    """Of logits (B, 1 + P), what R1 keeps from being steep: (B,).

    Patches overlap little, so that the sum over them divided by the root of their number is as
    steep as one of them, and the whole and they together as one of the two.
    """
    whole, patches = logits[:, 0], logits[:, 1:]
    return (whole + patches.sum(1) / math.sqrt(patches.shape[1])) / math.sqrt(2)


class Augmentation:
    """Light changes of colour and place, alike for all that goes through it in a step.

    Zhao et al. 2020: what the discriminator sees is augmented, real or made, so that it does not
    learn its few faces by heart. Brightness by up to ±.1, contrast and saturation by up to a
    quarter, an image each; all are moved by up to a sixteenth.
    """

    def __init__(self, count: int, size: int, draw: torch.Generator) -> None:
        """For a batch of `count`, of which each process has its share."""
        uniform = 2 * torch.rand(3, count, 1, 1, 1, generator=draw) - 1
        uniform = uniform[:, parallel.share(count)]
        self._brightness, contrast, saturation = uniform * torch.tensor([0.1, 0.25, 0.25]).view(
            3, 1, 1, 1, 1
        )
        self._contrast, self._saturation = 1 + contrast, 1 + saturation
        self._reach = size // 16
        moves = torch.randint(2 * self._reach + 1, (2,), generator=draw)
        self._down, self._right = moves.tolist()

    def __call__(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) → (B, 3, H, W), with gradients."""
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * self._saturation.to(images, non_blocking=True)
        level = images.mean((1, 2, 3), keepdim=True)
        images = level + (images - level) * self._contrast.to(images, non_blocking=True)
        images = images + self._brightness.to(images, non_blocking=True)
        height, width = images.shape[2:]
        padded = functional.pad(images, (self._reach,) * 4)
        return padded[:, :, self._down : self._down + height, self._right : self._right + width]


class FinishStage:
    """Finishes the decoder; `vae` holds the averaged weights, which are the ones to use.

    Batch norm, where there is some, keeps its statistics: what is trained is what is used.
    """

    terms: tuple[str, ...] = ("generator_loss", "discriminator_loss", "feature_loss", "mse")

    def __init__(
        self,
        vae: VAE,
        prior: Prior,
        batches: Batches,
        config: TrainConfig,
        perceptual: Perceptual | None = None,
    ) -> None:
        """With `perceptual`, reconstructions are held to what it measures too."""
        self._perceptual = perceptual
        self.vae = vae.eval().requires_grad_(requires_grad=False)
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.prior, self.batches, self.config = prior.eval(), batches, config
        self._before = copy.deepcopy(vae.decoder)
        self.decoder = copy.deepcopy(vae.decoder).requires_grad_()
        with seeded(config.seed):
            width = max(16, vae.config.filters[0])
            self.discriminator = Discriminator(vae.config.size, width).to(batches.device)
        self.discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        num_steps = math.ceil(config.finish_epochs * batches.num_faces / batches.size)
        self.budget = Budget(num_steps, config.seconds_for("finish"))
        self.optimizer, self._critic = (
            torch.optim.Adam(m.parameters(), lr=_LEARNING_RATE, betas=(0.0, 0.99), fused=True)
            for m in (self.decoder, self.discriminator)
        )
        self.guard = Guard(self.decoder, self.optimizer)
        self._critic_guard = Guard(self.discriminator, self._critic)
        self._drawn: tuple[int, Tensor] | None = None

    def step(self, index: int) -> Tensor:
        """One update of both; returns the values of `terms`, (4,), zeros if it was skipped."""
        # Decode faces and samples of the prior
        images = self.batches(index)
        own, count, device = len(images), self.batches.size, images.device
        with torch.no_grad(), training_precision(device):
            mean, _ = self.vae.encode(images)
        samples = self._samples(index)
        with training_precision(device):
            made = self.decoder(torch.cat([mean, samples])).float()
        draw = generator(self.config.seed, _AUGMENTATION, index)
        as_shown, elsewhere = (Augmentation(count, self.vae.config.size, draw) for _ in range(2))
        real = as_shown(images)
        shown = torch.cat([as_shown(made[:own]), elsewhere(made[own:])])
        mean_of = partial(_mean, own, count)

        def mean_verdict(values: Tensor) -> Tensor:
            return mean_of(of_images(values))

        # Tell them from faces
        self._set_rates(index)
        self.discriminator.requires_grad_()
        with training_precision(device):
            logits, _ = self.discriminator(torch.cat([real, shown.detach()]))
        critic_loss = losses.discriminator_loss(logits[:own], logits[own:], mean_verdict)
        penalty = self._penalty(real, mean_of) if index % CYCLE == 0 else 0.0
        critic_is_sound = self._critic_guard.step(critic_loss + penalty)

        # Be taken for faces
        self.discriminator.requires_grad_(requires_grad=False)
        with training_precision(device):
            with torch.no_grad():
                _, real_features = self.discriminator(real)
            logits, features = self.discriminator(shown)
        adversarial = losses.generator_loss(logits, mean_verdict)
        as_made = [level[:own] for level in features]
        matching = losses.feature_matching(as_made, real_features, mean_of)
        mse = mean_of(losses.mean_squared_error(made[:own], images))
        weight = self.config.finish_weight * min(1.0, index / _WARM_UP_STEPS)
        strayed = self._strayed(samples, made[own:], mean_of)
        # in the units in which the logarithm's gradient counts an error
        pixels = mse.clamp_min(losses.MIN_MSE).log()
        pixels = pixels + strayed / mse.detach().clamp_min(losses.MIN_MSE)
        loss = _PIXELS * pixels + _FEATURES * matching + weight * adversarial
        if self._perceptual:
            loss = loss + _PERCEPTUAL * mean_of(self._perceptual(made[:own], images))
        # where the one is left out, so is the other
        is_sound = self.guard.step(loss * torch.where(critic_is_sound, 1.0, math.nan))
        seen = (index + 1) * self.batches.size
        half_life = min(_EMA_IMAGES, 0.1 * seen)
        average(self.vae.decoder, self.decoder, 0.5 ** (self.batches.size / half_life))
        found = torch.stack([adversarial, critic_loss, matching, mse])
        return found.detach().where(is_sound, 0.0)

    def _samples(self, index: int) -> Tensor:
        """Latents (B, D) of the prior, drawn for some steps at once, since that is many small ones."""
        block, within = divmod(index, CYCLE)
        if self._drawn is None or self._drawn[0] != block:
            draw = generator(self.config.seed, _SAMPLES, block)
            shape = (CYCLE * self.batches.size, self.vae.config.latent_dim)
            noise = torch.randn(shape, generator=draw).to(self.batches.device, non_blocking=True)
            with torch.no_grad(), training_precision(noise.device):
                self._drawn = block, sample_latents(self.prior, noise).float()
        drawn = self._drawn[1][within * self.batches.size : (within + 1) * self.batches.size]
        return drawn[parallel.share(self.batches.size)]

    def _strayed(self, samples: Tensor, made: Tensor, mean_of: losses.Mean) -> Tensor:
        """How far samples, as they are made now, are coarsely from what they were: a scalar.

        Nothing else holds them: where the prior is poor, texture alone makes scribbles of a face.
        """
        scale = max(1, made.shape[-1] // _COARSE)
        with torch.no_grad(), training_precision(made.device):
            before = self._before(samples).float()
        now, was = (functional.avg_pool2d(images, scale) for images in (made, before))
        return mean_of(losses.mean_squared_error(now, was))

    def _penalty(self, real: Tensor, mean_of: losses.Mean) -> Tensor:
        real = real.detach().requires_grad_()
        logits, _ = self.discriminator(real)
        return _PENALTY * CYCLE * losses.gradient_penalty(steepness(logits), real, mean_of)

    def _set_rates(self, index: int) -> None:
        rate = _LEARNING_RATE * min(1.0, (1 - self.budget.share(index)) / _COOL_DOWN)
        for optimizer in (self.optimizer, self._critic):
            optimizer.param_groups[0]["lr"] = rate

    def state(self) -> dict[str, Tensor]:
        """Both networks, the averaged decoder, the optimisers' moments, and what guards count."""
        return (
            prefixed("decoder.", self.decoder.state_dict())
            | prefixed("averaged.", self.vae.decoder.state_dict())
            | optimizer_state(self.optimizer)
            | prefixed("guard.", self.guard.state())
            | prefixed("discriminator.", self.discriminator.state_dict())
            | prefixed("critic.", optimizer_state(self._critic))
            | prefixed("critic_guard.", self._critic_guard.state())
            | prefixed("budget.", self.budget.state())
        )

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.decoder.load_state_dict(part(state, "decoder."))
        self.vae.decoder.load_state_dict(part(state, "averaged."))
        restore_optimizer(self.optimizer, state)
        self.guard.restore(part(state, "guard."))
        self.discriminator.load_state_dict(part(state, "discriminator."))
        restore_optimizer(self._critic, part(state, "critic."))
        self._critic_guard.restore(part(state, "critic_guard."))
        self.budget.restore(part(state, "budget."))

    def inputs(self) -> dict[str, Tensor]:
        """The model as it was fitted."""
        vae = self.vae.state_dict() | prefixed("decoder.", self._before.state_dict())
        return prefixed("fitted.vae.", vae) | prefixed("fitted.prior.", self.prior.state_dict())


def _mean(own: int, count: int, values: Tensor) -> Tensor:
    """The mean over a batch of `count`, or twice that, of which these are this process's `own`."""
    return parallel.mean(values, len(values) // own * count)
