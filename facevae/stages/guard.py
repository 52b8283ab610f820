"""Optimiser steps that are skipped, and counted, where the gradient is not sound."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from facevae.system import parallel

# Largest ratio of a gradient's norm to its running mean. In sound trainings on CelebA, of both
# stages and with batches of 4 to 150 faces, the largest was 7.1. Adam's own bound on a step limits
# the effect of those in between.
MOST_GROWTH = 20.0
_MEMORY = 50  # steps over which the running means are taken
_FIRST = 20  # steps at the start in which a norm may have any size


@dataclass(frozen=True)
class Counts:
    """Numbers of sound and of skipped steps, and the running share of skipped ones."""

    num_sound: int
    num_skipped: int
    share_skipped: float

    @property
    def is_failing(self) -> bool:
        """Whether most recent steps were skipped, in numbers that rule out chance."""
        return self.share_skipped > 0.5 and self.num_skipped >= _FIRST  # noqa: PLR2004 - half


class Guard:
    """Takes an optimiser's steps on a module, and skips those that are not sound.

    A step is sound if its gradient and the batch-norm statistics are finite, and the gradient's
    norm is at most `MOST_GROWTH` times its running mean. A skipped step leaves weights, statistics,
    and the optimiser's moments and step count unchanged. The decision is made on the device,
    without synchronisation, from values that are equal in all processes that average gradients. The
    running mean counts a norm that is too large as the largest accepted one, so that steps are
    soon taken again where gradients have grown permanently.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer` is a fused one over `module`'s parameters."""
        assert optimizer.defaults["fused"]  # noqa: S101 - only these skip steps on the device
        self._parameters, self._optimizer = list(module.parameters()), optimizer
        running = (".running_mean", ".running_var")
        self._statistics = [b for name, b in module.named_buffers() if name.endswith(running)]
        self.kept_statistics = self._current_statistics()  # those after the last sound step
        self._figures = torch.zeros(4, device=self._parameters[0].device)
        self._norm, self._num_sound, self._num_skipped, self._share = self._figures.unbind()

    def step(self, loss: Tensor) -> Tensor:
        """Take one step on the scalar `loss`; return whether it was sound, on the device."""
        self._optimizer.zero_grad()  # gradients may be left over from a recording that failed
        loss.backward()
        parallel.average_gradients(self._parameters)
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        statistics = self._current_statistics()
        is_finite = norm.isfinite() & statistics.isfinite().all()
        sound = is_finite & ((norm <= MOST_GROWTH * self._norm) | (self._num_sound < _FIRST))
        # as torch's gradient scaler does: a fused optimiser skips its step where this is 1
        self._optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
        if sound.device.type != "mps" or bool(sound):  # optimisers on MPS ignore the attribute
            self._optimizer.step()
        self._optimizer.zero_grad()
        self.kept_statistics.copy_(torch.where(sound, statistics, self.kept_statistics))
        self._restore_statistics()
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
        """All batch-norm statistics in one vector (N,), N = 0 if there are none."""
        empty = self._parameters[0].new_zeros(0)
        return torch.cat([empty, *(b.flatten() for b in self._statistics)])

    def _restore_statistics(self) -> None:
        parts = self.kept_statistics.split([b.numel() for b in self._statistics])
        for buffer, part in zip(self._statistics, parts, strict=True):
            buffer.copy_(part.view_as(buffer))

    def counts(self) -> Counts:
        """Counts of the steps so far; waits for the device."""
        _, num_sound, num_skipped, share = self._figures.tolist()
        return Counts(int(num_sound), int(num_skipped), share)

    def reset(self) -> None:
        """Restart the running mean of norms, but keep the number of skipped steps."""
        self._norm.zero_()
        self._num_sound.zero_()

    def state(self) -> dict[str, Tensor]:
        """Everything the next decision depends on, apart from the module and the optimiser."""
        return {"figures": self._figures}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned, after the module was restored; without counts, keep them."""
        if "figures" in state:
            self._figures.copy_(state["figures"])
        self.kept_statistics = self._current_statistics()
