"""How fast a step of training is, on a CPU or a GPU: ours beside a plain loop over the same layers.

    python tests/benchmarks/train_speed.py --size 128
    python tests/benchmarks/train_speed.py --device cuda --preset sharp --steps 400

Each loop runs in a fresh process, since a process that keeps freed memory keeps doing so. Ours is
what `facevae train` does between two epochs: batches cut from mapped pixels (on a GPU, from its own
memory), mirrored, the averaged weights kept. The plain loop is the usual one: a `DataLoader` over
float32 tensors in memory, and forward, backward and Adam in float32. Rounds alternate; the best of
each counts. On a GPU, the first steps, in which kernels are chosen, recorded and compiled, are not
timed. `peers.py` sets other programs' loops beside these two.

Two shares say how near to the machine's limits a loop is. That of the matrix rate is of the
convolutions' and linear layers' multiplications and additions, forward and backward, over what one
large product does in the precision that training has here. That of the copy rate is of the bytes
that a step moves at the least (each tensor that is kept for the backward pass written once and
read once, in that precision; weights, gradients and Adam's moments), over what a large copy does.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

ROUNDS = 3
BATCHES = 4  # of faces in memory: all that a loop sees
WARM_UP = {"cpu": 2, "cuda": 150}  # steps; on a GPU they are recorded and compiled meanwhile
_ADAM_BYTES = (
    28  # for a float32 weight: it, its gradient and two moments read, three of them written
)


@dataclass(frozen=True)
class Task:
    """What every loop does: as on the command line."""

    preset: str
    size: int
    batch_size: int
    steps: int
    device: str

    @property
    def config(self):
        """The `ModelConfig`."""
        from facevae.config import preset

        return replace(preset(self.preset).model, size=self.size)


def ours(task: Task) -> float:
    """Images a second of `facevae train`'s own step."""
    from facevae.system.memory import keep_freed_memory

    keep_freed_memory()
    import numpy as np
    import torch

    from facevae.config import preset
    from facevae.data.batches import Batches
    from facevae.data.dataset import Faces
    from facevae.networks.vae import VAE
    from facevae.stages.network_stage import NetworkStage
    from facevae.system.runtime import kernels_by_trial

    device = torch.device(task.device)
    count, size = BATCHES * task.batch_size, task.size
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    faces = Faces(pixels, [""] * count, np.arange(count), np.arange(1), [], "")
    # as in a long training, in which compiling pays
    config = replace(preset(task.preset).train, batch_size=task.batch_size, epochs=10**6)
    batches = Batches(faces, task.batch_size, 0, device)
    with kernels_by_trial():
        stage = NetworkStage(VAE(task.config).to(device), batches, config, _say)
        return rate(stage.step, task)


def _say(notice: str) -> None:
    sys.stderr.write(f"{notice}\n")


def plain(task: Task) -> float:
    """Images a second of the usual loop over the same layers and loss."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from facevae.networks.vae import VAE

    vae = VAE(task.config).to(task.device).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-4)
    images = torch.rand(BATCHES * task.batch_size, 3, task.size, task.size)
    on_gpu = task.device != "cpu"
    loader = DataLoader(
        TensorDataset(images), task.batch_size, shuffle=True, pin_memory=on_gpu, drop_last=True
    )

    def endless():
        while True:
            yield from loader

    stream = endless()

    def step(_index: int) -> None:
        (batch,) = next(stream)
        optimizer.zero_grad()
        loss_of(vae, batch.to(task.device, non_blocking=True)).backward()
        optimizer.step()

    return rate(step, task)


def loss_of(vae, images):
    """The evidence lower bound of `facevae train`, negated: a scalar."""
    import torch

    from facevae.measures import losses

    noise = torch.randn(len(images), vae.config.latent_dim, device=images.device)
    reconstructions, mean, logvar = vae(images, noise)
    mse = losses.mean_squared_error(reconstructions, images).mean()
    kl = losses.kl_divergence(mean, logvar).sum(1).mean()
    return losses.calibrated_reconstruction(mse, vae.config.num_pixels) + kl


def rate(step: Callable[[int], object], task: Task) -> float:
    """Images a second over `task.steps` steps, after some that are not timed."""
    import torch

    from facevae.system.runtime import wait_for

    device = torch.device(task.device)
    first = WARM_UP[device.type]
    for index in range(first):
        step(index)
    wait_for(device)
    begun = time.perf_counter()
    for index in range(first, first + task.steps):
        step(index)
    wait_for(device)
    return task.steps * task.batch_size / (time.perf_counter() - begun)


# ---------------------------------------------------------------- the machine's limits


def limits(task: Task) -> dict[str, float]:
    """Operations and bytes that an image takes, and how many of either the machine does a second."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from facevae.networks.vae import VAE, num_parameters
    from facevae.system.runtime import training_precision

    device = torch.device(task.device)
    vae = VAE(task.config).to(device).train()
    images = torch.rand(min(8, task.batch_size), 3, task.size, task.size, device=device)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            training_precision(device),
        ):
            loss = loss_of(vae, images)
        loss.backward()
    with training_precision(device):
        precision = (torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)).dtype
    return {
        "flops": counter.get_total_flops() / len(images),
        "bytes": 2 * sum(kept.values()) / len(images)
        + _ADAM_BYTES * num_parameters(vae) / task.batch_size,
        "flops_per_second": _matrix_rate(device, precision),
        "bytes_per_second": _copy_rate(device),
    }


