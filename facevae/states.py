"""What training keeps of modules and optimisers: tensors by name, and averaged weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def average(averaged: nn.Module, current: nn.Module, decay: float) -> None:
    """Move averaged weights towards the current ones, in place: `decay` of them is kept."""
    update = get_ema_multi_avg_fn(decay)
    update(list(averaged.parameters()), list(current.parameters()), None)


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each name with `prefix` before it."""
    return {prefix + name: tensor for name, tensor in state.items()}


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The inverse of `prefixed`: those tensors whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and step counts, as `optimizer.*`."""
    moments = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{key}": tensor
        for i, values in moments.items()
        for key, tensor in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_state`."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part(state, "optimizer.").items():
        i, key = name.split(".")
        moments.setdefault(int(i), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    # the fused update walks memory, so moments must lie in it as their parameters do
    for parameter, values in optimizer.state.items():
        for key, tensor in values.items():
            if tensor.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(tensor)
