"""Optimisers, averaged weights, and the state of what is trained as named tensors."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from facevae.stages.guard import Guard


class Resumable(ABC):
    """Networks in training, with the optimiser and the guard of their steps."""

    optimizer: torch.optim.Optimizer
    guard: Guard

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks whose weights the next step depends on, by their names in the state."""

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, apart from its inputs."""
        state = optimizer_state(self.optimizer) | prefixed("guard.", self.guard.state())
        for name, network in self.networks().items():
            state |= prefixed(f"{name}.", network.state_dict())
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned."""
        for name, network in self.networks().items():
            network.load_state_dict(strip_prefix(state, f"{name}."))
        restore_optimizer(self.optimizer, state)
        self.guard.restore(strip_prefix(state, "guard."))


@torch.no_grad()
def average(averaged: nn.Module, current: nn.Module, decay: Tensor | float) -> None:
    """Update a moving average of weights in place: averaged × decay + current × (1 − decay)."""
    averages, weights = (list[Tensor](module.parameters()) for module in (averaged, current))
    # a few kernels in all, instead of two for each of many small tensors
    differences = list(torch._foreach_sub(weights, averages))  # noqa: SLF001 - as torch does
    torch._foreach_mul_(differences, 1 - decay)
    torch._foreach_add_(averages, differences)


def adam(
    *groups: Iterable[nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float],
    records: bool,
) -> torch.optim.Adam:
    """Fused Adam over parameter groups, each with its learning rate in a tensor.

    With `records` a CUDA graph may record its steps; the rates can still change, in place.
    """
    lists = [list(group) for group in groups]
    device = lists[0][0].device
    param_groups = [
        {"params": group, "lr": torch.tensor(learning_rate, device=device)} for group in lists
    ]
    capturable = records and device.type == "cuda"
    return torch.optim.Adam(param_groups, betas=betas, fused=True, capturable=capturable)


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with `prefix` before each name."""
    return {prefix + name: tensor for name, tensor in state.items()}


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, which is removed: the inverse of `prefixed`."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts, named `optimizer.{parameter index}.{key}`."""
    moments = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{key}": tensor
        for i, values in moments.items()
        for key, tensor in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_state` returned; other names in `state` are ignored."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in strip_prefix(state, "optimizer.").items():
        i, key = name.split(".")
        moments.setdefault(int(i), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    # the fused update reads memory in order, so moments need the memory layout of their parameters
    for parameter, values in optimizer.state.items():
        for key, tensor in values.items():
            if tensor.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(tensor)
