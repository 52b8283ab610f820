"""A warm process that forks a training for each line on its stdin, and says how it ended.

A line is {"folder": where the run is, "kill": [phase, calls] or [null, seconds] or null}: the
training is killed by SIGKILL at the so-manieth call within a phase, or after a time. The answer is
its exit code (or minus the signal that ended it), then the calls that each phase has made.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.modules["matplotlib"] = None  # takes longest to import, and does the weights no good

from tiny import CONFIG, TRAIN, Ear, make_features_tiny, tiny_run  # noqa: E402 - after that

from facevae.config import STAGES  # noqa: E402
from facevae.data import dataset, pictures  # noqa: E402
from facevae.training import steps, training  # noqa: E402

PHASES = (
    (dataset, "convert_pictures"),
    (training, "fit_network"),
    (training, "fit_prior"),
    (training, "finish"),
    (training, "_complete"),
)


class Watch:
    """Counts the calls within each phase, and ends the process at one of them."""

    def __init__(self, kill: list[Any] | None) -> None:
        self.phase, self.limit = kill or (None, 0)
        self.calls: Counter[str] = Counter()
        self.current = ""
        for module, name in PHASES:
            setattr(module, name, self.within(name, getattr(module, name)))

    def within(self, name: str, function: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.current = name
            threading.setprofile(self.count)
            sys.setprofile(self.count)
            try:
                return function(*args, **kwargs)
            finally:
                sys.setprofile(None)
                threading.setprofile(None)

        return watched

    def count(self, _frame: object, event: str, _argument: object) -> None:
        if event not in ("call", "c_call"):
            return
        self.calls[self.current] += 1
        if self.current == self.phase and self.calls[self.current] >= self.limit:
            os.kill(os.getpid(), signal.SIGKILL)


def run(root: Path, folder: Path) -> None:
    """As the command does, with a state after every step."""
    pictures._AT_ONCE = 4
    steps._SECONDS_A_STATE = 0.0
    training._measure_framing = lambda _work: None  # most of the time, and none of the weights
    faces = dataset.load_faces([root / "faces"], CONFIG.size, cache=folder / "cache")
    config = dataclasses.replace(TRAIN, stages=STAGES, finish_epochs=1)
    training.train(tiny_run(folder / "run", faces, train=config), Ear())


def fork(root: Path, folder: Path, kill: list[Any] | None) -> tuple[int, str]:
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.close(reader)
        watch = Watch(kill)
        code = 1
        try:
            run(root, folder)
            os.write(writer, json.dumps(watch.calls).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    if kill and kill[0] is None:
        time.sleep(kill[1])
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said or "{}"


def main() -> None:
    make_features_tiny(setattr)
    root = Path(sys.argv[1])
    run(root, root / "warm")  # what is imported and looked up by a first training
    for line in sys.stdin:
        asked = json.loads(line)
        code, calls = fork(root, Path(asked["folder"]), asked["kill"])
        sys.stdout.write(json.dumps([code, json.loads(calls)]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
