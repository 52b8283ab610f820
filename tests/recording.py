"""A stand-in for CUDA graphs, for tests without a GPU."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx


class Recorder:
    """Records a step's operations, to do them again on the same tensors; counts what it recorded.

    What a step would read from anywhere else stays as it was when it was recorded, as in a graph.
    """

    def __init__(self, live: Callable[[], Iterable[Tensor]]) -> None:
        """`live` gives all tensors that a step changes in place."""
        self._live, self.count = live, 0

    def __call__(
        self, step: Callable[..., Tensor], inputs: Sequence[Tensor]
    ) -> Callable[..., Tensor]:
        live = list(self._live())
        before = [tensor.clone() for tensor in live]
        # which takes the step, as recording a graph does not
        traced = make_fx(lambda *given: step(*given))(*inputs)  # noqa: PLW0108 - no method
        with torch.no_grad():
            for tensor, value in zip(live, before, strict=True):
                tensor.copy_(value)
        self.count += 1
        return torch.no_grad()(traced)
