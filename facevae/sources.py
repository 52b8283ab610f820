"""What there is of a run or a model: its file, its records, its settings, its data."""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from facevae.bundle import Bundle
from facevae.config import PRESETS
from facevae.data import Faces, cached_faces
from facevae.files import expanded, inside, read_json
from facevae.hub import load_model
from facevae.run_folders import RunFolder, read_metrics

# config key → option, for those that a training takes
_OPTIONS = {
    "size": "--size",
    "latent_dim": "--latent-dim",
    "dropout": "--dropout",
    "batch_size": "--batch-size",
    "learning_rate": "--learning-rate",
    "r_loss_factor": "--r-loss-factor",
    "prior": "--prior",
    "prior_epochs": "--prior-epochs",
    "stages": "--stages",
    "finish_epochs": "--finish-epochs",
    "finish_weight": "--finish-weight",
    "seed": "--seed",
}


@dataclass(frozen=True)
class ReportSource:
    """What a page is about: a run as far as it has come, or a model alone.

    `about` is a run's `config.json`, `records` its `metrics.jsonl`; both are empty for a model
    alone. `faces` are its training data, where they are still in the cache.
    """

    name: str
    path: Path
    bundle: Bundle | None
    about: Mapping[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    pictures: Path | None = None
    faces: Faces | None = None

    @property
    def known(self) -> Mapping[str, Any]:
        """What is known of the training: the model's provenance, then the run's own words."""
        return {**self.about, **(self.bundle.provenance if self.bundle else {})}

    def setting(self, group: str) -> Mapping[str, Any]:
        """The settings of the `model` or of its `train`ing; empty where they are not known."""
        if group == "model" and self.bundle:
            return self.bundle.config.to_dict()
        identity = dictionary(self.about.get("identity"))
        return dictionary(self.known.get(group)) or dictionary(identity.get(group))

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of held-out figures."""
        return [r for r in self.records if r["event"] == "epoch"]

    def last_picture(self, kind: str) -> Path | None:
        """The last picture of that kind that the records name and the run's folder holds."""
        if not self.pictures:
            return None
        named = [inside(self.pictures, r[kind]) for r in reversed(self.epochs) if r.get(kind)]
        return next((path for path in named if path.is_file()), None)

    def equivalent_command(self) -> str:
        """A command of these settings, as far as they differ from the preset's; empty if unknown."""
        known, train = self.known, self.setting("train")
        if not train:
            return ""
        name, sources = str(known.get("preset") or "base"), known.get("sources")
        if name not in PRESETS:
            return ""  # no option of `train` asks for that, as for an autoencoder
        usual = {**PRESETS[name].model.to_dict(), **PRESETS[name].train.to_dict()}
        found = {**self.setting("model"), **train}
        words = [
            "facevae",
            "train",
            *(map(str, sources) if isinstance(sources, list) else ["DATA"]),
            "--preset",
            name,
        ]
        seconds = _seconds_of(known, train)
        if isinstance(seconds, int | float):
            words += ["--max-time", f"{seconds:g}s"]
            usual |= {key: found.get(key) for key in ("prior_epochs", "finish_epochs")}
        else:
            words += ["--epochs", str(known.get("epochs", usual["epochs"]))]
        for key, option in _OPTIONS.items():
            value = found.get(key)
            value = tuple(value) if isinstance(value, list) else value
            if key in found and value != usual[key]:
                words += [option, str(setting_text(key, found[key]))]
        if found.get("perceptual"):
            words.append("--perceptual")
        if self.bundle and self.bundle.half:
            words.append("--half")
        if self.bundle and self.bundle.attributes:
            words += ["--labels", "LABELS"]
        if known.get("terms"):
            words += ["--terms", str(known["terms"])]
        return shlex.join(words)


def _seconds_of(known: Mapping[str, Any], train: Mapping[str, Any]) -> Any:
    """The time that all stages had, whether asked for at once or one by one; else None."""
    stages = known.get("stage_seconds")
    if not isinstance(stages, dict) or not stages:
        return train.get("max_seconds")
    each = list(stages.values())
    return sum(each) if all(isinstance(s, int | float) for s in each) else None


def open_source(name: str, device: torch.device, cache: Path | None = None) -> ReportSource:
    """What there is of the run in a folder, or a model by its name. Raises `FacevaeError`."""
    folder = RunFolder(expanded(name))
    about = dictionary(read_json(folder.config)) if name and folder.config.is_file() else {}
    # a model's folder may hold a `config.json` of another kind, or none
    is_run = "identity" in about
    if is_run and not folder.model.is_file():
        bundle, path = None, folder.path
    else:
        bundle, located = load_model(name)
        name, path = located.name, located.path
        bundle.to(device)
    source = ReportSource(name, path, bundle)
    if is_run:
        records = read_metrics(folder.metrics)
        source = ReportSource(name, path, bundle, about, records, folder.pictures)
    fingerprint = source.known.get("fingerprint")
    if bundle and fingerprint:
        faces = cached_faces(str(fingerprint), bundle.config.size, cache)
        source = dataclasses.replace(source, faces=faces)
    return source


def count(value: object) -> int:
    """`value`, or 0 if it is no whole number."""
    return value if isinstance(value, int) else 0


def dictionary(value: object) -> Mapping[str, Any]:
    """`value`, or nothing if it is no object: a model file's provenance may say anything."""
    return value if isinstance(value, dict) else {}


def setting_text(key: str, value: object) -> object:
    """A setting as the command line has it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "auto" if key == "r_loss_factor" and value is None else value
