"""What tells one kind of made pictures from faces, and learns it as they get better."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from facevae import losses, parallel
from facevae.discriminator import Discriminator, of_images, steepness
from facevae.guard import Guard
from facevae.runtime import training_precision
from facevae.states import adam, optimizer_state, prefixed, restore_optimizer, strip_prefix

PENALTY_STEPS = 16  # of which one takes the penalty, in all of their places
BETAS = (0.0, 0.99)  # of Adam, of both sides
_PENALTY = 0.02  # of R1, taken now and then (Karras et al. 2020, section 3.1)


class Judge:
    """A network that tells what is made from faces, in training, on batches of `batch_size`.

    Several processes have their shares of a batch.
    """

    def __init__(
        self, network: nn.Module, batch_size: int, learning_rate: float, *, records: bool
    ) -> None:
        self.network, self._batch_size = network, batch_size
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = adam(
            network.parameters(), learning_rate=learning_rate, betas=BETAS, records=records
        )
        self.guard = Guard(network, self.optimizer)

    def begin_anew(self, network: nn.Module) -> None:
        """Take this one's weights, and forget what was learned: in place, as a recording needs it."""
        self.network.load_state_dict(network.state_dict())
        for values in self.optimizer.state.values():
            for tensor in values.values():
                tensor.zero_()
        self.guard.begin_anew()

    def mean(self, values: Tensor) -> Tensor:
        """Over a batch, of which these (B,) are this process's share: a scalar."""
        return parallel.mean(values, self._batch_size)

    def state(self) -> dict[str, Tensor]:
        """The network, the optimiser's moments, and what the guard counts."""
        return (
            prefixed("network.", self.network.state_dict())
            | optimizer_state(self.optimizer)
            | prefixed("guard.", self.guard.state())
        )

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.network.load_state_dict(strip_prefix(state, "network."))
        restore_optimizer(self.optimizer, state)
        self.guard.restore(strip_prefix(state, "guard."))


class Critic(Judge):
    """A `Discriminator` in training, which sees pixels."""

    network: Discriminator

    def learn(self, real: Tensor, made: Tensor, *, penalised: bool) -> tuple[Tensor, Tensor]:
        """One update, to tell real from made images (B, 3, H, W): its loss, and whether it was sound."""
        self.network.requires_grad_()
        with training_precision(real.device):
            logits, _ = self.network(torch.cat([real, made]))
        own = len(real)
        loss = losses.discriminator_loss(logits[:own], logits[own:], self._mean_verdict)
        penalty = self._penalty(real) if penalised else 0.0
        return loss, self.guard.step(loss + penalty)

    def judge(self, made: Tensor) -> tuple[Tensor, list[Tensor]]:
        """How little images (B, 3, H, W) are taken for faces, a scalar, and features of each level."""
        self.network.requires_grad_(requires_grad=False)
        with training_precision(made.device):
            logits, features = self.network(made)
        return losses.generator_loss(logits, self._mean_verdict), features

    def matching(self, features: list[Tensor], real: Tensor) -> Tensor:
        """How far features that `judge` found are from those of real images (B, 3, H, W), a scalar."""
        with torch.no_grad(), training_precision(real.device):
            _, real_features = self.network(real)
        return losses.feature_matching(features, real_features, self.mean)

    def _penalty(self, real: Tensor) -> Tensor:
        real = real.detach().requires_grad_()
        logits, _ = self.network(real)
        return (
            _PENALTY * PENALTY_STEPS * losses.gradient_penalty(steepness(logits), real, self.mean)
        )

    def _mean_verdict(self, logits: Tensor) -> Tensor:
        return self.mean(of_images(logits))
