"""Discriminators in training: a network with its optimiser and guard."""

import torch
from torch import Tensor, nn

from facevae.measures import losses
from facevae.stages.discriminator import Discriminator, mean_logit, penalty_logit
from facevae.stages.guard import Guard
from facevae.stages.states import Resumable, adam
from facevae.system import parallel
from facevae.system.runtime import training_precision

PENALTY_INTERVAL = 16  # steps from one penalty to the next, each of which counts for all of them
BETAS = (0.0, 0.99)  # of Adam, for the discriminators and the decoder
_R1_WEIGHT = 0.02  # of a penalty taken lazily (Karras et al. 2020, section 3.1)


class TrainableDiscriminator(Resumable):
    """A discriminator network with its Adam and guard, trained on batches of `batch_size`.

    Where several processes train, each sees its share of a batch.
    """

    def __init__(
        self, network: nn.Module, batch_size: int, learning_rate: float, *, records: bool
    ) -> None:
        """`records` has an optimiser whose steps a CUDA graph may record."""
        self.network, self._batch_size = network, batch_size
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = adam(
            network.parameters(), learning_rate=learning_rate, betas=BETAS, records=records
        )
        self.guard = Guard(network, self.optimizer)

    def reset(self, network: nn.Module) -> None:
        """Copy `network`'s weights and clear the optimiser, in place as a recording requires."""
        self.network.load_state_dict(network.state_dict())
        for values in self.optimizer.state.values():
            for tensor in values.values():
                tensor.zero_()
        self.guard.reset()

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the whole batch, a scalar; `values` (B,) are this process's share."""
        return parallel.mean(values, self._batch_size)

    def networks(self) -> dict[str, nn.Module]:
        """The discriminator."""
        return {"network": self.network}


class Critic(TrainableDiscriminator):
    """A `Discriminator` in training, which sees pixels."""

    network: Discriminator

    def update(self, real: Tensor, made: Tensor, *, penalised: bool) -> tuple[Tensor, Tensor]:
        """One update on real and made images (B, 3, H, W): the loss, and whether it was sound."""
        self.network.requires_grad_()
        with training_precision(real.device):
            logits, _ = self.network(torch.cat([real, made]))
        count = len(real)
        loss = losses.discriminator_loss(logits[:count], logits[count:], self._mean_logit)
        penalty = self._penalty(real) if penalised else 0.0
        return loss, self.guard.step(loss + penalty)

    def generator_loss(self, made: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The generator's loss on images (B, 3, H, W), a scalar, and the features of each level."""
        self.network.requires_grad_(requires_grad=False)
        with training_precision(made.device):
            logits, features = self.network(made)
        return losses.generator_loss(logits, self._mean_logit), features

    def feature_matching_loss(self, features: list[Tensor], real: Tensor) -> Tensor:
        """Distance of `generator_loss`'s features from those of real images (B, 3, H, W)."""
        with torch.no_grad(), training_precision(real.device):
            _, real_features = self.network(real)
        return losses.feature_matching(features, real_features, self.mean)

    def _penalty(self, real: Tensor) -> Tensor:
        real = real.detach().requires_grad_()
        logits, _ = self.network(real)
        penalty = losses.gradient_penalty(penalty_logit(logits), real, self.mean)
        return _R1_WEIGHT * PENALTY_INTERVAL * penalty

    def _mean_logit(self, logits: Tensor) -> Tensor:
        return self.mean(mean_logit(logits))
