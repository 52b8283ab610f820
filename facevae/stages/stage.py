"""What a training stage is: what one step does to the weights, and the state from which to resume.

The stages are the network's (`network_stage`), the prior's (`flow_matching`) and the decoder's finish
(`adversary`).

A step depends only on its index and the stage's state. So on a single CPU a resumed run is bitwise
the run that was never stopped. On a GPU, or with several processes, it takes the same steps up to
rounding, since kernels and reductions may add in another order.
"""

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from facevae.stages.budget import Budget
from facevae.stages.states import Resumable, prefixed, strip_prefix


class Stage(Resumable):
    """A model being fitted step by step; `terms` are the names of the values a step returns."""

    terms: tuple[str, ...]
    budget: Budget

    @abstractmethod
    def step(self, index: int) -> Tensor:
        """Take update number `index`; return its loss terms, on the device, zeros if skipped."""

    @abstractmethod
    def inputs(self) -> dict[str, Tensor]:
        """The fixed tensors that the stage uses beside the faces."""

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, apart from the inputs; and the time used."""
        return super().state() | prefixed("budget.", self.budget.state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned."""
        super().restore(state)
        self.budget.restore(strip_prefix(state, "budget."))
