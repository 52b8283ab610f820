"""Adversarial finish of the decoder, with the encoder and the prior fixed.

A pixel likelihood blurs whatever a latent leaves undetermined. This stage trains the decoder until
discriminators cannot tell its images from faces, while a pixel loss holds reconstructions to their
originals (Esser et al. 2021 train a whole autoencoder with such a loss). The encoder does not
change, so latents, prior and directions stay valid.

Samples of the prior have no originals. They use a copy of the decoder's finest layers, `textured`,
which may add detail that would cost a reconstruction its likeness. Reconstructions and samples have
separate discriminators: a shared one recognises reconstructions by their missing detail and learns
little about what is still wrong with samples. A second discriminator for each of the two sees the
features of a network pretrained on photographs (`projected`).
"""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from facevae.config import WHOLE_TEXTURE, TrainConfig
from facevae.data.batches import Batches
from facevae.measures import losses
from facevae.measures.perceptual import Perceptual
from facevae.networks.prior import Prior, sample_latents
from facevae.networks.vae import VAE
from facevae.stages.budget import Budget
from facevae.stages.critic import BETAS, PENALTY_INTERVAL, Critic, TrainableDiscriminator
from facevae.stages.discriminator import Augmentation, Discriminator, checkerboard_energy
from facevae.stages.fast import AcceleratedStep, Forward, Step, Warn
from facevae.stages.guard import Guard
from facevae.stages.projected import ProjectedCritic, Projection, update_projected
from facevae.stages.stage import Stage
from facevae.stages.states import adam, average, prefixed, strip_prefix
from facevae.system import parallel
from facevae.system.runtime import Stream, generator, seeded, sent, training_precision

# The first two are losses with the pixel discriminators, the third is with the projected ones.
_TERMS = ("generator_loss", "discriminator_loss", "projected_loss", "feature_loss", "mse")

MAX_BATCH_SIZE = 16  # many small steps sharpen more than fewer large ones on as many images
CYCLE = PENALTY_INTERVAL  # steps; the first of each takes the penalty and draws all its samples
COARSE_END = 0.6  # share of the budget after which the coarse layers are frozen
_LEARNING_RATE = 5e-4
_WARM_UP_STEPS = 100  # in which the discriminators' weights rise from zero
_COOL_DOWN = 0.3  # share of the budget in which the decoder's learning rates fall to zero
_EMA_IMAGES = 3_000  # half-life of the averaged decoder
# Side in pixels at which samples are held to their earlier selves, while coarse layers train and
# after that. The first allows corrections of eyes, teeth and lips, the second also of noses.
_COARSE_SIDE, _FROZEN_COARSE_SIDE = 16, 8


class Schedule(NamedTuple):
    """What changes with the budget from step to step."""

    coarse_rate: float
    rate: float
    strength: float  # of discriminators: `finish_weight` times a warm-up
    samples_strength: float  # of the samples' pixel discriminator, which restarts once
    decay: float  # of the averaged decoder


def batch_size(config: TrainConfig) -> int:
    """Batch size of the finish: the training's, at most `MAX_BATCH_SIZE` or one face a process."""
    return min(config.batch_size, max(MAX_BATCH_SIZE, parallel.size()))


