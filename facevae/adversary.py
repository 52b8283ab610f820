"""The finish of a decoder against discriminators, with encoder and prior as they are.

A likelihood of pixels blurs what a latent leaves open. Here the decoder goes on until what it
makes, of faces and of the prior's samples, is not told from faces, while reconstructions hold on to
the pixels; since the encoder does not change, latents, prior and directions stay valid (Esser et al.
2021 finish their autoencoder at once with such a loss). Samples have no pixels to hold on to: their
finest layers are apart, the decoder's `textured`, so that detail which would cost a reconstruction
its likeness is there for them. And each kind has a discriminator of its own: one that sees both finds
reconstructions by the detail that they lack, and learns little of what samples still have wrong.
One more of each kind sees features of a network that knows photographs (`projected`).
"""

import copy
import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from facevae import losses, parallel
from facevae.batches import Batches
from facevae.budget import Budget
from facevae.config import WHOLE_TEXTURE, TrainConfig
from facevae.critic import BETAS, PENALTY_STEPS, Critic
from facevae.discriminator import Augmentation, Discriminator, checkerboard_energy
from facevae.fast import AcceleratedStep, Forward, Step, Warn
from facevae.guard import Guard
from facevae.model import VAE
from facevae.perceptual import Perceptual
from facevae.prior import Prior, sample_latents
from facevae.projected import ProjectedCritic, ProjectedCritics, Projection
from facevae.runtime import generator, seeded, sent, training_precision
from facevae.states import adam, average, optimizer_state, prefixed, restore_optimizer, strip_prefix

# what a generator's numbers are for, so that no two uses share them
_SAMPLES, _AUGMENTATION = 5, 6

MAX_BATCH_SIZE = 16  # many small steps sharpen more than fewer large ones of as many images
_LEARNING_RATE = 5e-4
_WARM_UP_STEPS = 100  # until the discriminators count in full
_COOL_DOWN = 0.3  # of the budget, in which the decoder's learning rates fall to zero
_COARSE_END = 0.6  # of it, at which those of the decoder's coarser layers have done so
_EMA_IMAGES = 3_000  # half-life of the averaged decoder
CYCLE = PENALTY_STEPS  # of which the first draws the prior's samples for all
# weights of log(mean squared error), of feature matching, and of a perceptual distance
_PIXELS, _FEATURES, _PERCEPTUAL = 8.0, 3.0, 8.0
# and of what the discriminators say of reconstructions, and of samples
_VERDICT, _VERDICT_ON_SAMPLES = 1.0, 3.0
# ... and of what those say that see features of photographs
_PROJECTED, _PROJECTED_ON_SAMPLES = 0.1, 1.0
_CHECKERBOARD = 20.0  # times what its square counts in the mean squared error
# side in pixels at which samples stay what they were, while coarser layers learn, and once they
# rest: eyes, teeth and lips may still be mended, and then what is as large as a nose
_COARSE_SIDE, _COARSE_SIDE_AT_REST = 16, 8


def batch_size(config: TrainConfig) -> int:
    """Of the finish: as the training's, but for what is more than is of use."""
    return min(config.batch_size, max(MAX_BATCH_SIZE, parallel.size()))


