"""A run: what it is made of, and what makes another the same."""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facevae.bundle import Bundle
from facevae.config import ModelConfig, TrainConfig
from facevae.data import Faces
from facevae.files import digest
from facevae.labels import Labels

# what may be asked of a run later on: more of it, or another finish
_LATER = ("epochs", "max_seconds", "stages", "finish_epochs", "finish_weight", "perceptual")
_OF_PRIOR = ("prior", "prior_epochs", "prior_width", "prior_blocks")


@dataclass(frozen=True)
class Run:
    """What a run is made of.

    `init` is a model to start from, and `init_name` what it is called; `terms` says what others may
    do with its weights; `tensorboard` asks for event files beside `metrics.jsonl`; `command` is how
    a shell would ask for this run.
    """

    folder: Path
    model: ModelConfig
    train: TrainConfig
    faces: Faces
    device: torch.device
    preset: str = ""
    sources: list[str] = field(default_factory=list)
    labels: Labels | None = None
    init: Bundle | None = None
    init_name: str = ""
    terms: str = ""
    half: bool = False
    tensorboard: bool = False
    command: str = ""

    def identity(self) -> dict[str, Any]:
        """What makes a run the same: all but by what it may be extended, and its finish."""
        init = weights_digest(self.init.vae) if self.init else None
        settings = settings_of(self.model, self.train)
        return {**settings, "data": self.faces.fingerprint, "init": init}

    def provenance(self) -> dict[str, Any]:
        """What a model tells of the run that made it; without terms, those of what it began with."""
        inherited = str(self.init.provenance.get("terms") or "") if self.init else ""
        told = {"init": self.init_name} if self.init_name else {}
        return {
            **told,
            "facevae": version("facevae"),
            "torch": torch.__version__,
            "preset": self.preset,
            "sources": self.sources,
            "num_train": len(self.faces.train),
            "num_held_out": len(self.faces.held_out),
            "fingerprint": self.faces.fingerprint,
            "terms": self.terms or inherited,
            "train": self.train.to_dict(),
            "device": self.device.type,
        }

    @property
    def _counts_epochs(self) -> bool:
        return "vae" in self.train.stages and self.train.max_seconds is None

    def about(self) -> dict[str, Any]:
        """What people want to know of a run beside its identity."""
        return {
            "facevae": version("facevae"),
            "preset": self.preset,
            "epochs": self.train.epochs if self._counts_epochs else 0,
            "stages": self.train.stages,
            "sources": self.sources,
            "num_train": len(self.faces.train),
            "num_held_out": len(self.faces.held_out),
            "skipped": self.faces.skipped,
        }


def settings_of(model: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    """The part of a run's identity that is known before its data are."""
    settings = {key: value for key, value in train.to_dict().items() if key not in _LATER}
    return {"model": model.to_dict(), "train": settings}


def left_out(train: TrainConfig) -> tuple[str, ...]:
    """Settings of stages that are not gone through, which may be anything."""
    return () if "prior" in train.stages else _OF_PRIOR


def weights_digest(module: nn.Module) -> str:
    """A name for these very weights: 16 hex digits."""
    parts = (t.cpu().contiguous().numpy().tobytes() for t in module.state_dict().values())
    return digest(*parts)[:16]
