"""What training keeps of modules and optimisers: tensors by name, and averaged weights."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def average(averaged: nn.Module, current: nn.Module, decay: Tensor | float) -> None:
    """Move averaged weights towards the current ones, in place: `decay` of them is kept."""
    own, other = (list[Tensor](module.parameters()) for module in (averaged, current))
    # for many small tensors a few kernels instead of two each
    apart = list(torch._foreach_sub(other, own))  # noqa: SLF001 - what torch's own optimisers use
    torch._foreach_mul_(apart, 1 - decay)
    torch._foreach_add_(own, apart)


def adam(
    *groups: Iterable[nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float],
    records: bool,
) -> torch.optim.Adam:
    """Adam whose steps a CUDA graph may record; each group's rate is a tensor, so that it may change."""
    listed = [[*group] for group in groups]
    device = listed[0][0].device
    rated = [{"params": g, "lr": torch.tensor(learning_rate, device=device)} for g in listed]
    records = records and device.type == "cuda"
    return torch.optim.Adam(rated, betas=betas, fused=True, capturable=records)


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each name with `prefix` before it."""
    return {prefix + name: tensor for name, tensor in state.items()}


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
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
    for name, tensor in strip_prefix(state, "optimizer.").items():
        i, key = name.split(".")
        moments.setdefault(int(i), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    # the fused update walks memory, so moments must lie in it as their parameters do
    for parameter, values in optimizer.state.items():
        for key, tensor in values.items():
            if tensor.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(tensor)
