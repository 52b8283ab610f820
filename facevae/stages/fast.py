"""Training steps as fast as the device allows: captured as CUDA graphs, and compiled if it pays."""

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from facevae.system.runtime import cuda_graph, side_stream, wait_for

Forward = Callable[..., Tensor]
Step = Callable[..., Tensor]
Warn = Callable[[str], None]
"""Receives messages for the user."""

WARM_UP = 3  # calls before the capture, in which libraries choose their kernels
WATCHED = 100  # replays before the decision whether to compile
_TIMED = 20  # the last of these, which are timed
LEAST_SECONDS = 45.0  # that remaining steps must take to compile: compiling takes up to a minute
# Relative difference of the compiled gradient. Rounding to bfloat16 makes a few hundredths.
MOST_APART = 0.2


def inductor(forward: Forward) -> Forward:
    """Compile for fixed shapes, without inductor's own CUDA graphs: the whole step is one graph."""
    options: dict[str, str | int | bool | Callable[..., object]] = {"triton.cudagraphs": False}
    compiled: Forward = torch.compile(forward, fullgraph=True, dynamic=False, options=options)
    return compiled


class AcceleratedStep:
    """A training step that becomes faster as it is called; its results stay the same.

    On CUDA, the call after `WARM_UP` captures the step as one graph, which later calls replay: one
    launch instead of hundreds. So nothing may change between calls but the values of its inputs and
    of tensors that it updates in place. If at least `LEAST_SECONDS` are left after `WATCHED`
    replays, `forward` is compiled and the step captured again, provided that the gradient is the
    same. If capturing or compiling fails, the step continues without, with one warning.
    """

    def __init__(
        self,
        step: Step,
        forward: Forward,
        module: nn.Module,
        warn: Warn,
        seconds_left: Callable[[float], float],
        *,
        record: Callable[[Step, tuple[Tensor, ...]], Step] | None = None,
        compiler: Callable[[Forward], Forward] | None = inductor,
    ) -> None:
        """`step(forward, *inputs)` is one step; `forward` is a loss of `module` to be compiled.

        `seconds_left` gives the time that the remaining steps take, from the seconds of one.
        `record` captures: from a step and its inputs, it makes a function that repeats the step
        with other inputs of the same shapes. None is the device's own way: on the CPU, none.
        """
        self._step, self._forward, self._module = step, forward, module
        self._warn, self._seconds_left = warn, seconds_left
        device = next(module.parameters()).device
        on_cuda = device.type == "cuda"
        self._side_stream = partial(side_stream, device) if on_cuda else nullcontext
        self._record = record or (cuda_graph if on_cuda else None)
        self._compiler: Callable[[Forward], Forward] | None = compiler
        self._current: Step = partial(step, forward)
        self._is_compiled, self._num_calls = False, 0
        self._wait, self._seconds = partial(wait_for, device), list[float]()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Take the step. The next call does not overwrite the tensor that is returned."""
        if self._record is None:
            return self._current(*inputs)
        self._num_calls += 1
        try:
            if self._num_calls > WARM_UP + WATCHED and self._compiler:
                self._compile_if_that_pays(self._compiler)
            if self._num_calls <= WARM_UP:
                return self._warm_up(inputs)
            if self._num_calls == WARM_UP + 1:
                self._current = self._record(self._current, inputs)
        except Exception as error:
            if not self._fall_back(error):
                raise
        else:
            is_timed = self._compiler and self._num_calls > WARM_UP + WATCHED - _TIMED
            return self._timed(inputs) if is_timed else self._current(*inputs)
        return self(*inputs)

    def _timed(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Take a step and wait for it, to measure its time: the host runs ahead of the device."""
        self._wait()
        begun = time.monotonic()
        result = self._current(*inputs)
        self._wait()
        self._seconds.append(time.monotonic() - begun)
        return result

    def _compile_if_that_pays(self, compiler: Callable[[Forward], Forward]) -> None:
        self._compiler = None  # decided once
        if self._seconds_left(median(self._seconds)) < LEAST_SECONDS:
            return
        self._warn("compiling the steps that are left, which takes up to a minute the first time")
        self._is_compiled, self._num_calls = True, 1
        compiled = compiler(self._forward)

        def check(*inputs: Tensor) -> Tensor:
            difference = _gradient_difference(self._module, self._forward, compiled, inputs)
            if not difference < MOST_APART:
                msg = f"its gradient is off by {difference:.0%}"
                raise RuntimeError(msg)
            self._current = partial(self._step, compiled)
            return self._forward(*inputs)

        self._current = partial(self._step, check)

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Tensor:
        with self._side_stream(), warnings.catch_warnings():
            # the optimiser says that it is capturable and not being captured
            warnings.filterwarnings("ignore", message=".*capturable")
            if self._is_compiled:
                warnings.simplefilter("ignore")  # advice from the compiler
            return self._current(*inputs)

    def _fall_back(self, error: Exception) -> bool:
        """Switch to a simpler way after `error`, if there is one; return whether there is."""
        # if the step fails within a capture, so does the end of the capture
        reason = (str(error.__context__ or error).splitlines() or [type(error).__name__])[0]
        if self._is_compiled:  # compilers fail in many ways, and need more memory
            self._warn(f"training goes on without compiled steps, more slowly ({reason})")
            self._current, self._is_compiled = partial(self._step, self._forward), False
            self._num_calls = 0
            return True
        # out of memory too: a graph has memory of its own, and the steps before it had enough
        is_recording = self._num_calls > WARM_UP
        if is_recording and isinstance(error, RuntimeError):
            self._warn(f"training goes on without CUDA graphs, more slowly ({reason})")
            self._record = None
            return True
        return False


def _gradient_difference(
    module: nn.Module, forward: Forward, other: Forward, inputs: tuple[Tensor, ...]
) -> float:
    """Relative difference of the gradients of two losses; the first one's norm is the unit.

    Leaves everything as it was, batch-norm statistics included.
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