class FinishStage(Stage):
    """Trains the decoder adversarially; `vae` holds the averaged weights, which are to be used.

    Batch norm, if any, keeps its statistics: the decoder trains in the mode in which it is used.
    """

    terms = _TERMS

    def __init__(
        self,
        vae: VAE,
        prior: Prior,
        batches: Batches,
        config: TrainConfig,
        perceptual: Perceptual | None = None,
        warn: Warn = lambda _: None,
        weights: losses.LossWeights = losses.DEFAULT_WEIGHTS,
    ) -> None:
        """`perceptual`, if given, adds a loss on reconstructions."""
        self._perceptual, self.weights, self._warn = perceptual, weights, warn
        self.vae = vae.eval().requires_grad_(requires_grad=False)
        self.prior, self.batches, self.config = prior.eval(), batches, config
        # the coarse layers of a decoder that was finished before have been trained already
        coarse_end = 0.0 if vae.decoder.textured else COARSE_END
        self._coarse_end = torch.tensor(coarse_end, dtype=torch.float64)
        records = parallel.size() == 1
        with seeded(config.seed):
            vae.decoder.add_texture()
            networks = [self._discriminator() for _ in range(2)]
            self.projected = tuple(  # of reconstructions, and of samples
                ProjectedCritic(batches.device, batches.size, records=records) for _ in range(2)
            )
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._reference = copy.deepcopy(vae.decoder)  # which samples must not drift from
        self.decoder = copy.deepcopy(vae.decoder).requires_grad_()
        num_steps = math.ceil(config.finish_epochs * batches.num_faces / batches.size)
        self.budget = Budget(num_steps, config.seconds_for("finish"))
        groups = self.decoder.coarse_and_fine()
        self.optimizer = adam(*groups, learning_rate=_LEARNING_RATE, betas=BETAS, records=records)
        self.guard = Guard(self.decoder, self.optimizer)
        self.critics = tuple(  # of reconstructions, and of samples
            Critic(network, batches.size, _LEARNING_RATE, records=records) for network in networks
        )
        self.projection = Projection(batches.device)
        self._block: tuple[int, Tensor] | None = None  # number and samples of the latest cycle
        self.frozen_at = torch.tensor(-1)  # the step that froze the coarse layers, -1 before it
        self.use_accelerator(self._accelerated if records else partial)

    def _discriminator(self) -> Discriminator:
        config = self.vae.config
        return Discriminator(config.size, max(16, config.filters[0])).to(self.batches.device)

    def _accelerated(self, step: Step, forward: Forward) -> Step:
        # not compiled: the compiler is for one loss of one network
        left = self.budget.seconds_left
        return AcceleratedStep(step, forward, self.decoder, self._warn, left, compiler=None)

    def use_accelerator(self, accelerate: Callable[[Step, Forward], Step]) -> None:
        """Draw and update by `accelerate(step, forward)`, which does `step(forward, *tensors)`."""
        self._accelerate = accelerate
        self._draw = accelerate(lambda forward, noise: forward(noise), self._latents)
        self._prepare_updates()

    def _prepare_updates(self) -> None:
        """Make the update functions; they compute no gradients for frozen layers."""
        coarse, _ = self.decoder.coarse_and_fine()
        trains_coarse = bool(self._coarse_end > 0)
        self._coarse_side = _COARSE_SIDE if trains_coarse else _FROZEN_COARSE_SIDE
        for parameter in coarse:
            parameter.requires_grad_(trains_coarse)
        # one with the penalty, one without: a recorded update always does the same
        self._updates = {
            penalised: self._accelerate(partial(self._update_from, penalised), self._decode)
            for penalised in (False, True)
        }

    def step(self, index: int) -> Tensor:
        """Update all networks; return the values of `terms`, (5,), zeros if it was skipped."""
        if self.frozen_at < 0 and self.budget.share(index) >= self._coarse_end:
            self.freeze_coarse(index)
        images = self.batches(index)
        rng = generator(self.config.seed, Stream.AUGMENTATION, index)
        shape = self.batches.size, self.vae.config.size
        inputs = *Augmentation.sample_stacked(2, *shape, rng), torch.tensor(self.schedule(index))
        update = self._updates[index % CYCLE == 0]
        return update(images, self.samples(index), *(sent(each, images.device) for each in inputs))

    def freeze_coarse(self, index: int) -> None:
        """Freeze the coarse layers from step `index` on, and reset the samples' discriminator.

        A discriminator trained for long recognises samples by what no texture can mend, and the
        decoder responds with less texture. A new one first asks for what all faces have, which
        texture soon provides; the projected one is kept, as it never had to learn that. Samples are
        now held, less closely, to their present state with texture, which may then grow. Coarse
        layers stay frozen however long the finish is continued.
        """
        with seeded(self.config.seed + 1):
            self.critics[1].reset(self._discriminator())
        self._reference.load_state_dict(self.vae.decoder.state_dict())
        self.frozen_at.fill_(index)
        self._coarse_end.zero_()
        self._prepare_updates()

    def schedule(self, index: int) -> Schedule:
        """The schedule's values at step `index`.

        The learning rate of the coarse layers reaches zero before that of the others: texture is
        learned sooner on features that do not change. In a decoder's second finish it is zero.
        """
        share = self.budget.share(index)
        coarse, rate = (
            _LEARNING_RATE * min(1.0, max(0.0, end - share) / _COOL_DOWN)
            for end in (float(self._coarse_end), 1.0)
        )
        strength, samples_strength = (
            self.config.finish_weight * min(1.0, (index - first) / _WARM_UP_STEPS)
            for first in (0, max(0, int(self.frozen_at)))
        )
        half_life = min(_EMA_IMAGES, 0.1 * (index + 1) * self.batches.size)
        decay = 0.5 ** (self.batches.size / half_life)
        return Schedule(coarse, rate, strength, samples_strength, decay)

    def _decode(self, mean: Tensor, samples: Tensor) -> Tensor:
        """Reconstructions and samples, (2 B, 3, size, size), from latents (B, D) of each."""
        return torch.cat([self.decoder(mean), self.decoder(samples, WHOLE_TEXTURE)]).float()

    def _update_from(
        self,
        penalised: bool,  # noqa: FBT001 - bound before tensors are given
        decode: Forward,
        images: Tensor,
        samples: Tensor,
        colours: Tensor,
        shifts: Tensor,
        schedule: Tensor,
    ) -> Tensor:
        """Take one update. All that changes between steps is in tensors, so it can be recorded.

        Images are (B, 3, H, W), samples (B, D). `colours` (2, 3, B, 1, 1, 1) and `shifts` (2, 2)
        make the augmentations of faces and of samples. `schedule` (5,) is a `Schedule`.
        """
        coarse_rate, rate, strength, samples_strength, decay = schedule
        for group, lr in zip(self.optimizer.param_groups, (coarse_rate, rate), strict=True):
            group["lr"].copy_(lr)
        count = len(images)

        # Decode the faces' latents and the samples
        with training_precision(images.device):
            with torch.no_grad():
                mean, _ = self.vae.encode(images)
            decoded = decode(mean, samples)
        first, second = (Augmentation(*pair) for pair in zip(colours, shifts, strict=True))
        real, made = first(images), (first(decoded[:count]), second(decoded[count:]))

        # Update the discriminators
        updates = [
            critic.update(real, part.detach(), penalised=penalised)
            for critic, part in zip(self.critics, made, strict=True)
        ]
        critic_loss = torch.stack([loss for loss, _ in updates]).mean()
        projected = update_projected(self.projected, self.projection, real, made)
        critics_are_sound = updates[0][1] & updates[1][1] & projected.is_sound.all()

        # Update the decoder
        pairs = zip(self.critics, made, strict=True)
        adversarial, features = zip(*(c.generator_loss(part) for c, part in pairs), strict=True)
        matching = self.critics[0].feature_matching_loss(features[0], real)
        mse = self._mean(losses.mean_squared_error(decoded[:count], images))
        weights, projected_losses = self.weights, projected.generator_losses
        terms = {
            "pixel": weights.pixel * self._pixel_loss(decoded, samples, mse),
            "feature_matching": weights.feature_matching * matching,
            "adversarial": strength * weights.adversarial * adversarial[0],
            "adversarial_samples": samples_strength * weights.adversarial_samples * adversarial[1],
            "projected": strength * weights.projected * projected_losses[0],
            "projected_samples": strength * weights.projected_samples * projected_losses[1],
        }
        if self._perceptual:
            distance = self._mean(self._perceptual(decoded[:count], images))
            terms["perceptual"] = weights.perceptual * distance
        loss = reduce(torch.add, terms.values())
        # where a discriminator skipped its update, the decoder skips its own
        is_sound = self.guard.step(loss * torch.where(critics_are_sound, 1.0, math.nan))
        average(self.vae.decoder, self.decoder, decay)
        generator_loss = (adversarial[0] + adversarial[1]) / 2
        projected_loss = projected.discriminator_losses.mean()
        values = torch.stack([generator_loss, critic_loss, projected_loss, matching, mse])
        return values.detach().where(is_sound, 0.0)

    def _pixel_loss(self, decoded: Tensor, samples: Tensor, mse: Tensor) -> Tensor:
        """log(mse) with the drift of samples and the checkerboard energy as penalties, a scalar.

        `decoded` (2 B, 3, H, W) are the reconstructions and the images of `samples` (B, D).
        """
        drift = self.sample_drift(samples, decoded[len(samples) :])
        checkerboard = checkerboard_energy(decoded).view(2, -1).mean(0)
        return losses.log_error(mse, drift + self.weights.checkerboard * self._mean(checkerboard))

    def samples(self, index: int) -> Tensor:
        """Latents (B, D) of the prior for step `index`, this process's share.

        Those of a whole cycle are drawn at once, since drawing takes many small kernels.
        """
        (block, position), size = divmod(index, CYCLE), self.batches.size
        if self._block is None or self._block[0] != block:
            rng = generator(self.config.seed, Stream.FINISH_SAMPLES, block)
            noise = torch.randn(CYCLE * size, self.vae.config.latent_dim, generator=rng)
            self._block = block, self._draw(sent(noise, self.batches.device))
        return self._block[1][position * size : (position + 1) * size][parallel.share(size)]

    def _latents(self, noise: Tensor) -> Tensor:
        """Latents (N, D) of the prior for noise (N, D)."""
        with torch.no_grad(), training_precision(noise.device):
            return sample_latents(self.prior, noise).float()

    def sample_drift(self, samples: Tensor, images: Tensor) -> Tensor:
        """Mean squared error of the samples' coarse images to the reference decoder's, a scalar.

        Nothing else holds samples: with a poor prior, texture alone makes scribbles of a face.
        """
        scale = max(1, images.shape[-1] // self._coarse_side)
        with torch.no_grad(), training_precision(images.device):
            reference = self._reference(samples, WHOLE_TEXTURE).float()
        coarse = [functional.avg_pool2d(each, scale) for each in (images, reference)]
        return self._mean(losses.mean_squared_error(*coarse))

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over the whole batch, of which `values` (B,) are this process's share."""
        return parallel.mean(values, self.batches.size)

    def networks(self) -> dict[str, nn.Module]:
        """The decoder, its average, and what samples are held to."""
        return {
            "decoder": self.decoder,
            "averaged": self.vae.decoder,
            "before": self._reference,
        }

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, the states of the discriminators among it."""
        state = super().state() | {"renewed": self.frozen_at, "coarse_end": self._coarse_end}
        for name, critic in self._all_critics().items():
            state |= prefixed(name, critic.state())
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned."""
        super().restore(state)
        self.frozen_at.copy_(state["renewed"])
        self._coarse_end.copy_(state["coarse_end"])
        self._prepare_updates()
        for name, critic in self._all_critics().items():
            critic.restore(strip_prefix(state, name))

    def _all_critics(self) -> dict[str, TrainableDiscriminator]:
        """The discriminators, by the prefix of their tensors in the state."""
        return {f"critics.{i}.": c for i, c in enumerate((*self.critics, *self.projected))}

    def inputs(self) -> dict[str, Tensor]:
        """The model as it was fitted, without the decoder, which is in the state."""
        vae, prior = self.vae.plain_state(), self.prior.state_dict()
        return prefixed("fitted.", prefixed("vae.", vae) | prefixed("prior.", prior))
