"""What a run on 70,000 faces takes beside its steps: memory, time, and the share of all but steps.

    python tests/benchmarks/full_run.py --preset paper --max-time 2m
    python tests/benchmarks/full_run.py --preset paper --epochs 30 --times 2

The faces are shapes of colour, written straight into a cache as `facevae train` would have them
(3.4 GB at 128 px, removed at the end); what trains is `facevae train` in a process of its own. With
`--times 2` all is done twice in a new inductor cache: from nothing, and with kernels at hand.

Memory is the most that /proc said of the process, ten times a second: `anonymous` is what no file
backs, `mapped` what can be dropped and read again, as the cache. The share is by the run's own
records: of the time from the first step to the last record, what more it took than its steps at
their median speed. `beside steps` is that, and `in all` the process from beginning to end.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHUNK = 1000  # faces that are made at once


def fill_cache(data: Path, cache: Path, count: int, size: int) -> None:
    """A data set of `count` pictures that is converted already, but that there are no pictures.

    One stands for them: the cache is found by the files' names, sizes and times alone.
    """
    from PIL import Image

    from facevae.data.conversion import _open_arrays
    from facevae.data.dataset import converted
    from facevae.data.pictures import find_data
    from facevae.system.files import digest, write_json

    data.mkdir()
    Image.new("RGB", (size, size)).save(data / "0.png")
    folder, _ = converted(find_data([data]), size, cache)
    folder.mkdir(parents=True)
    pixels, _ = _open_arrays(folder, count, size)
    draw = np.random.default_rng(0)
    for start in range(0, count, CHUNK):
        coarse = draw.integers(0, 256, (min(CHUNK, count - start), 8, 8, 3), dtype=np.uint8)
        pixels[start : start + CHUNK] = coarse.repeat(size // 8, 1).repeat(size // 8, 2)
    pixels.flush()
    stems = [f"{i:06}" for i in range(count)]
    index = {"sources": [str(data)], "size": size, "created": time.time(), "stems": stems}
    write_json(
        folder / "index.json",
        {**index, "fingerprint": digest(*stems)[:16], "skipped_rows": [], "skipped": []},
    )


def memory_of(process: int) -> dict[str, float]:
    """What /proc says of a process now, in GB."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:  # it has ended
        return {}
    fields = dict(line.split(":", 1) for line in status.splitlines())
    names = {"anonymous": "RssAnon", "mapped": "RssFile"}
    return {k: int(fields[v].split()[0]) / 1e6 for k, v in names.items() if v in fields}


def train(command: list[str], environment: dict[str, str]) -> tuple[float, dict[str, float]]:
    """Run it: its seconds, and the most memory of each kind."""
    most: dict[str, float] = {}
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None:
        for kind, held in memory_of(process.pid).items():
            most[kind] = max(most.get(kind, 0.0), held)
        time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - begun, most


def share_beside_steps(run: Path) -> float:
    """Of the time of the stage `vae`, by its records."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    rate = statistics.median(r["images_per_second"] for r in records if r["event"] == "steps")
    of_network = [r for r in records if r["event"] == "steps" or r.get("stage") == "vae"]
    first, last = of_network[0], of_network[-1]
    seconds = last["seconds"] - first["seconds"]
    return 1 - (last["images"] - first["images"]) / rate / seconds


def main() -> None:
    """Fill a cache, train on it, and print what that took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--faces", type=int, default=70_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--times", type=int, default=1, help="runs, one after another")
    parser.add_argument("--max-time", help="in place of epochs, as of `facevae train`")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="where the faces are put for a while")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        fill_cache(root / "faces", root / "cache", options.faces, options.size)
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor")}
        budget = ["--epochs", str(options.epochs)]
        if options.max_time:
            budget = ["--max-time", options.max_time]
        for number in range(options.times):
            run = root / f"run-{number}"
            command = [sys.executable, "-m", "facevae", "train", str(root / "faces")]
            command += ["--preset", options.preset, "--size", str(options.size), *budget]
            command += ["--device", options.device, "--cache-dir", str(root / "cache")]
            seconds, most = train([*command, "-o", str(run)], environment)
            memory = ", ".join(f"{kind} {held:.2f} GB" for kind, held in most.items())
            sys.stdout.write(
                f"run {number + 1}: {seconds:.1f} s in all, {share_beside_steps(run):.1%} of the "
                f"network's training beside steps; {memory}\n"
            )
            sys.stdout.flush()
            shutil.rmtree(run)


if __name__ == "__main__":
    main()
