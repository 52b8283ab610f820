"""The machine: devices, precision and random numbers."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from enum import IntEnum
from functools import cache
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch

from facevae.errors import Argument, UsageError


def select_device(name: str = "auto") -> torch.device:
    """The device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Raises `UsageError` if not there."""
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"  # torchrun's: one process for each GPU
    try:
        device = torch.device(name)
    except RuntimeError as error:
        reason = ": must be auto, cpu, cuda, cuda:N or mps"
        raise UsageError(Argument("device", name), reason) from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = {"cpu": device.index in (None, 0), "cuda": (device.index or 0) < count}
    if not (present | {"mps": has_mps}).get(device.type, False):
        reason = f": not on this machine; it has {', '.join(_present_devices(count))}"
        raise UsageError(Argument("device", name), reason)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # some libraries work on the current device
    return device


def _present_devices(num_gpus: int) -> list[str]:
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{i}" for i in range(num_gpus)), *mps]


def describe(device: torch.device) -> str:
    """The device in words, with a GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def training_precision(device: torch.device) -> AbstractContextManager[object]:
    """Context manager: matrix products in bfloat16 if `device` is fast at them, else in float32."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device.type == "cpu" and _cpu_has_bfloat16()
    return torch.autocast(device.type, torch.bfloat16) if fast else nullcontext()


def _cpu_has_bfloat16() -> bool:
    # torch has no public function for this; a release without these runs in float32
    probes = (
        getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")
    )
    return any(probe() for probe in probes if probe is not None)


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Context manager: a CUDA device works on a side stream, in order with its current stream.

    Steps run there before they are captured: autograd accumulates a gradient on the stream that
    first computed it, and a graph cannot capture the default stream.
    """
    stream = _own_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures: libraries and the allocator keep memory for each stream."""
    return torch.cuda.Stream(device)


def cuda_graph(
    step: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]
) -> Callable[..., torch.Tensor]:
    """Capture `step` as a CUDA graph, for inputs of these shapes, without running it.

    Returns a function of such inputs that replays the graph. Its result is a copy.
    """
    static_inputs, device = [tensor.clone() for tensor in inputs], inputs[0].device
    graph, previous_stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    pool = torch.cuda.graph_pool_handle()
    torch.cuda.synchronize(device)
    try:
        # the device of the inputs may not be the current one; `thread_local`, because another
        # thread may be pinning memory for the next batches
        capture = torch.cuda.graph(
            graph, pool=pool, stream=_own_stream(device), capture_error_mode="thread_local"
        )
        with torch.cuda.device(device), capture:
            result = step(*static_inputs)
    except BaseException:
        # a failed capture leaves its own stream the current one
        torch.cuda.set_stream(previous_stream)
        _end_allocation(device, pool)
        raise

    def replay(*inputs: torch.Tensor) -> torch.Tensor:
        for static, given in zip(static_inputs, inputs, strict=True):
            static.copy_(given)
        graph.replay()
        return result.clone()

    return replay


def _end_allocation(device: torch.device, pool: tuple[int, int]) -> None:
    """Tell the allocator that a failed capture is over, as torch before 2.13 does not.

    Otherwise it refuses to free cached memory from then on (pytorch/pytorch#180395).
    """
    # the second is the name before torch 2.8
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        if end := getattr(torch._C, name, None):  # noqa: SLF001 - there is no public way
            with suppress(RuntimeError):  # raised if the allocator knows already
                end(device.index or 0, pool)
            return


@contextmanager
def kernels_by_trial() -> Iterator[None]:
    """Context manager: cuDNN times its kernels for each new shape of a convolution.

    It then uses the fastest, which pays where shapes recur many times, as in training.
    """
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextmanager
def full_precision() -> Iterator[None]:
    """Context manager: no gradients, full float32 (no TF32), no timing of cuDNN's kernels.

    Decoded images then agree within 1/255 on all devices.
    """
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
    """Settings that ask torch for full float32, as (object, attribute, value).

    There are two sets of them. torch refuses the older one in a program that has used the newer.
    """
    cuda, cudnn = torch.backends.cuda.matmul, cast("Any", torch.backends.cudnn)
    try:
        _ = cuda.allow_tf32, cudnn.allow_tf32
    except RuntimeError:
        return [(place, "fp32_precision", "ieee") for place in (cuda, cudnn.conv, cudnn.rnn)]
    return [(cuda, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to `device`, asynchronously on CUDA.

    Not on MPS, where torch before 2.13 may read the source after it was freed.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def milestone(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done what is queued now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def wait_for(device: torch.device) -> None:
    """Wait until a CUDA device has done all queued work; other devices queue none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def environment(device: torch.device) -> dict[str, str]:
    """Versions, system and device: what a run's figures may depend on beside its settings."""
    return {
        "facevae": version("facevae"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "device": describe(device),
        "threads": str(torch.get_num_threads()),
    }


class Stream(IntEnum):
    """What random numbers are for: the second number of a `generator`'s key, after the seed.

    The values must not change: results depend on them. The steps of a training use 0 to 8, each for
    one purpose. The rest reuse 5 to 8, where equal numbers do no harm.
    """

    ORDER = 0  # of the training faces
    MIRROR = 1  # which faces of a batch are mirrored
    POSTERIOR = 2  # latents that the network is trained on
    FLOW = 3  # noise, times and latents that the prior is trained on
    DROPOUT = 4
    FINISH_SAMPLES = 5  # of the prior, in a finish
    AUGMENTATION = 6  # of what discriminators see
    FLOW_MEASURE = 7  # noise, times and latents that the prior's loss is measured on
    CHANGES = 8  # of faces, for the prior
    PATCHES = 5  # where the sliced Wasserstein distance looks
    SUBSET = 6  # of the faces that are measured
    HELD_OUT_POSTERIOR = 7  # held-out latents that novelty compares with
    TEXTURE_NOISE = 7  # of a decoder's texture, always with seed 0
    NEIGHBOURS = 8  # of photos, which hold a decoder that is tuned to these; always with seed 0
    CLASSIFIER = 7  # faces and changes that a classifier of attributes sees, always with seed 0
    REFINEMENT = 6  # faces that directions of attributes are refined with, always with seed 0


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on `key` alone, such as (seed, stream, step)."""
    sequence = np.random.SeedSequence(key[0], spawn_key=key[1:])
    state = int(sequence.generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state >> 1)


@contextmanager
def seeded(state: int, device: torch.device | None = None) -> Iterator[None]:
    """Context manager: the global random numbers of the CPU and `device` depend on `state` alone.

    For code that takes no generator: initial weights of layers, and dropout.
    """
    with torch.random.fork_rng([device] if device and device.type == "cuda" else []):
        torch.manual_seed(state)
        yield


def face_noise(seeds: list[int], latent_dim: int) -> torch.Tensor:
    """Standard normal noise (N, latent_dim), float32 on the CPU: row i depends on seed i alone."""
    rows = [torch.randn(latent_dim, generator=generator(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, latent_dim)
