"""Data-parallel training: processes that `torchrun` started, each with its share of every batch.

A process alone is a group of one, of which every function here does what costs nothing.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from facevae.errors import FacevaeError, ProcessError, RunError, UsageError

# The first process measures, draws and saves while the others wait. That one has died is told by
# its connection, or by torchrun, which ends the rest: not by time.
_PATIENCE = timedelta(days=7)
_AGREED_MILLISECONDS = 500


def is_launched() -> bool:
    """Whether `torchrun`, or what speaks its language, started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, this process is of the group that was launched, if one was.

    Raises `RunError` where another process of the group is lost.
    """
    if not is_launched():
        yield
        return
    own = device if device.type == "cuda" else None
    if own and own.index is None:
        msg = "LOCAL_RANK is not set, which says the GPU of each process; start them by torchrun"
        raise UsageError(msg)
    dist.init_process_group("nccl" if own else "gloo", timeout=_PATIENCE, device_id=own)
    is_whole = False
    try:
        yield
        is_whole = True
    except FacevaeError as error:
        if is_lead():
            raise
        msg = f"process {rank()}: {error}"
        raise ProcessError(msg) from error
    except RuntimeError as error:
        # gloo tells of a lost connection by a bare RuntimeError alone
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        msg = "another process of this run has ended; the same command goes on from the last state"
        raise RunError(msg) from error
    finally:
        # where a process has failed, NCCL would wait here for the others, which wait for it: they
        # are told by its end
        if is_whole or not own:
            dist.destroy_process_group()


def size() -> int:
    """How many processes work on the run: 1 outside `joined`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is: 0 is the lead, which talks and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_lead() -> bool:
    """Whether this is the process that talks and writes."""
    return rank() == 0


def share(count: int) -> slice:
    """Which of `count` examples of a batch are this process's."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


def mean(values: Tensor, count: int) -> Tensor:
    """The mean over a batch of `count`, of which `values` (…, b) has this process's share: (…,).

    Gradients flow back through it to every process.
    """
    return values.mean(-1) if size() == 1 else _total(values.sum(-1)) / count


class _Sum(torch.autograd.Function):
    """The sum over all processes; what each of them does with it flows back to each of them."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(_, gradients[0].contiguous())


def _total(tensor: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give all processes the mean of their gradients, in one message.

    Where each of them went back from the same `mean` over the batch, that is its gradient.
    """
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class Accord:
    """What the processes agree on between steps, about twice a second: whether to stop."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._left, self._since = device, 1, time.monotonic()
        self._steps = 1

    def __call__(self, stop_signal: int) -> int:
        """After a step, the highest signal by which a process was asked to stop; 0 for none."""
        if size() == 1:
            return stop_signal
        self._left -= 1
        if self._left:
            return 0
        milliseconds = int(1000 * (time.monotonic() - self._since) / self._steps)
        found = torch.tensor([stop_signal, milliseconds], device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        stop_signal, milliseconds = found.tolist()
        self._left = self._steps = min(max(_AGREED_MILLISECONDS // max(milliseconds, 1), 1), 100)
        self._since = time.monotonic()
        return stop_signal


def from_lead(value: Any = None) -> Any:
    """What the first process has, which every other one receives."""
    if size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def tensors_from_lead(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The first process's tensors, which every other one receives on its `device`."""
    if size() == 1:
        return dict(tensors)
    layout = from_lead({name: (t.shape, t.dtype) for name, t in tensors.items()})
    received = {}
    for name, (shape, dtype) in layout.items():
        if is_lead():
            sent = tensors[name].detach().to(device).contiguous()
        else:
            sent = torch.empty(shape, dtype=dtype, device=device)
        dist.broadcast(sent, 0)
        received[name] = sent
    return received


@contextmanager
def first_on_node() -> Iterator[None]:
    """Of the processes of a machine the first one goes inside before the others do."""
    waits = os.environ.get("LOCAL_RANK", "0") != "0"
    if size() > 1 and waits:
        dist.barrier()
    yield
    if size() > 1 and not waits:
        dist.barrier()


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Have each batch norm take its statistics in training from the whole group's batch."""
    if size() == 1:
        return module
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return synchronised
    for norm in module.modules():
        if type(norm) is nn.BatchNorm2d:
            norm.__class__ = _SyncedBatchNorm
    return module


class _SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batch of all processes, where torch has one for GPUs only."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features (B, C, H, W), as `nn.BatchNorm2d` gives of all shares together."""
        if not self.training:
            return super().forward(features)
        flat = features.float().transpose(0, 1).flatten(1)
        count = _total(torch.tensor(float(flat.shape[1])))
        mean = _total(flat.sum(1)) / count
        centred = flat - mean[:, None]
        variance = _total(centred.square().sum(1)) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            for running, found in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(found, self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * (variance + self.eps).rsqrt()
        normalised = self.bias[:, None] + centred * scale[:, None]
        unflattened = normalised.unflatten(1, (len(features), *features.shape[2:]))
        out: Tensor = unflattened.transpose(0, 1).to(features.dtype)
        return out
