"""Fitting a flow to the latents: what one step does to the weights, and the state to go on from."""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from facevae import losses, parallel
from facevae.augment import NUM_CHANGES
from facevae.budget import Budget
from facevae.fast import AcceleratedStep, Forward, Warn
from facevae.guard import Guard
from facevae.model import sample_posterior
from facevae.prior import FlowPrior
from facevae.runtime import generator, sent, training_precision
from facevae.states import adam, average, optimizer_state, prefixed, restore_optimizer, strip_prefix

_FLOW = 3  # what a generator's numbers are for, so that no two uses share them


class _ConditionedFlow(nn.Module):
    """A flow that is told how a face was changed: of one that was not, nothing.

    So it learns of many more faces than there are, and what it gives without being told is like
    those that were not changed (Karras et al. 2022, section 5).
    """

    def __init__(self, flow: FlowPrior) -> None:
        super().__init__()
        self.flow = flow
        width = flow.inward.out_features
        self.changes = nn.Linear(NUM_CHANGES, width, bias=False, device=flow.inward.weight.device)
        nn.init.zeros_(self.changes.weight)

    def forward(self, points: Tensor, times: Tensor, changes: Tensor) -> Tensor:
        """As `FlowPrior.velocity`, of what was changed by (B, NUM_CHANGES)."""
        return self.flow.velocity(points, times, self.changes(changes))


class PriorStage:
    """Fits a flow to posteriors; `prior` holds the averaged weights, which are the ones to use."""

    terms: tuple[str, ...] = ("flow_loss",)
    batch_size = 1024
    learning_rate = 1e-3
    ema_decay = 0.999

    def __init__(
        self,
        prior: FlowPrior,
        mean: Tensor,
        logvar: Tensor,
        changes: Tensor | None = None,
        *,
        epochs: int,
        seed: int,
        seconds: float | None = None,
        goes_on: bool = False,
        warn: Warn = lambda _: None,
    ) -> None:
        """`mean` and `logvar` (N, D) stay on `prior`'s device, and so do `changes`.

        These (N, NUM_CHANGES) are how the faces were changed, None where none were; `epochs` counts
        passes over the others. A flow that `goes_on` was fitted to the latents of this network
        before, and keeps its whitening.
        """
        self.mean, self.logvar, self.seed = mean, logvar, seed
        self.changes = mean.new_zeros(len(mean), NUM_CHANGES) if changes is None else changes
        is_plain = ~self.changes.any(1)
        if not goes_on:
            prior.whitening.fit(mean[is_plain], logvar[is_plain])
        self.prior, self.raw = prior.eval(), _ConditionedFlow(copy.deepcopy(prior).train())
        num_plain = int(is_plain.sum())
        self.budget = Budget(math.ceil(epochs * num_plain / self.batch_size), seconds)
        records = parallel.size() == 1
        self.optimizer = adam(
            self.raw.parameters(),
            learning_rate=self.learning_rate,
            betas=(0.9, 0.99),
            records=records,
        )
        self.guard = Guard(self.raw, self.optimizer)
        self._update: Callable[..., Tensor] = partial(self._update_from, self._loss)
        if records:
            left = self.budget.seconds_left
            self._update = AcceleratedStep(self._update_from, self._loss, self.raw, warn, left)

    def step(self, index: int) -> Tensor:
        """One update; returns the flow-matching loss, (1,), zero if it was skipped."""
        # Draw posterior samples, noise and times
        device, count = self.mean.device, self.batch_size
        draw = generator(self.seed, _FLOW, index, device=device)
        rows = torch.randint(len(self.mean), (count,), generator=draw, device=device)
        shape = (2, count, self.mean.shape[1])
        posterior_noise, noise = torch.randn(shape, generator=draw, device=device)
        latents = sample_posterior(self.mean[rows], self.logvar[rows], posterior_noise)
        target = self.prior.whitening.whiten(latents)
        times = torch.randn(count, 1, generator=draw, device=device).sigmoid()
        share = parallel.share(count)
        # warming up over 100 steps and falling to zero
        rate = min(1.0, (index + 1) / 100) * (1 - self.budget.share(index))
        decay = min(self.ema_decay, (index + 1) / (index + 10))
        rates = sent(torch.tensor([self.learning_rate * rate, decay]), device)
        changes = self.changes[rows]
        return self._update(noise[share], target[share], times[share], changes[share], rates)

    def _loss(self, noise: Tensor, target: Tensor, times: Tensor, changes: Tensor) -> Tensor:
        """How far the velocity is from that which leads from noise (B, D) to target (B, D): (1,).

        At the points between them that belong to times (B, 1), of faces that were changed so
        (B, NUM_CHANGES).
        """
        velocity = self.raw((1 - times) * noise + times * target, times, changes)
        errors = losses.flow_matching(velocity, noise, target)
        return parallel.mean(errors, self.batch_size).reshape(1)

    def _update_from(
        self,
        forward: Forward,
        noise: Tensor,
        target: Tensor,
        times: Tensor,
        changes: Tensor,
        rates: Tensor,
    ) -> Tensor:
        """One update from what changes at each step: of tensors alone, so that it can be recorded.

        Of noise and whitened latents (B, D), times (B, 1), how faces were changed (B, NUM_CHANGES),
        and learning rate and decay of the average (2,); `forward` is `_loss`, or what does the same.
        """
        with training_precision(noise.device):
            loss = forward(noise, target, times, changes)
        rate, decay = rates
        self.optimizer.param_groups[0]["lr"].copy_(rate)
        is_sound = self.guard.step(loss.sum())
        average(self.prior, self.raw.flow, decay)
        return loss.detach().where(is_sound, 0.0)

    def state(self) -> dict[str, Tensor]:
        """Weights, their average, the optimiser's moments, and what the guard counts."""
        return (
            prefixed("raw.", self.raw.state_dict())
            | prefixed("averaged.", self.prior.state_dict())
            | optimizer_state(self.optimizer)
            | prefixed("guard.", self.guard.state())
            | prefixed("budget.", self.budget.state())
        )

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.raw.load_state_dict(strip_prefix(state, "raw."))
        self.prior.load_state_dict(strip_prefix(state, "averaged."))
        restore_optimizer(self.optimizer, state)
        self.guard.restore(strip_prefix(state, "guard."))
        self.budget.restore(strip_prefix(state, "budget."))

    def inputs(self) -> dict[str, Tensor]:
        """The posteriors, and how their faces were changed."""
        return {
            "posterior.mean": self.mean,
            "posterior.logvar": self.logvar,
            "posterior.changes": self.changes,
        }
