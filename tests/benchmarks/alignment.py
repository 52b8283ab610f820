"""How well a face is found and framed: photographs that are framed already, moved, and framed again.

    python tests/benchmarks/alignment.py FOLDER

Every picture is turned by up to 25°, scaled by 0.5 to 2 and shifted, all at random, into a larger
one, and a quarter of them laid on a side. The framing is measured on half of the pictures and
judged on the other half, both ways round. The error is the mean distance of the four corners found
from the true ones, in % of the true side; the roll's is in degrees.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from facevae.data.images import load_square
from facevae.errors import ImageError
from facevae.faces.alignment import measure_framing, place
from facevae.faces.framing import CORNERS

SIDE = 256


def moved(picture: Image.Image, draw: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """The picture somewhere in a larger one, and its corners there."""
    turn = np.exp(1j * math.radians(draw.uniform(-25, 25)))
    scale = draw.uniform(0.5, 2)
    square = SIDE * scale * turn * CORNERS
    square = square - complex(square.real.min(), square.imag.min())
    square = square + complex(draw.uniform(60, 200), draw.uniform(60, 200))
    step = SIDE / (square[1] - square[0])
    corner = -square[0] * step
    affine = (step.real, -step.imag, corner.real, step.imag, step.real, corner.imag)
    size = (math.ceil(square.real.max()) + 150, math.ceil(square.imag.max()) + 150)
    return picture.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC), square


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=240)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(arguments.folder.iterdir())
    files = files[:: max(1, len(files) // arguments.count)][: arguments.count]
    pixels = np.stack([load_square(path, SIDE) for path in files])
    draw = np.random.default_rng(0)
    errors, rolls, missed, seconds, sideways = [], [], 0, 0.0, 0
    for half in (0, 1):
        framing = measure_framing(pixels[half::2])
        if framing is None:
            parser.error(f"{arguments.folder}: these are not framed alike")
        sys.stdout.write(f"framing: {framing}\n")
        for picture in pixels[1 - half :: 2]:
            photo, square = moved(Image.fromarray(picture), draw)
            turns = int(draw.choice(4, p=(0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3)))
            started = time.perf_counter()
            try:
                placed = place(photo.rotate(-90 * turns, expand=True), framing)
            except ImageError:
                missed += 1
                continue
            seconds += time.perf_counter() - started
            if placed.turns != turns:
                sideways += 1
                continue
            sides = placed.square[1] - placed.square[0], square[1] - square[0]
            errors.append(np.abs(placed.square - square).mean() / abs(sides[1]))
            rolls.append(abs(np.angle(sides[0] / sides[1], deg=True)))
    sys.stdout.write(
        f"{len(files)} pictures: corner error {100 * np.mean(errors):.2f} % of the side "
        f"(p90 {100 * np.quantile(errors, 0.9):.2f}), roll {np.mean(rolls):.2f}°, "
        f"missed {missed}, wrong way up {sideways}, {1e3 * seconds / len(files):.0f} ms each on one core\n"
    )


if __name__ == "__main__":
    main()
