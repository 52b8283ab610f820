"""Updates that are taken only where a step is sound; the others are left out, and counted."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from facevae import parallel

# Of a gradient's norm over its running mean. In sound trainings on CelebA, of both stages and with
# batches of 4 to 150 faces, the most was 7.1; Adam's own bound on a step tames what lies between.
MOST_GROWTH = 20.0
_MEMORY = 50  # steps that the running means go back
_FIRST = 20  # steps in which norms may still be anything


@dataclass(frozen=True)
class Counts:
    """Steps that were sound and that were skipped, and the share of the latter of late."""

    num_sound: int
    num_skipped: int
    share_skipped: float

    @property
    def is_failing(self) -> bool:
        """Whether more steps are skipped than taken, and not by chance."""
        return self.share_skipped > 0.5 and self.num_skipped >= _FIRST  # noqa: PLR2004 - most


class Guard:
    """Takes an optimiser's steps on a module, all but those that are not sound.

    A step is not sound where its gradient or the batch-norm statistics are not finite, or where the
    gradient's norm is more than `MOST_GROWTH` times its running mean. Weights, statistics and the
    optimiser's moments and step count are then what they were before it. That is decided on the
    device, so that nothing waits for it, and by what is alike in all processes that average their
    gradients. A norm that is too large counts for the running mean as the largest that is not:
    where gradients have grown for good, steps are soon taken again.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer` is a fused one, of `module`'s parameters."""
        assert optimizer.defaults["fused"]  # noqa: S101 - no other kind leaves steps out by itself
        self._parameters, self._optimizer = list(module.parameters()), optimizer
        running = (".running_mean", ".running_var")
        self._statistics = [b for name, b in module.named_buffers() if name.endswith(running)]
        self._kept = self._current_statistics()
        self._figures = torch.zeros(4, device=self._parameters[0].device)
        self._norm, self._num_sound, self._num_skipped, self._share = self._figures.unbind()

    def step(self, loss: Tensor) -> Tensor:
        """Go down `loss`'s gradient by one step; returns whether it was sound, on the device."""
        self._optimizer.zero_grad()  # of a recording that failed, say
        loss.backward()
        parallel.average_gradients(self._parameters)
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        statistics = self._current_statistics()
        is_finite = norm.isfinite() & statistics.isfinite().all()
        sound = is_finite & ((norm <= MOST_GROWTH * self._norm) | (self._num_sound < _FIRST))
        # what torch's own gradient scaler tells a fused optimiser by: 1 to leave all as it is
        self._optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
        if sound.device.type != "mps" or bool(sound):  # whose optimisers do not hear of it
            self._optimizer.step()
        self._optimizer.zero_grad()
        self._kept.copy_(torch.where(sound, statistics, self._kept))
        self._put_back_statistics()
        self._count(norm, sound)
        return sound

    def _count(self, norm: Tensor, sound: Tensor) -> None:
        num_steps = self._num_sound + self._num_skipped
        largest = torch.where(norm.isfinite(), MOST_GROWTH * self._norm, self._norm)
        counted = torch.where(sound, norm, largest)
        self._norm.lerp_(counted, 1 / (self._num_sound + 1).clamp(max=_MEMORY))
        self._share.lerp_((~sound).float(), 1 / (num_steps + 1).clamp(max=_MEMORY))
        self._num_sound += sound
        self._num_skipped += ~sound

    def _current_statistics(self) -> Tensor:
        """All batch-norm statistics as one, (N,): a forward pass changes them."""
        none = self._parameters[0].new_zeros(0)
        return torch.cat([none, *(b.flatten() for b in self._statistics)])

    def _put_back_statistics(self) -> None:
        parts = self._kept.split([b.numel() for b in self._statistics])
        for buffer, part in zip(self._statistics, parts, strict=True):
            buffer.copy_(part.view_as(buffer))

    def counts(self) -> Counts:
        """What has become of the steps so far; waits for the device."""
        _, num_sound, num_skipped, share = self._figures.tolist()
        return Counts(int(num_sound), int(num_skipped), share)

    def begin_anew(self) -> None:
        """Forget how large gradients were, but not how many steps were skipped."""
        self._norm.zero_()
        self._num_sound.zero_()

    def state(self) -> dict[str, Tensor]:
        """All that the next decision depends on, but for the module and the optimiser."""
        return {"figures": self._figures}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, once the module has been restored; without one it starts anew."""
        if "figures" in state:
            self._figures.copy_(state["figures"])
        self._kept = self._current_statistics()
