"""How long `facevae sample -n 64` takes, beside a bare `import torch` and `facevae --help`.

    python tests/benchmarks/sample_time.py

Rounds alternate, each in fresh processes; the best of each counts.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3


def _seconds(*command: str) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure all in turn and print seconds."""
    with tempfile.TemporaryDirectory() as folder:
        grid = str(Path(folder) / "grid.png")
        facevae = (sys.executable, "-m", "facevae")
        commands = {
            "import torch": (sys.executable, "-c", "import torch"),
            "facevae --help": (*facevae, "--help"),
            "facevae sample -n 64": (*facevae, "sample", "-n", "64", "--device", "cpu", "-o", grid),
        }
        best = dict.fromkeys(commands, float("inf"))
        for _ in range(ROUNDS):
            for name, command in commands.items():
                best[name] = min(best[name], _seconds(*command))
    for name, seconds in best.items():
        sys.stdout.write(f"{name}: {seconds:.2f} s\n")


if __name__ == "__main__":
    main()
