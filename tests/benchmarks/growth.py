"""How the time and memory of what users wait for grow with the work: 1, 4 and 16 times as much.

    python tests/benchmarks/growth.py

Each line is a process of its own: seconds and the most memory it held; `a unit` takes off what an
empty process takes, so that it stays the same where the work is all there is. Conversion is also
done on one core and on all, in turn, to say what share of all cores' work is had; there each
process times its conversion alone, and the least time of a few counts.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

TIMES = (1, 4, 16)
NUM_CONVERSIONS = 4
_CONVERT = """
import sys
import time
from pathlib import Path
from facevae.data.dataset import load_faces
begun = time.perf_counter()
load_faces([Path(sys.argv[1])], 128, cache=Path(sys.argv[2]))
print(time.perf_counter() - begun)
"""
_PRIOR = """
import sys
import torch
import facevae
from facevae.system.runtime import full_precision, face_noise
from facevae.networks.prior import sample_latents
model = facevae.load().bundle
with full_precision():
    sample_latents(model.prior, face_noise(list(range(int(sys.argv[1]))), model.config.latent_dim))
"""


def photographs(folder: Path, count: int, side: int = 1024) -> None:
    """JPEG files as a camera makes them, but for what they show: smooth shapes and grain."""
    draw = np.random.default_rng(0)
    grain = draw.normal(0, 6, (side, side, 3))
    for i in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        picture = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{i:05}.jpg", quality=92)


def own_seconds(command: list[str], cores: int) -> float:
    """What a process says that it took, on so many cores."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:cores])  # which the process inherits
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    finally:
        os.sched_setaffinity(0, every)
    return float(done.stdout)


def cost(command: list[str]) -> tuple[float, float]:
    """Seconds and megabytes of a process."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    complaint = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(complaint.decode())
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--photos", type=int, default=1000, help="of the largest conversion")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sets = {}
        for times in TIMES:
            sets[times] = root / f"photos-{times}"
            sets[times].mkdir()
            photographs(sets[times], options.photos * times // TIMES[-1])

        facevae = [sys.executable, "-m", "facevae"]

        def convert(times: int, cache: str = "") -> list[str]:
            where = str(root / f"cache-{times}{cache}")
            return [sys.executable, "-c", _CONVERT, str(sets[times]), where]

        def reconstruct(times: int) -> list[str]:
            out = str(root / f"out-{times}/")
            return [*facevae, "reconstruct", str(sets[times]), "--no-align", "-o", out]

        def sample(times: int) -> list[str]:
            return [*facevae, "sample", "-n", str(64 * times), "-o", str(root / f"{times}.png")]

        def prior(times: int) -> list[str]:
            return [sys.executable, "-c", _PRIOR, str(64 * times)]

        empty, _ = min(
            cost([sys.executable, "-c", "import facevae.latent_space.latents"]) for _ in range(3)
        )
        sys.stdout.write(f"an empty process: {empty:.2f} s; {cores} cores\n")
        photos = [options.photos * times // TIMES[-1] for times in TIMES]
        works: list[tuple[str, Callable[[int], list[str]], list[int]]] = [
            ("convert photos of 1024 px", convert, photos),
            ("reconstruct photos, as they are", reconstruct, photos),
            ("sample faces", sample, [64 * times for times in TIMES]),
            ("sample latents from the prior", prior, [64 * times for times in TIMES]),
        ]
        for what, command, counts in works:
            for times, count in zip(TIMES, counts, strict=True):
                seconds, megabytes = cost(command(times))
                unit = 1000 * (seconds - empty) / count
                sys.stdout.write(
                    f"{what}: {count:>6,} in {seconds:6.2f} s, {unit:6.2f} ms a unit, "
                    f"{megabytes:6,.0f} MB\n"
                )
                sys.stdout.flush()
        least = {1: math.inf, cores: math.inf}
        for i, n in product(range(NUM_CONVERSIONS), tuple(least)):
            least[n] = min(least[n], own_seconds(convert(TIMES[-1], f"-{n}-{i}"), n))
        share = least[1] / least[cores] / cores
        sys.stdout.write(f"conversion has {share:.0%} of {cores} × what one core does\n")


if __name__ == "__main__":
    main()
