"""Options that several commands share, and the parsers of option values."""

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from facevae.config import MAX_GUIDANCE, MAX_SEED, STAGES, StageName
from facevae.errors import Argument, UsageError

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="FACEVAE_MODEL",
        help="The model: 'default' (packaged), a file, a folder, or user/repo(@revision) on the Hub.",
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        envvar="FACEVAE_MODEL",
        help="default, a file, a folder, or user/repo(@revision).",
    ),
]


def check_device(name: str) -> str:
    """The name of a device that may be there. Raises `UsageError` for any other word."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", name):
        raise UsageError(Argument("device", name), ": must be auto, cpu, cuda, cuda:N or mps")
    return name


Device = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="FACEVAE_DEVICE",
        help="auto, cpu, cuda, cuda:N or mps.",
        callback=check_device,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The first seed: one seed is one face.")]
TrainSeed = Annotated[
    int, typer.Option("--seed", min=0, help="Random seed of weights, order, mirroring and noise.")
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="Where to write; the suffix chooses the format, a name without one is a folder.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", envvar="FACEVAE_JSON", help="Print the result as one JSON object."),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", envvar="FACEVAE_QUIET", help="Print only results, warnings and errors."
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        envvar="FACEVAE_CACHE",
        help="Where converted training data are kept (default: the user's cache folder).",
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", "-t", min=0, help="Below 1 for cleaner faces, above for more varied ones."
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        min=0,
        max=MAX_GUIDANCE,
        help="How far to go beyond what the flow learned, from a single Gaussian on: 1 is not at all. "
        "A little above the model's own (the default) is more pronounced; above 4, faces break.",
    ),
]
Texture = Annotated[
    float,
    typer.Option(
        "--texture",
        min=0,
        max=1,
        help="How much fine detail a finished model invents: 0 none, 1 as in samples.",
    ),
]
Latents = Annotated[
    Path | None,
    typer.Option(
        "--latents", help="Write the latents too, as .npz or .safetensors; FILE#NAME is a face."
    ),
]
Align = Annotated[
    bool,
    typer.Option("--align/--no-align", help="Find the face and frame it like the training faces."),
]
FaceNumber = Annotated[
    int, typer.Option("--face", min=1, help="Which face of a photo, the largest being 1.")
]
Tune = Annotated[
    bool,
    typer.Option(
        "--tune/--no-tune",
        help="Tune the decoder to the photos first, for some seconds, so that they keep their likeness.",
    ),
]
Paste = Annotated[bool, typer.Option("--paste", help="Put the face back into the whole photo.")]


def parse_alpha(text: str | float) -> float:
    """A number, such as `-1.5`. Raises `UsageError`."""
    with suppress(ValueError):
        return float(text)
    more = "; a strip of several is --sweep FROM:TO:COUNT" if ":" in str(text) else ""
    msg = f"--alpha {text}: must be a number{more}"
    raise UsageError(msg)


FRAMES_PER_SECOND = 12  # by default
FramesPerSecond = Annotated[
    float, typer.Option("--fps", min=0.1, max=100, help="Frames per second of an animation.")
]
Animate = Annotated[
    bool | None,
    typer.Option(
        "--animate/--strip",
        help="An animation, or pictures side by side (default: by the suffix; .png is a strip).",
    ),
]

MAX_PICTURES = 1_000_000
MAX_SWEEP = 1000


def parse_seeds(text: str) -> list[int]:
    """`0,4,10-12` → [0, 4, 10, 11, 12]. Raises `UsageError`."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})\s*(?:-\s*(\d{1,19}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            msg = f"--seeds {text}: '{part}' is no seed or range; write it as 0,4,10-19"
            raise UsageError(msg)
        if last > MAX_SEED or last - first >= MAX_PICTURES:
            msg = f"--seeds {text}: '{part}' is too many; {MAX_PICTURES:,} at a time, none above {MAX_SEED}"
            raise UsageError(msg)
        seeds += range(first, last + 1)
    return seeds


def parse_sweep(text: str) -> list[float]:
    """`-3:3:7` (from, to, count) → [-3, -2, …, 3]. Raises `UsageError`."""
    start, stop, count = _sweep_parts(text) or (0.0, 0.0, 0)
    if count < 2 or count > MAX_SWEEP:  # noqa: PLR2004 - both ends
        msg = f"--sweep {text}: write it as from:to:count, with a count of 2 to {MAX_SWEEP}, like -3:3:7"
        raise UsageError(msg)
    return [start + (stop - start) * i / (count - 1) for i in range(count)]


def _sweep_parts(text: str) -> tuple[float, float, int] | None:
    try:
        start, stop, count = text.split(":")
        parts = finite("--sweep", float(start)), finite("--sweep", float(stop)), int(count)
    except ValueError:
        return None
    return parts


def parse_ramp(text: str) -> tuple[float, float]:
    """`1.5` → (1.5, 1.5); `-2:2` → (-2, 2). Raises `UsageError`."""
    start, colon, stop = text.partition(":")
    try:
        return finite("--alpha", float(start)), finite("--alpha", float(stop if colon else start))
    except ValueError:
        msg = f"--alpha {text}: write it as a number, or as from:to, like 0:1.5"
        raise UsageError(msg) from None


def finite(option: str, value: float) -> float:
    """Return `value`. Raises `UsageError` if it is `nan` or `inf`."""
    if not math.isfinite(value):
        msg = f"{option} {value}: must be a finite number"
        raise UsageError(msg)
    return value


def parse_duration(text: str) -> float:
    """`90s`, `8m`, `1h30m` → seconds. Raises `UsageError`."""
    match = re.fullmatch(r"(?:(\d{1,5})h)?(?:(\d{1,5})m)?(?:(\d{1,7})s)?", text.strip().casefold())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        msg = f"--max-time {text}: write it as 90s, 8m or 1h30m"
        raise UsageError(msg)
    return float(total)


def parse_stages(text: str) -> tuple[StageName, ...]:
    """`vae,prior` → ("vae", "prior"), in the order of training. Raises `UsageError`."""
    asked = [part.strip().casefold() for part in text.split(",")]
    if unknown := [part for part in asked if part not in STAGES]:
        msg = f"--stages {text}: there is no stage '{unknown[0]}'; choose of {', '.join(STAGES)}"
        raise UsageError(msg)
    return tuple(stage for stage in STAGES if stage in asked)


def parse_r_loss_factor(text: str) -> float | None:
    """A number, or None for `auto`. Raises `UsageError`."""
    if text.casefold() == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        msg = f"--r-loss-factor {text}: must be a number or auto"
        raise UsageError(msg) from None
