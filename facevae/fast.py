"""A step of a training as its device does it fastest: recorded, and compiled where that pays."""

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from facevae.runtime import cuda_graph, side_stream, wait_for

Forward = Callable[..., Tensor]
Step = Callable[..., Tensor]
Warn = Callable[[str], None]
"""Told what the user should know."""

WARM_UP = 3  # calls in which libraries choose their kernels, which a recording keeps
WATCHED = 100  # replayed calls, after which one knows how long those that are left will take
_TIMED = 20  # of these, the last, are waited for
# Compiling takes half a minute once, and seconds from inductor's cache on disk; what is left then
# takes about two thirds of the time (the paper's network on an H100).
LEAST_SECONDS = 45.0
# between two gradients, in units of one: rounding to bfloat16 makes a few hundredths of it
MOST_APART = 0.2


def inductor(forward: Forward) -> Forward:
    """For tensors of these very shapes, and without graphs of its own: the whole step is one."""
    options: dict[str, str | int | bool | Callable[..., object]] = {"triton.cudagraphs": False}
    compiled: Forward = torch.compile(forward, fullgraph=True, dynamic=False, options=options)
    return compiled


class AcceleratedStep:
    """A step of a training as its device does it fastest; it does the same either way.

    On CUDA it is recorded at its fourth call as one graph, and replayed from then on, which
    launches hundreds of kernels at the cost of one. So it may depend on the values of its tensors,
    and on what it keeps in tensors and changes in place: nothing else may change between calls.
    Where `LEAST_SECONDS` and more are left after `WATCHED` replays, its forward is compiled, and it is
    recorded anew, if the gradient is still the same. It goes on without what cannot be done, of
    which `tell` is told once.
    """

    def __init__(
        self,
        step: Step,
        forward: Forward,
        module: nn.Module,
        tell: Warn,
        seconds_left: Callable[[float], float],
        *,
        record: Callable[[Step, tuple[Tensor, ...]], Step] | None = None,
        compiler: Callable[[Forward], Forward] | None = inductor,
    ) -> None:
        """`step(forward, *inputs)` is a step, of which `forward`, a loss of `module`, is worth compiling.

        `seconds_left` says how long all that are left take at so many seconds each. `record` is
        how to record: given a step and its inputs, what does it again for others like them.
        """
        self._step, self._forward, self._module = step, forward, module
        self._tell, self._seconds_left = tell, seconds_left
        device = next(module.parameters()).device
        on_cuda = device.type == "cuda"
        self._aside = partial(side_stream, device) if on_cuda else nullcontext
        self._record = record or (cuda_graph if on_cuda else None)
        self._compiler: Callable[[Forward], Forward] | None = compiler
        self._now: Step = partial(step, forward)
        self._is_compiled, self._num_calls = False, 0
        self._wait, self._seconds = partial(wait_for, device), list[float]()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the step returns, (…), which the next call leaves as it is."""
        if self._record is None:
            return self._now(*inputs)
        self._num_calls += 1
        try:
            if self._num_calls > WARM_UP + WATCHED and self._compiler:
                self._compile_if_that_pays(self._compiler)
            if self._num_calls <= WARM_UP:
                return self._warm_up(inputs)
            if self._num_calls == WARM_UP + 1:
                self._now = self._record(self._now, inputs)
        except Exception as error:
            if not self._does_without(error):
                raise
        else:
            is_timed = self._compiler and self._num_calls > WARM_UP + WATCHED - _TIMED
            return self._timed(inputs) if is_timed else self._now(*inputs)
        return self(*inputs)

    def _timed(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """A call that is waited for, since it is queued long before it is done."""
        self._wait()
        begun = time.monotonic()
        result = self._now(*inputs)
        self._wait()
        self._seconds.append(time.monotonic() - begun)
        return result

    def _compile_if_that_pays(self, compiler: Callable[[Forward], Forward]) -> None:
        self._compiler = None  # this is asked once
        if self._seconds_left(median(self._seconds)) < LEAST_SECONDS:
            return
        self._tell("compiling the steps that are left, which takes up to a minute the first time")
        self._is_compiled, self._num_calls = True, 1
        compiled = compiler(self._forward)

        def check(*inputs: Tensor) -> Tensor:
            apart = _apart(self._module, self._forward, compiled, inputs)
            if not apart < MOST_APART:
                msg = f"its gradient is off by {apart:.0%}"
                raise RuntimeError(msg)
            self._now = partial(self._step, compiled)
            return self._forward(*inputs)

        self._now = partial(self._step, check)

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Tensor:
        with self._aside(), warnings.catch_warnings():
            # that the optimiser could be recorded and is not yet
            warnings.filterwarnings("ignore", message=".*capturable")
            if self._is_compiled:
                warnings.simplefilter("ignore")  # advice from the compiler
            return self._now(*inputs)

    def _does_without(self, error: Exception) -> bool:
        """Whether the step is done in a simpler way from now on than the one that failed."""
        # what ends a recording fails too where the step within has
        reason = (str(error.__context__ or error).splitlines() or [type(error).__name__])[0]
        if self._is_compiled:  # compilers fail in many ways; and memory was enough without
            self._tell(f"training goes on without compiled steps, more slowly ({reason})")
            self._now, self._is_compiled = partial(self._step, self._forward), False
            self._num_calls = 0
            return True
        # memory too, which a graph does not share with what runs beside it: warm-up had enough
        is_recording = self._num_calls > WARM_UP
        if is_recording and isinstance(error, RuntimeError):
            self._tell(f"training goes on without CUDA graphs, more slowly ({reason})")
            self._record = None
            return True
        return False


def _apart(
    module: nn.Module, forward: Forward, other: Forward, inputs: tuple[Tensor, ...]
) -> float:
    """How far the gradients of two losses are from each other, in units of the first one's.

    What a step would leave as it is stays so: batch-norm statistics too.
    """
    parameters, buffers = [*module.parameters()], [*module.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    gradients = []
    for loss in (forward, other):
        found = torch.autograd.grad(loss(*inputs).sum(), parameters)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
        for buffer, before in zip(buffers, kept, strict=True):
            buffer.copy_(before)
    wanted, found_one = gradients
    return float((found_one - wanted).norm() / wanted.norm())
