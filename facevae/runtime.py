"""The machine: devices, precision and random numbers."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch

from facevae.errors import UsageError


def select_device(name: str = "auto") -> torch.device:
    """The device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Raises `UsageError` if not there."""
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"  # torchrun's: a process a GPU
    try:
        device = torch.device(name)
    except RuntimeError as error:
        msg = f"--device {name}: must be auto, cpu, cuda, cuda:N or mps"
        raise UsageError(msg) from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = {"cpu": device.index in (None, 0), "cuda": (device.index or 0) < count}
    if not (present | {"mps": has_mps}).get(device.type, False):
        msg = f"--device {name}: not on this machine; it has {', '.join(_present_devices(count))}"
        raise UsageError(msg)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # some of what libraries do is on the current one
    return device


def _present_devices(num_gpus: int) -> list[str]:
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{i}" for i in range(num_gpus)), *mps]


def describe(device: torch.device) -> str:
    """The device in words, with a GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def training_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which matrix work is in bfloat16 where `device` is fast at it."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device.type == "cpu" and _cpu_has_bfloat16()
    return torch.autocast(device.type, torch.bfloat16) if fast else nullcontext()


def _cpu_has_bfloat16() -> bool:
    # torch has no public question for this; a release without these answers runs in float32
    probes = (
        getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")
    )
    return any(probe() for probe in probes if probe is not None)


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Inside, a CUDA device's work is queued beside its default stream, in order with it.

    Gradients are added up on the stream that they were first seen on, and no graph may hold the
    default one.
    """
    stream = _own_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all, since what libraries and the allocator keep for each stream stays theirs."""
    return torch.cuda.Stream(device)


def cuda_graph(
    step: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]
) -> Callable[..., torch.Tensor]:
    """The step as a CUDA graph, for inputs like these; recording takes no step."""
    held, device = [tensor.clone() for tensor in inputs], inputs[0].device
    graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    pool = torch.cuda.graph_pool_handle()
    torch.cuda.synchronize(device)
    try:
        # the stream is the device's own, which may not be the current one
        # other threads go on meanwhile: one gathers faces into memory that it has pinned
        recording = torch.cuda.graph(
            graph, pool=pool, stream=_own_stream(device), capture_error_mode="thread_local"
        )
        with torch.cuda.device(device), recording:
            result = step(*held)
    except BaseException:
        # torch leaves the stream of a failed capture the current one
        torch.cuda.set_stream(outside)
        _end_allocation(device, pool)
        raise

    def replay(*inputs: torch.Tensor) -> torch.Tensor:
        for own, given in zip(held, inputs, strict=True):
            own.copy_(given)
        graph.replay()
        return result.clone()

    return replay


def _end_allocation(device: torch.device, pool: tuple[int, int]) -> None:
    """Tell the allocator that a failed capture is over, which torch before 2.13 does not.

    It would refuse to free cached memory from then on (pytorch/pytorch#180395).
    """
    # the name from torch 2.8 on, and the one before
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        if end := getattr(torch._C, name, None):  # noqa: SLF001 - there is no public way
            with suppress(RuntimeError):  # where the allocator knows already
                end(device.index or 0, pool)
            return


@contextmanager
def kernels_by_trial() -> Iterator[None]:
    """Inside, cuDNN times its kernels for each new shape of a convolution, and keeps the fastest.

    For what goes through the same shapes many times: the steps of a training.
    """
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextmanager
def full_precision() -> Iterator[None]:
    """No gradients, and full float32, so that devices agree within 1/255; no kernels by trial."""
    places = [*_precisions(), (torch.backends.cudnn, "benchmark", False)]
    before = [getattr(place, name) for place, name, _ in places]
    for place, name, full in places:
        setattr(place, name, full)
    try:
        with torch.no_grad():
            yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


def _precisions() -> list[tuple[object, str, object]]:
    """Where torch is asked for full float32: what has which name there, and its value.

    There are two ways to ask, and one is refused where the program has used the other.
    """
    cuda, cudnn = torch.backends.cuda.matmul, cast("Any", torch.backends.cudnn)
    try:
        _ = cuda.allow_tf32, cudnn.allow_tf32
    except RuntimeError:
        return [(place, "fp32_precision", "ieee") for place in (cuda, cudnn.conv, cudnn.rnn)]
    return [(cuda, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`; where that is CUDA, nothing waits for it to get there.

    On MPS, torch before 2.13 may read the source when it has been freed already.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def milestone(device: torch.device) -> Callable[[], None]:
    """What waits until the device has done all that was queued before this call."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def wait_for(device: torch.device) -> None:
    """Until a CUDA device has done all that was queued; others do at once what they are asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def environment(device: torch.device) -> dict[str, str]:
    """What a run's figures may depend on beside its settings: versions, system and device."""
    return {
        "facevae": version("facevae"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "device": describe(device),
        "threads": str(torch.get_num_threads()),
    }


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers that depend on `key` alone: (seed, what for, step), say."""
    sequence = np.random.SeedSequence(key[0], spawn_key=key[1:])
    state = int(sequence.generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state >> 1)


@contextmanager
def seeded(state: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside, the global random numbers, of the CPU and `device`, depend on `state` alone.

    For what takes no generator: the weights of a new layer, and dropout.
    """
    with torch.random.fork_rng([device] if device and device.type == "cuda" else []):
        torch.manual_seed(state)
        yield


def face_noise(seeds: list[int], latent_dim: int) -> torch.Tensor:
    """Standard normal noise (N, latent_dim), float32 on the CPU: row i depends on seed i alone."""
    rows = [torch.randn(latent_dim, generator=generator(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, latent_dim)
