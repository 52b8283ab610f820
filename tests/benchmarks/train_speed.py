"""How fast a step of training is on a CPU: ours beside a plain loop over the same layers.

    python tests/benchmarks/train_speed.py --size 128

Each loop runs in a fresh process, since a process that keeps freed memory keeps doing so. Ours is
what `facevae train` does between two epochs: batches cut from mapped pixels, mirrored, the
averaged weights kept. The plain loop is the usual one: a `DataLoader` over float32 tensors in
memory, and forward, backward and Adam in float32. Rounds alternate; the best of each counts.
`peers.py` sets other programs' loops beside these two.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 3
BATCHES = 4  # of faces in memory: all that a loop sees


def ours(size: int, batch_size: int, steps: int) -> float:
    """Images a second of `facevae train`'s own step."""
    from facevae.memory import keep_freed_memory

    keep_freed_memory()
    import numpy as np
    import torch

    from facevae.batches import Batches
    from facevae.config import ModelConfig, TrainConfig
    from facevae.data import Faces
    from facevae.model import VAE
    from facevae.stages import NetworkStage

    count = BATCHES * batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    faces = Faces(pixels, [""] * count, np.arange(count), np.arange(1), [], "")
    config = TrainConfig(batch_size=batch_size)
    batches = Batches(faces, batch_size, 0, torch.device("cpu"))
    stage = NetworkStage(VAE(ModelConfig(size=size)), batches, config)
    return _rate(stage.step, batch_size, steps)


def plain(size: int, batch_size: int, steps: int) -> float:
    """Images a second of the usual loop over the same layers and loss."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from facevae import losses
    from facevae.config import ModelConfig
    from facevae.model import VAE

    config = ModelConfig(size=size)
    vae = VAE(config).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-4)
    images = torch.rand(BATCHES * batch_size, 3, size, size)
    loader = DataLoader(TensorDataset(images), batch_size, shuffle=True)
    stream = iter(batch for _ in range(steps) for (batch,) in loader)

    def step(_index: int) -> None:
        batch = next(stream)
        noise = torch.randn(batch_size, config.latent_dim)
        reconstructions, mean, logvar = vae(batch, noise)
        mse = losses.mean_squared_error(reconstructions, batch)
        kl = losses.kl_divergence(mean, logvar).sum(1).mean()
        optimizer.zero_grad()
        (losses.calibrated_reconstruction(mse, config.num_pixels) + kl).backward()
        optimizer.step()

    return _rate(step, batch_size, steps)


def _rate(step, batch_size: int, steps: int) -> float:
    for index in range(2):
        step(index)
    begun = time.perf_counter()
    for index in range(2, 2 + steps):
        step(index)
    return steps * batch_size / (time.perf_counter() - begun)


def answer(loops: dict) -> bool:
    """Run the loop that this process was started for, if it was, and print its figures."""
    if sys.argv[1:2] != ["--loop"]:
        return False
    loop, *numbers = sys.argv[2:]
    rate = loops[loop](*map(int, numbers))
    import torch

    from facevae.memory import peak_bytes

    peak = peak_bytes(torch.device("cpu"))
    sys.stdout.write(json.dumps({"rate": rate, "peak_bytes": peak}) + "\n")
    return True


def compare(loops: dict, options: argparse.Namespace) -> None:
    """Run each loop, `{name: (python, script)}`, in turn and print its best round beside ours."""
    numbers = [str(n) for n in (options.size, options.batch_size, options.steps)]
    rounds = {loop: [] for loop in loops}
    for _ in range(ROUNDS):
        for loop, (python, script) in loops.items():
            command = [python, script, "--loop", loop, *numbers]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, check=False
            )
            if done.returncode:
                sys.exit(done.stderr)
            rounds[loop].append(json.loads(done.stdout.splitlines()[-1]))
    rates = {loop: max(figures["rate"] for figures in of) for loop, of in rounds.items()}
    for loop, rate in rates.items():
        memory = min(figures["peak_bytes"] for figures in rounds[loop]) / 1e9
        ratio = f"ours is {rates['ours'] / rate:.1f} times as fast" if loop != "ours" else ""
        sys.stdout.write(f"{loop}: {rate:,.0f} images/s, {memory:.1f} GB at most  {ratio}".rstrip())
        sys.stdout.write("\n")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    sys.stdout.write(f"on {os.cpu_count()} CPU cores; load at the end {load:.1f}\n")


def parser(text: str) -> argparse.ArgumentParser:
    """The options that every comparison of loops has."""
    found = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--size", type=int, default=128)
    found.add_argument("--batch-size", type=int, default=150)
    found.add_argument("--steps", type=int, default=12)
    return found


def main() -> None:
    """Measure both loops in turn and print the ratio."""
    if not answer({"ours": ours, "plain": plain}):
        here = (sys.executable, __file__)
        compare({"plain": here, "ours": here}, parser(__doc__).parse_args())


if __name__ == "__main__":
    main()
