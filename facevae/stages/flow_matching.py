"""The prior's stage: fitting a flow to the latents by flow matching."""

import copy
import math
from functools import partial

import torch
from torch import Tensor, nn

from facevae.data.augment import NUM_CHANGES
from facevae.measures import losses
from facevae.networks.prior import FlowPrior
from facevae.networks.vae import sample_posterior
from facevae.stages.budget import Budget
from facevae.stages.fast import AcceleratedStep, Forward, Step, Warn
from facevae.stages.guard import Guard
from facevae.stages.stage import Stage
from facevae.stages.states import adam, average
from facevae.system import parallel
from facevae.system.runtime import Stream, generator, sent, training_precision


class _ConditionedFlow(nn.Module):
    """A flow conditioned on how each face was changed, with zeros for unchanged faces.

    It can learn from many more faces than there are. With a condition of zeros it generates latents
    like those of unchanged faces (Karras et al. 2022, section 5).
    """

    def __init__(self, flow: FlowPrior) -> None:
        super().__init__()
        self.flow = flow
        width = flow.inward.out_features
        self.changes = nn.Linear(NUM_CHANGES, width, bias=False, device=flow.inward.weight.device)
        nn.init.zeros_(self.changes.weight)

    def forward(self, points: Tensor, times: Tensor, changes: Tensor) -> Tensor:
        """`FlowPrior.velocity`, conditioned on changes (B, NUM_CHANGES)."""
        return self.flow.velocity(points, times, self.changes(changes))


class PriorStage(Stage):
    """Fits a flow to posteriors; `prior` holds the averaged weights, which are to be used."""

    terms = ("flow_loss",)
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
        """`mean` and `logvar` (N, D) and `changes` (N, NUM_CHANGES) are on `prior`'s device.

        `changes` says how each face was changed, None that none was. `epochs` counts passes over
        the unchanged faces. With `goes_on`, `prior` was fitted to this network's latents before,
        and keeps its whitening.
        """
        self.mean, self.logvar, self.seed = mean, logvar, seed
        self.changes = mean.new_zeros(len(mean), NUM_CHANGES) if changes is None else changes
        is_unchanged = ~self.changes.any(1)
        if not goes_on:
            prior.whitening.fit(mean[is_unchanged], logvar[is_unchanged])
        self.prior, self.raw = prior.eval(), _ConditionedFlow(copy.deepcopy(prior).train())
        num_unchanged = int(is_unchanged.sum())
        self.budget = Budget(math.ceil(epochs * num_unchanged / self.batch_size), seconds)
        records = parallel.size() == 1
        self.optimizer = adam(
            self.raw.parameters(),
            learning_rate=self.learning_rate,
            betas=(0.9, 0.99),
            records=records,
        )
        self.guard = Guard(self.raw, self.optimizer)
        self._update: Step = partial(self._update_from, self._loss)
        if records:
            left = self.budget.seconds_left
            self._update = AcceleratedStep(self._update_from, self._loss, self.raw, warn, left)

    def step(self, index: int) -> Tensor:
        """Take one update; return the flow-matching loss, (1,), zero if it was skipped."""
        # Draw posterior samples, noise and times
        device, count = self.mean.device, self.batch_size
        rng = generator(self.seed, Stream.FLOW, index, device=device)
        rows = torch.randint(len(self.mean), (count,), generator=rng, device=device)
        shape = (2, count, self.mean.shape[1])
        posterior_noise, noise = torch.randn(shape, generator=rng, device=device)
        latents = sample_posterior(self.mean[rows], self.logvar[rows], posterior_noise)
        target = self.prior.whitening.whiten(latents)
        times = torch.randn(count, 1, generator=rng, device=device).sigmoid()
        share = parallel.share(count)
        # linear warm-up over 100 steps, times a linear decay to zero over the budget
        rate = min(1.0, (index + 1) / 100) * (1 - self.budget.share(index))
        decay = min(self.ema_decay, (index + 1) / (index + 10))
        rates = sent(torch.tensor([self.learning_rate * rate, decay]), device)
        changes = self.changes[rows]
        return self._update(noise[share], target[share], times[share], changes[share], rates)

    def _loss(self, noise: Tensor, target: Tensor, times: Tensor, changes: Tensor) -> Tensor:
        """Flow-matching loss, (1,), at times (B, 1) on paths from noise (B, D) to target (B, D).

        `changes` (B, NUM_CHANGES) condition the flow.
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
        """Take one update. All that changes between steps is in tensors, so it can be recorded.

        Noise and the target, whitened latents, are (B, D), times (B, 1), changes (B, NUM_CHANGES),
        `rates` the learning rate and the average's decay (2,). `forward` is `_loss` or equivalent.
        """
        with training_precision(noise.device):
            loss = forward(noise, target, times, changes)
        rate, decay = rates
        self.optimizer.param_groups[0]["lr"].copy_(rate)
        is_sound = self.guard.step(loss.sum())
        average(self.prior, self.raw.flow, decay)
        return loss.detach().where(is_sound, 0.0)

    def networks(self) -> dict[str, nn.Module]:
        """The flow with its conditioning, and its average."""
        return {"raw": self.raw, "averaged": self.prior}

    def inputs(self) -> dict[str, Tensor]:
        """The posteriors, and the changes of their faces."""
        return {
            "posterior.mean": self.mean,
            "posterior.logvar": self.logvar,
            "posterior.changes": self.changes,
        }
