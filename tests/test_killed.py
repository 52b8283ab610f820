"""Killed at any moment, a run goes on with the same command, and ends as if it had not been."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import draw_face
from tiny import CONFIG, differing, tensors_of

from facevae.models.bundle import load
from facevae.training.run_folders import read_metrics

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a warm process")

# of each phase; FACEVAE_KILLS asks for more
NUM_KILLS = int(os.environ.get("FACEVAE_KILLS", "5"))
PHASES = ("convert_pictures", "fit_network", "fit_prior", "finish", "_complete")


class Warm:
    """Trainings in `root`, each forked from one process that has imported all it needs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("killable.py"), root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, name: str, kill: tuple[str | None, float] | None = None) -> tuple[int, dict]:
        """The exit code, and the calls that each phase has made; see `killable`."""
        asked = {"folder": str(self.root / name), "kill": kill}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def model(self, name: str) -> dict:
        return tensors_of(load(self.root / name / "run" / "model.safetensors"))


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    (root / "faces").mkdir()
    for i in range(24):
        draw_face(i, CONFIG.size).save(root / "faces" / f"{i:03}.png")
    warm = Warm(root)
    yield warm
    warm.process.stdin.close()
    assert warm.process.wait() == 0
    warm.process.stdout.close()


@pytest.fixture(scope="module")
def whole(warm):
    """The calls of a run that was never killed, by phase."""
    code, calls = warm.train("whole")
    assert code == 0
    assert set(calls) == set(PHASES)
    return calls


def check_end(warm, name):
    """It has ended with the same weights to the last bit, every record once, and no litter."""
    assert differing(warm.model(name), warm.model("whole")) == []
    places = Counter(
        (r["event"], r["step"]) for r in read_metrics(warm.root / name / "run" / "metrics.jsonl")
    )
    assert set(places.values()) == {1}
    assert list((warm.root / name).rglob(".*-????????.*")) == []


def kill_and_check(warm, runs, moment):
    """Kill runs at so many of those moments in all, each run going on till its end at last."""
    num_kills = num_runs = 0
    while num_kills < NUM_KILLS:
        name = f"{runs}-{num_runs}"
        for _ in range(NUM_KILLS):
            code, _ = warm.train(name, moment())
            num_kills += code == -9
            if code == 0:
                break  # of what was left to do, that moment was no part
        else:
            code, _ = warm.train(name)
        assert code == 0
        check_end(warm, name)
        num_runs += 1


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_killed_at_any_call_of_a_phase_ends_as_one_that_never_was(warm, whole, phase):
    draw = random.Random(phase)

    def moment():
        # anywhere, or near the end, where what was done is kept
        first = draw.choice((1, whole[phase] * 19 // 20))
        return phase, draw.randint(first, whole[phase])

    kill_and_check(warm, phase, moment)


def test_a_run_killed_at_any_time_ends_as_one_that_never_was(warm, whole):
    assert whole
    begun = time.monotonic()
    assert warm.train("timed")[0] == 0
    seconds, draw = time.monotonic() - begun, random.Random(0)
    kill_and_check(warm, "timed", lambda: (None, draw.uniform(0, seconds / 2)))