def _matrix_rate(device, precision) -> float:
    """Operations a second of a large matrix product."""
    import torch

    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    return 2 * side**3 / _fastest(lambda: a @ b, device)


def _copy_rate(device) -> float:
    """Bytes a second that a large copy reads and writes."""
    import torch

    numbers = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    copied = torch.empty_like(numbers)
    return 2 * numbers.nbytes / _fastest(lambda: copied.copy_(numbers), device)


def _fastest(work: Callable[[], object], device) -> float:
    """Seconds of the fastest of ten."""
    from facevae.system.runtime import wait_for

    found = []
    for _ in range(10):
        wait_for(device)
        begun = time.perf_counter()
        work()
        wait_for(device)
        found.append(time.perf_counter() - begun)
    return min(found)


# ---------------------------------------------------------------- processes and the table


def answer(loops: dict[str, Callable[[Task], float]]) -> bool:
    """Run the loop that this process was started for, if it was, and print its figures."""
    if sys.argv[1:2] != ["--loop"]:
        return False
    _, _, loop, told = sys.argv
    task = Task(**json.loads(told))
    found = limits(task) if loop == "limits" else {"rate": loops[loop](task)}
    import torch

    from facevae.system.memory import peak_bytes

    found["peak_bytes"] = peak_bytes(torch.device(task.device))
    sys.stdout.write(json.dumps(found) + "\n")
    return True


def _run(python: str, script: str, loop: str, task: Task) -> dict[str, float]:
    command = [python, script, "--loop", loop, json.dumps(vars(task))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(loops: dict[str, tuple[str, str]], task: Task) -> None:
    """Run each loop, `{name: (python, script)}`, in turn and print its best round beside ours."""
    rounds = {loop: [] for loop in loops}
    for _ in range(ROUNDS):
        for loop, (python, script) in loops.items():
            rounds[loop].append(_run(python, script, loop, task))
    limit = _run(sys.executable, str(Path(__file__)), "limits", task)
    rates = {loop: max(figures["rate"] for figures in of) for loop, of in rounds.items()}
    for loop, found in rates.items():
        memory = min(figures["peak_bytes"] for figures in rounds[loop]) / 1e9
        shares = [limit[of] * found / limit[f"{of}_per_second"] for of in ("flops", "bytes")]
        line = (
            f"{loop}: {found:,.0f} images/s, {memory:.1f} GB at most, {shares[0]:.0%} of the matrix "
            f"rate and {shares[1]:.0%} of the copy rate"
        )
        if loop != "ours":
            line += f"; ours is {rates['ours'] / found:.1f} times as fast"
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(
        f"an image takes {limit['flops'] / 1e9:.2f} GFLOP and moves {limit['bytes'] / 1e6:.1f} MB; "
        f"this machine does {limit['flops_per_second'] / 1e12:.2f} TFLOP/s and copies "
        f"{limit['bytes_per_second'] / 1e9:.1f} GB/s\n"
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    sys.stdout.write(f"on {task.device}, {os.cpu_count()} CPU cores; load at the end {load:.1f}\n")


def parser(text: str) -> argparse.ArgumentParser:
    """The options that every comparison of loops has."""
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--preset", default="base")
    found.add_argument("--size", type=int, default=128)
    found.add_argument("--batch-size", type=int, default=150)
    found.add_argument("--steps", type=int, default=12)
    found.add_argument("--device", default="cpu", choices=WARM_UP)
    return found


def task_of(options: argparse.Namespace) -> Task:
    """What these options ask of every loop."""
    return Task(options.preset, options.size, options.batch_size, options.steps, options.device)


def main() -> None:
    """Measure both loops in turn and print the ratio."""
    if not answer({"ours": ours, "plain": plain}):
        here = (sys.executable, __file__)
        compare({"plain": here, "ours": here}, task_of(parser(__doc__).parse_args()))


if __name__ == "__main__":
    main()
