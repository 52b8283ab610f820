"""Data-parallel training: processes started by `torchrun`, each with its share of every batch.

Without `torchrun`, the process is a group of one, in which these functions cost nothing.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from facevae.errors import FacevaeError, ProcessError, RunError, UsageError

_T = TypeVar("_T")

# Other processes wait while the first one measures, draws and saves, however long that takes. A dead
# process is noticed by its lost connection, or by torchrun, which ends the rest; never by a timeout.
_TIMEOUT = timedelta(days=7)
_AGREED_MILLISECONDS = 500  # between two agreements on whether to stop


def is_launched() -> bool:
    """Whether `torchrun`, or a launcher that sets the same variables, started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Make this process a member of the launched group, if there is one, inside the block.

    Raises `UsageError` for a GPU without an index, `RunError` if another process of the group is
    lost, and `ProcessError` for the failure of a process other than the first.
    """
    if not is_launched():
        yield
        return
    gpu = device if device.type == "cuda" else None
    if gpu and gpu.index is None:
        msg = "LOCAL_RANK, the GPU of each process, is not set; start the processes with torchrun"
        raise UsageError(msg)
    dist.init_process_group("nccl" if gpu else "gloo", timeout=_TIMEOUT, device_id=gpu)
    has_succeeded = False
    try:
        # a process that failed at once would leave others unable to connect to it
        dist.barrier()
        yield
        has_succeeded = True
    except FacevaeError as error:
        if is_lead():
            raise
        raise ProcessError(f"process {rank()}: ", *error.args) from error
    except RuntimeError as error:
        # gloo reports a lost connection as a plain RuntimeError
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        msg = "another process of this run has ended; the same command goes on from the last state"
        raise RunError(msg) from error
    finally:
        # After a failure, NCCL would wait here for the other processes, which wait for this one. They
        # notice when this process ends.
        if has_succeeded or not gpu:
            dist.destroy_process_group()


def size() -> int:
    """Number of processes of the run; 1 outside `joined`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; 0 is the lead, which alone reports and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_lead() -> bool:
    """Whether this is the lead, the process that reports and writes."""
    return rank() == 0


def share(count: int) -> slice:
    """The examples of a batch of `count` that this process has."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


def mean(values: Tensor, count: int) -> Tensor:
    """Mean (…,) over a batch of `count`; `values` (…, b) are this process's share of the batch.

    Gradients flow back through it to every process.
    """
    return values.mean(-1) if size() == 1 else _total(values.sum(-1)) / count


class _Sum(torch.autograd.Function):
    """Sum over all processes. The gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(_, gradients[0].contiguous())


def _total(tensor: Tensor) -> Tensor:
    """Sum over all processes, with gradients."""
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every process's gradients with their mean over processes, in one message.

    After backward passes from the same `mean` over the batch, that is the gradient of the mean.
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
    """Agreement of all processes, about twice a second and between steps, on whether to stop."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._since = device, time.monotonic()
        self._steps_left = self._steps_between = 1

    def __call__(self, stop_signal: int) -> int:
        """The highest stop signal that a process received, or 0. To be called after every step."""
        if size() == 1:
            return stop_signal
        self._steps_left -= 1
        if self._steps_left:
            return 0
        milliseconds = int(1000 * (time.monotonic() - self._since) / self._steps_between)
        highest = torch.tensor([stop_signal, milliseconds], device=self._device)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        stop_signal, milliseconds = highest.tolist()
        steps = min(max(_AGREED_MILLISECONDS // max(milliseconds, 1), 1), 100)
        self._steps_left = self._steps_between = steps
        self._since = time.monotonic()
        return stop_signal


def from_lead(value: _T) -> _T:
    """The first process's `value`, in every process; what the others pass is ignored."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def tensors_from_lead(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The first process's tensors by name, on this process's `device`."""
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
    """Let the first process of each machine run the block before the others do."""
    waits = os.environ.get("LOCAL_RANK", "0") != "0"
    if size() > 1 and waits:
        dist.barrier()
    yield
    if size() > 1 and not waits:
        dist.barrier()


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Make all batch norms in `module` use the statistics of all processes' batches in training."""
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
    """Batch norm over the batches of all processes, on a CPU: torch's own is for GPUs only."""

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, H, W), normalised as `nn.BatchNorm2d` would normalise the whole batch."""
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
