"""A run's folder: whose it is, its records, and the states from which it goes on."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from facevae.bundle import load_state, save_state
from facevae.config import STAGES, ModelConfig, StageName, TrainConfig
from facevae.errors import FacevaeError, ModelError, RunError
from facevae.events import Events
from facevae.files import (
    append_text,
    check_place,
    clear_half_written,
    read_json,
    write_json,
    write_text,
)

_PLACE = ("event", "step", "images", "seconds")  # what every record says


def stages_before(stages: Sequence[StageName]) -> str:
    """What to do where `stages` have nothing to go on from, for an error's end."""
    wanted = STAGES[: STAGES.index(stages[-1]) + 1]
    return f"add the stages before with --stages {','.join(wanted)}, or name a model with --init"


class RunFolder:
    """`model.safetensors`, `config.json`, `metrics.jsonl`, `pictures/` and `state/`."""

    def __init__(self, path: Path, *, tensorboard: bool = False) -> None:
        """With `tensorboard`, what `metrics.jsonl` says stands in event files in a folder too."""
        self.path = path
        self.model = path / "model.safetensors"
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.pictures = path / "pictures"
        self.unfinished = path / "state" / "unfinished.safetensors"  # the model before its finish
        self.records: list[dict[str, Any]] = []
        self._events = Events(path / "tensorboard", self.pictures) if tensorboard else None

    def check(
        self,
        identity: Mapping[str, Any],
        ignored: Sequence[str] = (),
        stages: Sequence[StageName] = STAGES,
        *,
        is_given: bool = False,
    ) -> dict[str, Any]:
        """What `config.json` says, empty where there is none.

        Raises `RunError` where the folder is another run's, with what differs from `identity`,
        which may be a part of a run's; settings that are `ignored` may differ. And where `stages`
        are to go on from a network that neither is there nor `is_given`. And `FacevaeError` where
        nothing can be written.
        """
        if self.path.exists() and not self.path.is_dir():
            msg = f"{self.path}: is a file, and a run needs a folder; name another -o"
            raise RunError(msg)
        check_place(self.path)
        is_there = is_given or self.model.exists() or self.unfinished.exists()
        if "vae" not in stages and not is_there:
            msg = f"{self.path}: holds nothing to go on from; {stages_before(stages)}"
            raise RunError(msg)
        if not self.config.exists():
            if self.model.exists():
                msg = f"{self.path}: holds a model, but no {self.config.name} to go on from; name another -o"
                raise RunError(msg)
            return {}
        found = read_json(self.config)
        found = found if isinstance(found, dict) else {}
        known = found.get("identity")
        wanted = json.loads(json.dumps(identity))  # as it is read back: no tuples
        known = _completed(known, wanted) if isinstance(known, dict) else {}
        wanted = _with_known(wanted, known, ignored)
        if differing := _differences({key: known.get(key) for key in wanted}, wanted):
            msg = (
                f"{self.path}: holds another run ({'; '.join(differing)}); "
                "name another folder with -o, or go back to that run's settings"
            )
            raise RunError(msg)
        return found

    def claim(
        self,
        identity: Mapping[str, Any],
        about: Mapping[str, Any],
        ignored: Sequence[str] = (),
    ) -> None:
        """Make the folder this run's, or see that it is already, as `check` does.

        `identity` is what two runs must have in common to be the same one; `about`, of which
        `epochs` never falls, is written beside it for people.
        """
        found = self.check(identity, ignored)
        identity = _with_known(identity, found.get("identity", {}), ignored)
        for folder in (self.path, self.pictures, self._state("").parent):
            clear_half_written(folder)
        epochs = max(about.get("epochs", 0), found.get("epochs", 0))
        write_json(self.config, {**found, **about, "epochs": epochs, "identity": identity})

    def begin(self, command: str, environment: Mapping[str, str]) -> None:
        """Keep by which command and where the work goes on from now."""
        found = read_json(self.config)
        write_json(self.config, {**found, "command": command, "environment": environment})

    def recall(self, part: StageName, step: int, *, is_whole: bool = False) -> dict[str, int]:
        """Keep the records of `part` of the run up to its `step`, and those of the parts before.

        Where it is whole those of the parts after it are kept too; what came after a step that is
        taken again is made again. Returns `step` and `images` before the part.
        """
        place = STAGES.index(part)
        records = read_metrics(self.metrics)
        earlier = [r for r in records if _place(r) < place]
        before = {key: earlier[-1][key] if earlier else 0 for key in ("step", "images")}
        own = [r for r in records if _place(r) == place and r["step"] <= before["step"] + step]
        later = [r for r in records if _place(r) > place and is_whole]
        self.records = earlier + own + later
        write_text(self.metrics, "".join(json.dumps(r) + "\n" for r in self.records))
        self.write_events()
        return before

    def write_events(self) -> None:
        """Have the event files, if there are to be any, say what all records so far say."""
        if self._events:
            about = {k: v for k, v in read_json(self.config).items() if k != "skipped"}
            self._events.begin(about, read_metrics(self.metrics))

    def close(self) -> None:
        """End the event files."""
        if self._events:
            self._events.close()

    def record(self, values: Mapping[str, Any]) -> None:
        """Add a record to `metrics.jsonl`."""
        self.records.append(dict(values))
        append_text(self.metrics, json.dumps(values) + "\n")
        if self._events:
            self._events.add(values)

    def save_state(self, name: str, state: Mapping[str, Tensor], step: int, key: str = "") -> None:
        """Keep the state before step number `step` of a stage; the one before it is kept too."""
        path = self._state(name)
        if path.exists():
            path.replace(self._earlier(name))
        save_state(path, state, {"step": step, "key": key})

    def has_state(self, name: str) -> bool:
        """Whether a state of that stage is there, damaged or not."""
        return self._state(name).exists() or self._earlier(name).exists()

    def load_state(
        self, name: str, key: str = "", warn: Callable[[str], None] = lambda _: None
    ) -> tuple[dict[str, Tensor], int] | None:
        """State and next step of a stage that was begun with the same `key`.

        A damaged state gives way to the one before it, with a warning. None where there is neither.
        """
        problems = []
        for path in (self._state(name), self._earlier(name)):
            if not path.exists():
                continue
            try:
                state, metadata = load_state(path)
            except ModelError as error:
                problems.append(str(error))
                continue
            if metadata.get("key") == key and isinstance(metadata.get("step"), int):
                if problems:
                    warn(f"{problems[0]}; going on from the state before it")
                return state, metadata["step"]
        if problems:
            meanwhile = (
                f"; {self.model} stays until it is as far again" if self.model.exists() else ""
            )
            warn(f"{'; '.join(problems)}: the {name} begins anew, from its first step{meanwhile}")
        return None

    def _state(self, name: str) -> Path:
        return self.path / "state" / f"{name}.safetensors"

    def _earlier(self, name: str) -> Path:
        return self.path / "state" / f"{name}-earlier.safetensors"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order; a last line that was cut off is passed over."""
    records = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            _ = [record[key] for key in _PLACE]  # raises where one is missing
            records.append(record)
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            msg = f"{path}: line {number} is damaged; restore the file or remove the line"
            raise FacevaeError(msg) from error
    return records


def _place(record: Mapping[str, Any]) -> int:
    """Which part of a run a record is of, by its place in `STAGES`."""
    of_event = {"prior": "prior", "finish": "finish", "epoch": record.get("stage")}
    part = of_event.get(record["event"])
    return STAGES.index(part) if part in STAGES else 0


def _completed(known: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """With the settings that there were none of when the run began: it had what is their default."""
    completed = dict(known)
    for group, defaults in (("model", ModelConfig().to_dict()), ("train", TrainConfig().to_dict())):
        before, now = known.get(group), wanted.get(group)
        if isinstance(before, dict) and isinstance(now, dict):
            later = {key: defaults[key] for key in now if key in defaults and key not in before}
            completed[group] = {**before, **later}
    return completed


def _with_known(
    wanted: Mapping[str, Any], known: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """What is wanted, with those settings of the training as they are known."""
    train, before = wanted.get("train"), known.get("train")
    if not isinstance(train, dict) or not isinstance(before, dict):
        return dict(wanted)
    return {**wanted, "train": {**train, **{n: before[n] for n in names if n in before}}}


def _differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    found = []
    for key in sorted(known.keys() | wanted.keys()):
        before, after = known.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after)
        elif before != after:
            what = "the faces' fingerprint" if key == "data" else key
            found.append(f"{what} was {before}, now {after}")
    return found
