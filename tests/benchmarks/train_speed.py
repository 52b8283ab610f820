"""How fast a step of training is on a CPU: ours beside a plain loop over the same layers.

    python tests/benchmarks/train_speed.py --size 128

Each loop runs in a fresh process, since a process that keeps freed memory keeps doing so. Ours is
what `facevae train` does between two epochs: batches cut from mapped pixels, mirrored, the
averaged weights kept. The plain loop is the usual one: a `DataLoader` over float32 tensors in
memory, and forward, backward and Adam in float32. Rounds alternate; the best of each counts.
"""

import argparse
import json
import subprocess
import sys
import time

ROUNDS = 3


def ours(size: int, batch_size: int, steps: int) -> float:
    """Images a second of `facevae train`'s own step."""
    from facevae.runtime import keep_freed_memory

    keep_freed_memory()
    import numpy as np
    import torch

    from facevae.batches import Batches
    from facevae.config import ModelConfig, TrainConfig
    from facevae.data import Faces
    from facevae.model import VAE
    from facevae.stages import NetworkStage

    count = 4 * batch_size
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
    images = torch.rand(4 * batch_size, 3, size, size)
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


def _measured(loop: str, options: argparse.Namespace) -> float:
    numbers = [str(n) for n in (options.size, options.batch_size, options.steps)]
    command = [sys.executable, __file__, "--loop", loop, *numbers]
    return float(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))


def main() -> None:
    """Measure both loops in turn and print the ratio."""
    if sys.argv[1:2] == ["--loop"]:
        loop, size, batch_size, steps = sys.argv[2:6]
        rate = {"ours": ours, "plain": plain}[loop](int(size), int(batch_size), int(steps))
        sys.stdout.write(json.dumps(rate))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=150)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    best = {"plain": 0.0, "ours": 0.0}
    for _ in range(ROUNDS):
        best = {loop: max(rate, _measured(loop, options)) for loop, rate in best.items()}
    for loop, rate in best.items():
        sys.stdout.write(f"{loop}: {rate:,.0f} images/s\n")
    sys.stdout.write(f"ours / plain: {best['ours'] / best['plain']:.1f}\n")


if __name__ == "__main__":
    main()
