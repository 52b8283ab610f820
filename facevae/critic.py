"""What tells one kind of made pictures from faces, and learns it as they get better."""

from collections.abc import Mapping

import torch
from torch import Tensor

from facevae import losses, parallel
from facevae.discriminator import Discriminator, of_images, steepness
from facevae.guard import Guard
from facevae.runtime import training_precision
from facevae.states import adam, optimizer_state, part, prefixed, restore_optimizer

PENALTY_STEPS = 16  # of which one takes the penalty, in all of their places
BETAS = (0.0, 0.99)  # of Adam, of both sides
_PENALTY = 0.02  # of R1, taken now and then (Karras et al. 2020, section 3.1)


class Critic:
    """A discriminator in training. All that it is shown is of one batch of `batch_size`.

    Several processes have their shares of that.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        batch_size: int,
        learning_rate: float,
        *,
        records: bool,
    ) -> None:
        self.discriminator, self._batch_size = discriminator, batch_size
        discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = adam(
            discriminator.parameters(), learning_rate=learning_rate, betas=BETAS, records=records
        )
        self.guard = Guard(discriminator, self.optimizer)

    def begin_anew(self, discriminator: Discriminator) -> None:
        """Take this one's weights, and forget what was learned: in place, as a recording needs it."""
        self.discriminator.load_state_dict(discriminator.state_dict())
        for values in self.optimizer.state.values():
            for tensor in values.values():
                tensor.zero_()
        self.guard.begin_anew()

    def learn(self, real: Tensor, made: Tensor, *, penalised: bool) -> tuple[Tensor, Tensor]:
        """One update, to tell real from made images (B, 3, H, W): its loss, and whether it was sound."""
        self.discriminator.requires_grad_()
        with training_precision(real.device):
            logits, _ = self.discriminator(torch.cat([real, made]))
        own = len(real)
        loss = losses.discriminator_loss(logits[:own], logits[own:], self._mean_verdict)
        penalty = self._penalty(real) if penalised else 0.0
        return loss, self.guard.step(loss + penalty)

    def judge(self, made: Tensor) -> tuple[Tensor, list[Tensor]]:
        """How little images (B, 3, H, W) are taken for faces, a scalar, and features of each level."""
        self.discriminator.requires_grad_(requires_grad=False)
        with training_precision(made.device):
            logits, features = self.discriminator(made)
        return losses.generator_loss(logits, self._mean_verdict), features

    def matching(self, features: list[Tensor], real: Tensor) -> Tensor:
        """How far features that `judge` found are from those of real images (B, 3, H, W), a scalar."""
        with torch.no_grad(), training_precision(real.device):
            _, real_features = self.discriminator(real)
        return losses.feature_matching(features, real_features, self._mean)

    def _penalty(self, real: Tensor) -> Tensor:
        real = real.detach().requires_grad_()
        logits, _ = self.discriminator(real)
        return (
            _PENALTY * PENALTY_STEPS * losses.gradient_penalty(steepness(logits), real, self._mean)
        )

    def _mean_verdict(self, logits: Tensor) -> Tensor:
        return self._mean(of_images(logits))

    def _mean(self, values: Tensor) -> Tensor:
        return parallel.mean(values, self._batch_size)

    def state(self) -> dict[str, Tensor]:
        """The discriminator, the optimiser's moments, and what the guard counts."""
        return (
            prefixed("discriminator.", self.discriminator.state_dict())
            | optimizer_state(self.optimizer)
            | prefixed("guard.", self.guard.state())
        )

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.discriminator.load_state_dict(part(state, "discriminator."))
        restore_optimizer(self.optimizer, state)
        self.guard.restore(part(state, "guard."))
