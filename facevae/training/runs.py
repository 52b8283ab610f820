"""The description of a training run, and the settings that identify it."""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facevae.config import ModelConfig, TrainConfig
from facevae.data.dataset import Faces
from facevae.data.labels import Labels
from facevae.models.bundle import Bundle, Provenance
from facevae.system.files import digest

# settings that a later command may change, to extend the run or to finish it again
_LATER = ("epochs", "max_seconds", "stages", "finish_epochs", "finish_weight", "perceptual")
_OF_PRIOR = ("prior", "prior_epochs", "prior_width", "prior_blocks")


@dataclass(frozen=True)
class Run:
    """Everything that a training run depends on.

    `init` is a model to start from, and `init_name` its name; `terms` says what others may do with
    the weights; `half` stores the final model as float16; `tensorboard` asks for event files beside
    `metrics.jsonl`; `command` is the shell command that starts this run.
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
        """The settings, data and initial weights that a run must keep to count as the same run."""
        init = weights_digest(self.init.vae) if self.init else None
        settings = settings_of(self.model, self.train)
        return {**settings, "data": self.faces.fingerprint, "init": init}

    def provenance(self) -> Provenance:
        """What a model of this run says about its training.

        Without `terms`, those of the initial model are passed on.
        """
        inherited = str(self.init.provenance.get("terms") or "") if self.init else ""
        provenance: Provenance = {"init": self.init_name} if self.init_name else {}
        provenance |= {
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
        return provenance

    @property
    def _counts_epochs(self) -> bool:
        return "vae" in self.train.stages and self.train.max_seconds is None

    def about(self) -> dict[str, Any]:
        """Information for people, written to `config.json` beside the identity."""
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
    """The part of a run's identity that is known before its data are read."""
    settings = {key: value for key, value in train.to_dict().items() if key not in _LATER}
    return {"model": model.to_dict(), "train": settings}


def left_out(train: TrainConfig) -> tuple[str, ...]:
    """Names of settings without effect, because their stage is not part of the training."""
    return () if "prior" in train.stages else _OF_PRIOR


def weights_digest(module: nn.Module) -> str:
    """Fingerprint of a module's weights: 16 hexadecimal digits."""
    parts = (t.cpu().contiguous().numpy().tobytes() for t in module.state_dict().values())
    return digest(*parts)[:16]
