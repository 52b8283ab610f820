"""The network's stage: fitting encoder and decoder to the evidence lower bound."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from facevae.config import TrainConfig
from facevae.data.batches import Batches
from facevae.measures import losses
from facevae.networks.vae import VAE
from facevae.stages.budget import Budget
from facevae.stages.fast import AcceleratedStep, Forward, Step, Warn
from facevae.stages.guard import Guard
from facevae.stages.stage import Stage
from facevae.stages.states import adam, average
from facevae.system import parallel
from facevae.system.runtime import Stream, generator, seeded, sent, training_precision


class NetworkStage(Stage):
    """Fits encoder and decoder to the evidence lower bound."""

    terms = ("reconstruction_nats", "kl_nats", "mse")

    def __init__(
        self, vae: VAE, batches: Batches, config: TrainConfig, warn: Warn = lambda _: None
    ) -> None:
        """`vae` is trained in place; `averaged` will hold the weights to use."""
        self.vae, self.batches, self.config = vae.train(), batches, config
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(vae).eval() if config.ema_images else vae
        parallel.synchronise_norms(vae, batches.device)
        num_steps = math.ceil(config.epochs * batches.num_faces / batches.size)
        self.budget = Budget(num_steps, config.seconds_for("vae"))
        # a recorded step would repeat the same dropout mask
        records = parallel.size() == 1 and not vae.config.dropout
        self.optimizer = adam(
            vae.parameters(),
            learning_rate=config.learning_rate,
            betas=(0.9, 0.999),
            records=records,
        )
        self.guard = Guard(vae, self.optimizer)
        self._update: Step = partial(self._update_from, self._terms)
        if records:
            left = self.budget.seconds_left
            self._update = AcceleratedStep(self._update_from, self._terms, vae, warn, left)

    def step(self, index: int) -> Tensor:
        """Take one update; return the values of `terms`, (3,), zeros if it was skipped."""
        images = self.batches(index)
        rng = generator(self.config.seed, Stream.POSTERIOR, index, device=images.device)
        count, dim = self.batches.size, self.vae.config.latent_dim
        noise = torch.randn(count, dim, generator=rng, device=images.device)
        noise = noise[parallel.share(count)]
        rates = torch.tensor([self._learning_rate(index), self._decay(index)])
        with self._dropout(index, images.device):
            return self._update(images, noise, sent(rates, images.device))

    def _terms(self, images: Tensor, noise: Tensor) -> Tensor:
        """The values of `terms`, (3,), for images (B, 3, H, W) and noise (B, D)."""
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
        """Take one update. All that changes between steps is in tensors, so it can be recorded.

        Images are (B, 3, H, W), noise (B, D), `rates` the learning rate and the average's decay
        (2,). `forward` is `_terms` or equivalent.
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
        """A context in which dropout masks depend on the seed, the step and the process."""
        if not self.vae.config.dropout:
            return nullcontext()
        seed = generator(self.config.seed, Stream.DROPOUT, index, parallel.rank()).initial_seed()
        return seeded(seed, device)

    def _learning_rate(self, index: int) -> float:
        """Learning rate with a linear warm-up over images and a linear cool-down at the end.

        In between it is constant, so that a run can be extended as if its budget had been longer
        from the start (Hägele et al. 2024, section 3).
        """
        rate = self.config.learning_rate
        if self.config.warm_up_images:
            rate *= min(1.0, (index + 1) * self.batches.size / self.config.warm_up_images)
        if self.config.cool_down:
            rate *= min(1.0, (1 - self.budget.share(index)) / self.config.cool_down)
        return rate

    def _decay(self, index: int) -> float:
        """Decay of the averaged weights. Early on their half-life is a tenth of the images seen."""
        images_seen = (index + 1) * self.batches.size
        half_life = min(self.config.ema_images or 1, 0.1 * images_seen)
        return float(0.5 ** (self.batches.size / half_life))

    def networks(self) -> dict[str, nn.Module]:
        """The network, and its average if there is one."""
        averaged = {} if self.averaged is self.vae else {"averaged": self.averaged}
        return {"vae": self.vae, **averaged}

    def inputs(self) -> dict[str, Tensor]:
        """None: the network is fitted to the faces alone."""
        return {}
