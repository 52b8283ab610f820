"""What a report is made from: a run or a model, with its records, settings and data."""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from facevae.config import PRESETS, SETTINGS_WITH_OPTIONS, setting_text
from facevae.data.dataset import Faces, cached_faces
from facevae.models.bundle import Bundle
from facevae.models.loading import load_model
from facevae.system.files import dictionary, expanded, inside, read_json
from facevae.training.run_folders import RunFolder, read_metrics


@dataclass(frozen=True)
class ReportSource:
    """A run, finished or not, or a model without its run.

    `run_config` is the content of the run's `config.json`, `records` that of its `metrics.jsonl`,
    and `pictures` its folder of pictures; a model alone has none of them. `bundle` is None for a
    run that has no model yet. `faces` is the training data, if it is in the cache.
    """

    name: str
    path: Path
    bundle: Bundle | None
    run_config: Mapping[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    pictures: Path | None = None
    faces: Faces | None = None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of the training: the model's provenance, then the run's configuration."""
        return {**self.run_config, **(self.bundle.provenance if self.bundle else {})}

    def setting(self, group: str) -> Mapping[str, Any]:
        """The settings of a group, `model` or `train`; empty if they are not recorded."""
        if group == "model" and self.bundle:
            return self.bundle.config.to_dict()
        identity = dictionary(self.run_config.get("identity"))
        recorded = dictionary(self.metadata.get(group))
        return recorded or dictionary(identity.get(group))

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records with figures of held-out faces."""
        return [r for r in self.records if r["event"] == "epoch"]

    def training_state(self) -> str:
        """How many epochs were trained, and whether that is all; empty if it is not recorded."""
        done = _int_or_zero(self.metadata.get("epochs"))
        wanted = _int_or_zero(self.run_config.get("epochs"))
        if self.bundle and self.metadata.get("complete") and done >= wanted:
            finish = _int_or_zero(dictionary(self.metadata.get("finish")).get("epochs"))
            return f"finished, {done} epochs" + (f" and {finish} of the finish" if finish else "")
        if not self.run_config:
            return ""
        last = self.epochs[-1] if self.epochs else {}
        epoch = f"{last.get('epoch', 0):.6g}"
        if last.get("stage") == "finish":
            return f"not finished, {epoch} epochs, in the finish"
        total = f" of {wanted}" if wanted else ""
        return f"not finished, {epoch}{total} epochs"

    def last_picture(self, kind: str) -> Path | None:
        """The last picture of this kind that the records name and that still exists in the run."""
        if not self.pictures:
            return None
        named = [inside(self.pictures, r[kind]) for r in reversed(self.epochs) if r.get(kind)]
        return next((path for path in named if path.is_file()), None)

    def equivalent_command(self) -> str:
        """A `train` command with these settings, without the preset's defaults; empty if unknown."""
        metadata, train = self.metadata, self.setting("train")
        preset = str(metadata.get("preset") or "base")
        if not train or preset not in PRESETS:  # a baseline's autoencoder has no preset
            return ""
        defaults = {**PRESETS[preset].model.to_dict(), **PRESETS[preset].train.to_dict()}
        settings = {**self.setting("model"), **train}
        sources = metadata.get("sources")
        words = ["facevae", "train"]
        words += map(str, sources) if isinstance(sources, list) else ["DATA"]
        words += ["--preset", preset]
        seconds = _time_budget(metadata, train)
        if isinstance(seconds, int | float):
            words += ["--max-time", f"{seconds:g}s"]
            # `train` refuses these options beside a time budget
            defaults |= {key: settings.get(key) for key in ("prior_epochs", "finish_epochs")}
        else:
            words += ["--epochs", str(metadata.get("epochs", defaults["epochs"]))]
        for key in SETTINGS_WITH_OPTIONS:
            value = settings.get(key)
            value = tuple(value) if isinstance(value, list) else value
            if key in settings and value != defaults[key]:
                option = f"--{key.replace('_', '-')}"
                words += [option, setting_text(key, settings[key])]
        if settings.get("perceptual"):
            words.append("--perceptual")
        if self.bundle and self.bundle.half:
            words.append("--half")
        if self.bundle and self.bundle.attributes:
            words += ["--labels", "LABELS"]
        if metadata.get("terms"):
            words += ["--terms", str(metadata["terms"])]
        return shlex.join(words)


def _time_budget(metadata: Mapping[str, Any], train: Mapping[str, Any]) -> Any:
    """Seconds for all stages together, also if they were trained one by one; None if unlimited."""
    stages = metadata.get("stage_seconds")
    if not isinstance(stages, dict) or not stages:
        return train.get("max_seconds")
    seconds = list(stages.values())
    return sum(seconds) if all(isinstance(s, int | float) for s in seconds) else None


def open_source(name: str, device: torch.device, cache: Path | None = None) -> ReportSource:
    """The run in the folder `name`, or the model of that name. Raises `FacevaeError`."""
    folder = RunFolder(expanded(name))
    has_config = name and folder.config.is_file()
    config = dictionary(read_json(folder.config)) if has_config else {}
    is_run = "identity" in config  # another tool's `config.json` may lie beside a model
    if is_run and not folder.model.is_file():
        bundle, path = None, folder.path
    else:
        bundle, located = load_model(name)
        name, path = located.name, located.path
        bundle.to(device)
    source = ReportSource(name, path, bundle)
    if is_run:
        records = read_metrics(folder.metrics)
        source = ReportSource(name, path, bundle, config, records, folder.pictures)
    fingerprint = source.metadata.get("fingerprint")
    if bundle and fingerprint:
        faces = cached_faces(str(fingerprint), bundle.config.size, cache)
        source = dataclasses.replace(source, faces=faces)
    return source


def _int_or_zero(value: object) -> int:
    """`value` if it is an integer, else 0: metadata may hold values of any type."""
    return value if isinstance(value, int) else 0
