"""The estimate that `train --dry-run` prints."""

from pathlib import Path
from typing import TYPE_CHECKING

from facevae.config import Preset
from facevae.system.console import Console, duration

if TYPE_CHECKING:
    import torch

    from facevae.data.labels import Labels


def print_estimate(
    console: Console,
    data: list[str],
    chosen: Preset,
    device: "torch.device",
    *,
    labels: "Labels | None",
    folder: Path,
    cache_dir: Path | None,
) -> None:
    """Print the time, disk and memory that a run would take, measured on a few steps."""
    from facevae.system.memory import total_bytes
    from facevae.training.estimate import estimate

    found = estimate(data, chosen.model, chosen.train, device, cache_dir, labels)
    disk = f"{found.cache_bytes / 1e6:,.0f} MB in {found.cache}"
    time = duration(found.convert_seconds) if found.convert_seconds else "done before"
    speed = f"{found.images_per_second:,.0f} images/s"
    finish_speed = f"{found.finish_images_per_second:,.0f} images/s"
    available = total_bytes(device)
    is_too_much = 0 < available < found.memory_bytes
    advice = f", of {available / 1e9:,.1f} GB in all; lower --batch-size" if is_too_much else ""
    stages = {
        "vae": f"training:   {duration(found.train_seconds)} for {_epochs(found.epochs)} at {speed}",
        "prior": f"prior:      {duration(found.prior_seconds)}",
        "finish": f"finish:     {duration(found.finish_seconds)} for {_epochs(found.finish_epochs)} at {finish_speed}",
    }
    lines = [
        f"pictures:   {found.num_pictures:,}",
        f"converting: {time}; {disk}",
        *(stages[stage] for stage in chosen.train.stages),
        f"memory:     about {found.memory_bytes / 1e9:,.1f} GB{advice}",
        f"run folder: about {found.run_bytes / 1e6:,.0f} MB in {folder}",
    ]
    console.result(lines, {"dry_run": True, "folder": str(folder), **found.to_dict()})


def _epochs(number: float) -> str:
    return "1 epoch" if number == 1 else f"{number:g} epochs"
