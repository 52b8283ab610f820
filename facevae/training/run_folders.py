"""The folder of a run: its identity, records, and saved states."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from facevae.config import (
    SETTINGS_WITH_OPTIONS,
    STAGES,
    ModelConfig,
    StageName,
    TrainConfig,
    setting_text,
)
from facevae.errors import Argument, FacevaeError, ModelError, RunError
from facevae.models.tensor_files import load_state, save_state
from facevae.system.files import (
    append_text,
    check_place,
    clear_half_written,
    read_json,
    write_json,
    write_text,
)
from facevae.training.events import Events

_RECORD_KEYS = ("event", "step", "images", "seconds")  # in every record


def stages_before(stages: Sequence[StageName]) -> str:
    """The end of an error: what to do if `stages` need a model that is not there."""
    wanted = STAGES[: STAGES.index(stages[-1]) + 1]
    return f"add the stages before with --stages {','.join(wanted)}, or name a model with --init"


class RunFolder:
    """A folder with `model.safetensors`, `config.json`, `metrics.jsonl`, `pictures/` and `state/`."""

    def __init__(self, path: Path, *, tensorboard: bool = False) -> None:
        """With `tensorboard`, the records are written to event files too."""
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
        """The contents of `config.json`; empty if there is none.

        `identity` is all or part of a run's identity, of which the settings in `ignored` may differ.

        Raises `RunError` if the folder belongs to another run, with the differences, or if `stages`
        need a network that is neither in the folder nor, as `is_given` says, elsewhere. Raises
        `FacevaeError` if the folder cannot be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            msg = f"{self.path}: is a file, and a run needs a folder; name another -o"
            raise RunError(msg)
        check_place(self.path)
        has_network = is_given or self.model.exists() or self.unfinished.exists()
        if "vae" not in stages and not has_network:
            msg = f"{self.path}: holds nothing to go on from; {stages_before(stages)}"
            raise RunError(msg)
        if not self.config.exists():
            if self.model.exists():
                msg = f"{self.path}: holds a model, but no {self.config.name} to go on from; name another -o"
                raise RunError(msg)
            return {}
        found = read_json(self.config)
        found = found if isinstance(found, dict) else {}
        stored = found.get("identity")
        if not isinstance(stored, dict):
            msg = f"{self.config}: is not of a training run; name another folder with -o"
            raise RunError(msg)
        wanted = json.loads(json.dumps(identity))  # with lists in place of tuples, as in the file
        stored = _with_defaults(stored, wanted)
        wanted = _with_stored(wanted, stored, ignored)
        if differences := _differences({key: stored.get(key) for key in wanted}, wanted):
            advice = "name another folder with -o, or go back to that run's settings"
            raise RunError(f"{self.path}: holds another run: ", *differences, advice)
        return found

    def claim(
        self,
        identity: Mapping[str, Any],
        about: Mapping[str, Any],
        ignored: Sequence[str] = (),
    ) -> None:
        """Make the folder this run's, after `check`, which may raise.

        `about` is information for people, written beside the identity; its `epochs` never decrease.
        """
        found = self.check(identity, ignored)
        identity = _with_stored(identity, found.get("identity", {}), ignored)
        for folder in (self.path, self.pictures, self._state("").parent):
            clear_half_written(folder)
        epochs = max(about.get("epochs", 0), found.get("epochs", 0))
        write_json(self.config, {**found, **about, "epochs": epochs, "identity": identity})

    def begin(self, command: str, environment: Mapping[str, str]) -> None:
        """Record the command and the environment of a session in `config.json`."""
        found = read_json(self.config)
        write_json(self.config, {**found, "command": command, "environment": environment})

    def recall(self, part: StageName, step: int, *, is_whole: bool = False) -> dict[str, int]:
        """Read the records, and drop those that will be made again when a stage resumes.

        Those are the records of the stage `part` after its step number `step`, and, unless the stage
        `is_whole`, of all later stages. Returns the run's `step` and `images` before the stage.
        """
        stage = STAGES.index(part)
        records = read_metrics(self.metrics)
        earlier = [r for r in records if _stage_index(r) < stage]
        before = {key: earlier[-1][key] if earlier else 0 for key in ("step", "images")}
        last_step = before["step"] + step
        kept = [r for r in records if _stage_index(r) == stage and r["step"] <= last_step]
        later = [r for r in records if _stage_index(r) > stage and is_whole]
        self.records = earlier + kept + later
        write_text(self.metrics, "".join(json.dumps(r) + "\n" for r in self.records))
        self.write_events()
        return before

    def write_events(self) -> None:
        """Write all records so far to new event files, if the run has event files."""
        if self._events:
            about = {k: v for k, v in read_json(self.config).items() if k != "skipped"}
            self._events.begin(about, read_metrics(self.metrics))

    def close(self) -> None:
        """Close the event files."""
        if self._events:
            self._events.close()

    def record(self, values: Mapping[str, Any]) -> None:
        """Append a record to `metrics.jsonl`, and to the event files."""
        self.records.append(dict(values))
        append_text(self.metrics, json.dumps(values) + "\n")
        if self._events:
            self._events.add(values)

    def save_state(self, name: str, state: Mapping[str, Tensor], step: int, key: str = "") -> None:
        """Save a stage's state before step number `step`, and keep the previously saved one."""
        path = self._state(name)
        if path.exists():
            path.replace(self._earlier_state(name))
        save_state(path, state, {"step": step, "key": key})

    def has_state(self, name: str) -> bool:
        """Whether there is a saved state of that stage, even a damaged one."""
        return self._state(name).exists() or self._earlier_state(name).exists()

    def load_state(
        self, name: str, key: str = "", warn: Callable[[str], None] = lambda _: None
    ) -> tuple[dict[str, Tensor], int] | None:
        """The last saved state of a stage with the same `key`, and the index of its next step.

        In place of a damaged state, returns the one before it, with a warning. None if there is no
        sound state with that key.
        """
        problems = []
        for path in (self._state(name), self._earlier_state(name)):
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
            kept = f"; {self.model} stays until it is as far again" if self.model.exists() else ""
            warn(f"{'; '.join(problems)}: the {name} begins anew, from its first step{kept}")
        return None

    def _state(self, name: str) -> Path:
        return self.path / "state" / f"{name}.safetensors"

    def _earlier_state(self, name: str) -> Path:
        return self.path / "state" / f"{name}-earlier.safetensors"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order, without a last line that was cut off.

    Raises `FacevaeError` for any other damaged line.
    """
    records = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            _ = [record[key] for key in _RECORD_KEYS]  # raises if one is missing
            records.append(record)
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            msg = f"{path}: line {number} is damaged; restore the file or remove the line"
            raise FacevaeError(msg) from error
    return records


def _stage_index(record: Mapping[str, Any]) -> int:
    """The stage of a run that a record belongs to, as an index of `STAGES`."""
    by_event = {"prior": "prior", "finish": "finish", "epoch": record.get("stage")}
    stage = by_event.get(record["event"])
    return STAGES.index(stage) if stage in STAGES else 0


def _with_defaults(stored: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The stored identity, with the default of each setting that did not exist when it was stored."""
    completed = dict(stored)
    for group, defaults in (("model", ModelConfig().to_dict()), ("train", TrainConfig().to_dict())):
        before, now = stored.get(group), wanted.get(group)
        if isinstance(before, dict) and isinstance(now, dict):
            added = {key: defaults[key] for key in now if key in defaults and key not in before}
            completed[group] = {**before, **added}
    return completed


def _with_stored(
    wanted: Mapping[str, Any], stored: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """The wanted identity, with the stored values of the training settings in `names`."""
    train, before = wanted.get("train"), stored.get("train")
    if not isinstance(train, dict) or not isinstance(before, dict):
        return dict(wanted)
    return {**wanted, "train": {**train, **{n: before[n] for n in names if n in before}}}


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str | Argument]:
    """Parts of a message, such as "`seed` was 0, now 1; ", for each setting that differs."""
    found: list[str | Argument] = []
    for key in sorted(stored.keys() | wanted.keys()):
        before, after = stored.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after)
        elif before != after:
            texts = (setting_text(key, value) for value in (before, after))
            found += [_setting_name(key), " was {}, now {}; ".format(*texts)]
    return found


def _setting_name(key: str) -> str | Argument:
    """A setting of a run's identity as its user knows it."""
    fingerprints = {"data": "the faces' fingerprint", "init": "the initial weights' fingerprint"}
    return Argument(key) if key in SETTINGS_WITH_OPTIONS else fingerprints.get(key, key)
