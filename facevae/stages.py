"""The stages of a training: what one step does to the weights, and the state to go on from.

Here is the network's; `flow_matching` has the prior's, and `adversary` the decoder's finish.

What a step does depends on its index and the weights alone, so that a run that goes on is the run
that was never stopped.
"""

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from facevae import losses, parallel
from facevae.batches import Batches
from facevae.budget import Budget
from facevae.config import TrainConfig
from facevae.fast import AcceleratedStep, Forward, Warn
from facevae.guard import Guard
from facevae.model import VAE
from facevae.runtime import generator, seeded, sent, training_precision
from facevae.states import adam, average, optimizer_state, prefixed, restore_optimizer, strip_prefix

# what a generator's numbers are for, so that no two uses share them
_POSTERIOR, _DROPOUT = 2, 4


class Stage(Protocol):
    """Something that is fitted a step at a time; `terms` are the names of what a step returns."""

    terms: tuple[str, ...]
    budget: Budget
    guard: Guard

    def step(self, index: int) -> Tensor:
        """One update, number `index`; returns its loss terms, on the device, zeros if skipped."""

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""

    def inputs(self) -> dict[str, Tensor]:
        """What it is fitted to, beside the faces."""


class NetworkStage:
    """Fits encoder and decoder to the evidence lower bound."""

    terms: tuple[str, ...] = ("reconstruction_nats", "kl_nats", "mse")

    def __init__(
        self, vae: VAE, batches: Batches, config: TrainConfig, warn: Warn = lambda _: None
    ) -> None:
        """`vae` is trained in place; `averaged` holds the weights to be used."""
        self.vae, self.batches, self.config = vae.train(), batches, config
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(vae).eval() if config.ema_images else vae
        parallel.synchronise_norms(vae, batches.device)
        num_steps = math.ceil(config.epochs * batches.num_faces / batches.size)
        self.budget = Budget(num_steps, config.seconds_for("vae"))
        # dropout draws anew at each step, which a recording does not
        records = parallel.size() == 1 and not vae.config.dropout
        self.optimizer = adam(
            vae.parameters(),
            learning_rate=config.learning_rate,
            betas=(0.9, 0.999),
            records=records,
        )
        self.guard = Guard(vae, self.optimizer)
        self._update: Callable[..., Tensor] = partial(self._update_from, self._terms)
        if records:
            left = self.budget.seconds_left
            self._update = AcceleratedStep(self._update_from, self._terms, vae, warn, left)

    def step(self, index: int) -> Tensor:
        """One update; returns the values of `terms`, (3,), zeros if it was skipped."""
        images = self.batches(index)
        draw = generator(self.config.seed, _POSTERIOR, index, device=images.device)
        count, dim = self.batches.size, self.vae.config.latent_dim
        noise = torch.randn(count, dim, generator=draw, device=images.device)
        noise = noise[parallel.share(count)]
        rates = torch.tensor([self._learning_rate(index), self._decay(index)])
        with self._dropout(index, images.device):
            return self._update(images, noise, sent(rates, images.device))

    def _terms(self, images: Tensor, noise: Tensor) -> Tensor:
        """The values of `terms`, (3,), of images (B, 3, H, W) and noise (B, D)."""
        reconstructions, mean, logvar = self.vae(images, noise)
        errors = losses.mean_squared_error(reconstructions, images)
        divergences = losses.kl_divergence(mean, logvar).sum(1)
        mse, kl = parallel.mean(torch.stack([errors, divergences]), self.batches.size)
        if self.config.r_loss_factor is None:
            reconstruction = losses.calibrated_reconstruction(mse, self.vae.config.num_pixels)
        else:
            reconstruction = losses.weighted_reconstruction(mse, self.config.r_loss_factor)
        return torch.stack([reconstruction, kl, mse])

    def _update_from(
        self, forward: Forward, images: Tensor, noise: Tensor, rates: Tensor
    ) -> Tensor:
        """One update from what changes at each step: of tensors alone, so that it can be recorded.

        Of images (B, 3, H, W), noise (B, D), and learning rate and decay of the average (2,);
        `forward` is `_terms`, or what does the same.
        """
        with training_precision(images.device):
            terms = forward(images, noise)
        reconstruction, kl, _ = terms
        rate, decay = rates
        self.optimizer.param_groups[0]["lr"].copy_(rate)
        is_sound = self.guard.step(reconstruction + self.config.kl_weight * kl)
        if self.averaged is not self.vae:
            average(self.averaged, self.vae, decay)
        return terms.detach().where(is_sound, 0.0)

    def _dropout(self, index: int, device: torch.device) -> AbstractContextManager[None]:
        if not self.vae.config.dropout:
            return nullcontext()
        state = generator(self.config.seed, _DROPOUT, index, parallel.rank()).initial_seed()
        return seeded(state, device)

    def _learning_rate(self, index: int) -> float:
        """Rises over the first images, and falls over the last part of the budget.

        Between them it is constant, so that a longer budget goes on with a run as if it had been
        meant to (Hägele et al. 2024, section 3).
        """
        rate = self.config.learning_rate
        if self.config.warm_up_images:
            rate *= min(1.0, (index + 1) * self.batches.size / self.config.warm_up_images)
        if self.config.cool_down:
            rate *= min(1.0, (1 - self.budget.share(index)) / self.config.cool_down)
        return rate

    def _decay(self, index: int) -> float:
        """Of the averaged weights; early on their half-life is a tenth of what has been seen."""
        seen = (index + 1) * self.batches.size
        half_life = min(self.config.ema_images or 1, 0.1 * seen)
        return float(0.5 ** (self.batches.size / half_life))

    def state(self) -> dict[str, Tensor]:
        """Weights, their average, the optimiser's moments, and what the guard counts."""
        state = prefixed("vae.", self.vae.state_dict()) | optimizer_state(self.optimizer)
        state |= prefixed("guard.", self.guard.state())
        state |= prefixed("budget.", self.budget.state())
        if self.averaged is not self.vae:
            state |= prefixed("averaged.", self.averaged.state_dict())
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.vae.load_state_dict(strip_prefix(state, "vae."))
        if self.averaged is not self.vae:
            self.averaged.load_state_dict(strip_prefix(state, "averaged."))
        restore_optimizer(self.optimizer, state)
        self.guard.restore(strip_prefix(state, "guard."))
        self.budget.restore(strip_prefix(state, "budget."))

    def inputs(self) -> dict[str, Tensor]:
        """Nothing but the faces."""
        return {}