class FinishStage:
    """Finishes the decoder; `vae` holds the averaged weights, which are the ones to use.

    Batch norm, where there is some, keeps its statistics: what is trained is what is used.
    """

    # the first two are of those that see pixels, the third is of those that see features
    terms: tuple[str, ...] = (
        *("generator_loss", "discriminator_loss", "projected_loss"),
        *("feature_loss", "mse"),
    )

    def __init__(
        self,
        vae: VAE,
        prior: Prior,
        batches: Batches,
        config: TrainConfig,
        perceptual: Perceptual | None = None,
        warn: Warn = lambda _: None,
    ) -> None:
        """With `perceptual`, reconstructions are held to what it measures too."""
        self._perceptual = perceptual
        self.vae = vae.eval().requires_grad_(requires_grad=False)
        self.prior, self.batches, self.config = prior.eval(), batches, config
        # of a decoder that has been finished before, the coarser layers had their time
        coarse_end = 0.0 if vae.decoder.textured else _COARSE_END
        self._coarse_end = torch.tensor(coarse_end, dtype=torch.float64)
        records = parallel.size() == 1
        with seeded(config.seed):
            vae.decoder.add_texture()
            networks = [self._discriminator() for _ in range(2)]
            self.projected = ProjectedCritics(
                ProjectedCritic(batches.device, batches.size, records=records) for _ in range(2)
            )
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._before = copy.deepcopy(vae.decoder)
        self.decoder = copy.deepcopy(vae.decoder).requires_grad_()
        num_steps = math.ceil(config.finish_epochs * batches.num_faces / batches.size)
        self.budget = Budget(num_steps, config.seconds_for("finish"))
        coarse, fine = self.decoder.coarse_and_fine()
        self.optimizer = adam(
            coarse, fine, learning_rate=_LEARNING_RATE, betas=BETAS, records=records
        )
        self.guard = Guard(self.decoder, self.optimizer)
        self.critics = tuple(  # of reconstructions, and of samples
            Critic(network, batches.size, _LEARNING_RATE, records=records) for network in networks
        )
        self._projection = Projection(batches.device)
        self._drawn: tuple[int, Tensor] | None = None
        self._renewed = torch.tensor(-1)  # the step at which samples had a new discriminator
        self._records, self._warn = records, warn
        self._draw = self._fast(lambda forward, noise: forward(noise), self._drawn_from)
        self._begin_updates()

    def _discriminator(self) -> Discriminator:
        config = self.vae.config
        return Discriminator(config.size, max(16, config.filters[0])).to(self.batches.device)

    def _fast(self, step: Step, forward: Forward) -> Step:
        if not self._records:
            return partial(step, forward)
        # not compiled: that is for one loss of one network
        left = self.budget.seconds_left
        return AcceleratedStep(step, forward, self.decoder, self._warn, left, compiler=None)

    def _begin_updates(self) -> None:
        """Have updates that compute no gradients of layers that never move again."""
        coarse, _ = self.decoder.coarse_and_fine()
        moves = bool(self._coarse_end > 0)
        self._coarse_side = _COARSE_SIDE if moves else _COARSE_SIDE_AT_REST
        for parameter in coarse:
            parameter.requires_grad_(moves)
        # with the penalty, and without: a recording does the same each time
        self._updates = {
            penalised: self._fast(partial(self._update_from, penalised), self._decoded)
            for penalised in (False, True)
        }

    def step(self, index: int) -> Tensor:
        """One update of all; returns the values of `terms`, (5,), zeros if it was skipped."""
        if self._renewed < 0 and self.budget.share(index) >= self._coarse_end:
            self._renew(index)
        images = self.batches(index)
        draw = generator(self.config.seed, _AUGMENTATION, index)
        shape = self.batches.size, self.vae.config.size
        drawn = [Augmentation.drawn(*shape, draw) for _ in range(2)]
        levels = torch.stack([augmentation.levels for augmentation in drawn])
        moves = torch.stack([augmentation.moves for augmentation in drawn])
        changing = (levels, moves, torch.tensor(self._rates(index)))
        update = self._updates[index % CYCLE == 0]
        return update(
            images,
            self._samples(index),
            *(sent(tensor, images.device) for tensor in changing),
        )

    def _renew(self, index: int) -> None:
        """Give samples a new discriminator, which step `index` is the first of.

        One that has gone on for long tells samples by what no texture can mend, and the decoder
        makes less of it; a new one asks first for what all faces have, and that is soon there. From
        here on samples are held, less closely, to what they are now, texture and all, which then may
        grow, and coarser layers stay, however long the finish is gone on with. One that sees features of
        photographs stays too: it had no need to learn what faces have.
        """
        with seeded(self.config.seed + 1):
            self.critics[1].begin_anew(self._discriminator())
        self._before.load_state_dict(self.vae.decoder.state_dict())
        self._renewed.fill_(index)
        self._coarse_end.zero_()
        self._begin_updates()

    def _rates(self, index: int) -> tuple[float, float, float, float, float]:
        """Of step `index`: two learning rates, two weights of verdicts, the average's decay.

        The first is that of the decoder's coarser layers, which come to rest before the others do:
        texture is learned sooner of features that stay. In a decoder's second finish they stay. The
        second weight is that of samples' discriminator of pixels, which begins anew once.
        """
        share = self.budget.share(index)
        coarse, rate = (
            _LEARNING_RATE * min(1.0, max(0.0, end - share) / _COOL_DOWN)
            for end in (float(self._coarse_end), 1.0)
        )
        weight, on_samples = (
            self.config.finish_weight * min(1.0, (index - first) / _WARM_UP_STEPS)
            for first in (0, max(0, int(self._renewed)))
        )
        half_life = min(_EMA_IMAGES, 0.1 * (index + 1) * self.batches.size)
        return coarse, rate, weight, on_samples, 0.5 ** (self.batches.size / half_life)

    def _decoded(self, mean: Tensor, samples: Tensor) -> Tensor:
        """Reconstructions and samples, (2 B, 3, size, size) from latents (B, D) of each."""
        return torch.cat([self.decoder(mean), self.decoder(samples, WHOLE_TEXTURE)]).float()

    def _update_from(
        self,
        penalised: bool,  # noqa: FBT001 - bound before tensors are given
        decoded: Forward,
        images: Tensor,
        samples: Tensor,
        levels: Tensor,
        moves: Tensor,
        rates: Tensor,
    ) -> Tensor:
        """One update from what changes at each step: of tensors alone, so that it can be recorded.

        Of images (B, 3, H, W), samples (B, D), the levels (2, 3, B, 1, 1, 1) and moves (2, 2) of the
        augmentations of faces and of samples, and `_rates` (5,); `decoded` is `_decoded`.
        """
        coarse, rate, weight, weight_on_samples, decay = rates
        for group, its_rate in zip(self.optimizer.param_groups, (coarse, rate), strict=True):
            group["lr"].copy_(its_rate)
        own = len(images)

        # Decode faces and samples of the prior
        with training_precision(images.device):
            with torch.no_grad():
                mean, _ = self.vae.encode(images)
            made = decoded(mean, samples)
        of_faces, of_samples = (Augmentation(*drawn) for drawn in zip(levels, moves, strict=True))
        real, shown = of_faces(images), (of_faces(made[:own]), of_samples(made[own:]))

        # Tell them from faces, and be taken for them
        told = [
            critic.learn(real, part.detach(), penalised=penalised)
            for critic, part in zip(self.critics, shown, strict=True)
        ]
        critic_loss = torch.stack([loss for loss, _ in told]).mean()
        by_features = self.projected.tell(self._projection, real, shown)
        critics_are_sound = told[0][1] & told[1][1] & by_features.is_sound.all()
        (verdict, features), (verdict_on_samples, _) = (
            critic.judge(part) for critic, part in zip(self.critics, shown, strict=True)
        )
        matching = self.critics[0].matching(features, real)
        mse = self._mean(losses.mean_squared_error(made[:own], images))
        loss = _PIXELS * self._held(made, images, samples, mse) + _FEATURES * matching
        loss = loss + weight * _VERDICT * verdict
        loss = loss + weight_on_samples * _VERDICT_ON_SAMPLES * verdict_on_samples
        loss = loss + weight * _PROJECTED * by_features.verdicts[0]
        loss = loss + weight * _PROJECTED_ON_SAMPLES * by_features.verdicts[1]
        if self._perceptual:
            loss = loss + _PERCEPTUAL * self._mean(self._perceptual(made[:own], images))
        # where the one is left out, so are the others
        is_sound = self.guard.step(loss * torch.where(critics_are_sound, 1.0, math.nan))
        average(self.vae.decoder, self.decoder, decay)
        made_loss = (verdict + verdict_on_samples) / 2
        found = torch.stack([made_loss, critic_loss, by_features.losses.mean(), matching, mse])
        return found.detach().where(is_sound, 0.0)

    def _held(self, made: Tensor, images: Tensor, samples: Tensor, mse: Tensor) -> Tensor:
        """What holds the decoder to what is known, a scalar: log(mse), and what counts as an error.

        That is how far samples have strayed, and the checkerboard pattern of all that was made (2 B, 3, H, W).
        """
        strayed = self._strayed(samples, made[len(images) :])
        checkerboard = checkerboard_energy(made).view(2, -1).mean(0)
        held = strayed + _CHECKERBOARD * self._mean(checkerboard)
        # in the units in which the logarithm's gradient counts an error
        least = losses.MIN_MSE
        return mse.clamp_min(least).log() + held / mse.detach().clamp_min(least)

    def _samples(self, index: int) -> Tensor:
        """Latents (B, D) of the prior, drawn for some steps at once, since that is many small ones."""
        block, within = divmod(index, CYCLE)
        if self._drawn is None or self._drawn[0] != block:
            draw = generator(self.config.seed, _SAMPLES, block)
            shape = (CYCLE * self.batches.size, self.vae.config.latent_dim)
            noise = torch.randn(shape, generator=draw)
            self._drawn = block, self._draw(sent(noise, self.batches.device))
        drawn = self._drawn[1][within * self.batches.size : (within + 1) * self.batches.size]
        return drawn[parallel.share(self.batches.size)]

    def _drawn_from(self, noise: Tensor) -> Tensor:
        """Latents (N, D) of the prior for noise (N, D)."""
        with torch.no_grad(), training_precision(noise.device):
            return sample_latents(self.prior, noise).float()

    def _strayed(self, samples: Tensor, made: Tensor) -> Tensor:
        """How far samples, as they are made now, are coarsely from what they were: a scalar.

        Nothing else holds them: where the prior is poor, texture alone makes scribbles of a face.
        """
        scale = max(1, made.shape[-1] // self._coarse_side)
        with torch.no_grad(), training_precision(made.device):
            before = self._before(samples, WHOLE_TEXTURE).float()
        now, was = (functional.avg_pool2d(images, scale) for images in (made, before))
        return self._mean(losses.mean_squared_error(now, was))

    def _mean(self, values: Tensor) -> Tensor:
        """The mean over a batch, of which these (B,) are this process's share."""
        return parallel.mean(values, self.batches.size)

    def state(self) -> dict[str, Tensor]:
        """All networks, the averaged decoder, the optimisers' moments, and what guards count."""
        state = (
            prefixed("decoder.", self.decoder.state_dict())
            | prefixed("averaged.", self.vae.decoder.state_dict())
            | prefixed("before.", self._before.state_dict())
            | optimizer_state(self.optimizer)
            | prefixed("guard.", self.guard.state())
            | prefixed("budget.", self.budget.state())
            | {"renewed": self._renewed, "coarse_end": self._coarse_end}
        )
        for i, critic in enumerate((*self.critics, *self.projected)):
            state |= prefixed(f"critics.{i}.", critic.state())
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.decoder.load_state_dict(strip_prefix(state, "decoder."))
        self.vae.decoder.load_state_dict(strip_prefix(state, "averaged."))
        self._before.load_state_dict(strip_prefix(state, "before."))
        restore_optimizer(self.optimizer, state)
        self.guard.restore(strip_prefix(state, "guard."))
        self.budget.restore(strip_prefix(state, "budget."))
        self._renewed.copy_(state["renewed"])
        self._coarse_end.copy_(state["coarse_end"])
        self._begin_updates()
        for i, critic in enumerate((*self.critics, *self.projected)):
            critic.restore(strip_prefix(state, f"critics.{i}."))

    def inputs(self) -> dict[str, Tensor]:
        """The model as it was fitted, but for the decoder, which is in the state."""
        return prefixed("fitted.vae.", self.vae.plain_state()) | prefixed(
            "fitted.prior.", self.prior.state_dict()
        )
