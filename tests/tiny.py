"""Models and runs that are small enough to test with."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from facevae.attributes.directions import Attribute
from facevae.attributes.interactions import Axes
from facevae.config import ModelConfig, PriorConfig, TrainConfig
from facevae.data.dataset import Faces
from facevae.data.labels import Labels
from facevae.models.bundle import Bundle
from facevae.networks.image_features import CHANNELS
from facevae.networks.prior import build_prior, fitted_gaussian
from facevae.networks.vae import VAE
from facevae.stages import projected
from facevae.system.runtime import seeded
from facevae.training.runs import Run

CONFIG = ModelConfig(size=32, latent_dim=8, filters=(8, 8))
TRAIN = TrainConfig(
    epochs=2, batch_size=16, prior_epochs=60, prior_width=16, prior_blocks=1, seed=5
)
ATTRIBUTES = ("Eyeglasses", "Smiling", "Male", "No_Beard")


def tiny_bundle(config: ModelConfig = CONFIG, kind: str = "flow") -> Bundle:
    """Untrained, but lively: its faces differ from each other, and so do its attributes."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        vae = VAE(config)
        for module in vae.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)
        shape = PriorConfig("flow", 16, 1) if kind == "flow" else PriorConfig(kind)
        prior = build_prior(shape, config.latent_dim)
        for tensor in prior.parameters():
            tensor.add_(0.2 * torch.randn_like(tensor))
        directions = torch.randn(len(ATTRIBUTES), config.latent_dim)
        mean = 0.1 * torch.randn(config.latent_dim)
        mixing = torch.randn(config.latent_dim, config.latent_dim)
        rows = torch.randn(2, config.latent_dim)
        interactions = torch.randn(len(ATTRIBUTES), *rows.shape)
    covariance = 1.5 * torch.eye(config.latent_dim) + 0.1 * mixing @ mixing.T
    covariance = (covariance + covariance.T) / 2
    scorers = torch.linalg.solve(covariance, directions.T).T
    scorers = scorers / (scorers * directions).sum(1, keepdim=True)
    attributes = [
        Attribute(name, 10 + i, 20 + i, None if i else 0.75, None if i else 0.5)
        for i, name in enumerate(ATTRIBUTES)
    ]
    return Bundle(
        config,
        vae.eval(),
        prior.eval(),
        shape,
        mean,
        None if fitted_gaussian(prior) else covariance,
        Axes(rows, torch.zeros(len(rows))),
        None,  # drawn faces are not found as faces, so they are taken as they are
        attributes,
        directions,
        scorers,
        0.2 * interactions,
        {"terms": "for tests", "epochs": 3},
    )


def with_texture(bundle: Bundle) -> Bundle:
    """The same, in place, as if it had been through a finish."""
    vae = bundle.vae
    with seeded(2):
        vae.decoder.add_texture()
    assert vae.decoder.textured is not None
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in vae.decoder.textured.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.2)
    return bundle


class TinyFeatures(nn.Module):
    """Features of the shapes that `ImageFeatures` finds, at random, in a fiftieth of the time."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        with seeded(3):
            self.levels = nn.ModuleList(
                nn.Conv2d(3, channels, kernel_size=4, stride=4) for channels in CHANNELS
            )
        self.to(device).requires_grad_(requires_grad=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Of images (B, 3, S, S) four levels, at strides of 4, 8, 16 and 32 pixels."""
        smaller = [nn.functional.avg_pool2d(images, 2**i) for i in range(len(CHANNELS))]
        return [4 * level(image - 0.5) for level, image in zip(self.levels, smaller, strict=True)]


def make_features_tiny(put: Callable[[object, str, object], None]) -> None:
    """Have a finish see features of few channels: `put` is `setattr`, or pytest's."""
    put(projected, "load_image_features", TinyFeatures)
    put(projected, "_MIXED", (8, 8, 16, 16))
    put(projected, "_WIDTH", 16)
    put(projected, "_ENLARGED", 1.0)


class Ear:
    """Remembers what a run tells."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.epochs: list[dict] = []
        self.tasks: set[str] = set()

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        assert 0 < done <= total, note
        self.tasks.add(task)

    def epoch(self, figures: dict) -> None:
        self.epochs.append(dict(figures))

    def notice(self, text: str) -> None:
        self.notices.append(text)


def tiny_run(
    folder: Path,
    faces: Faces,
    *,
    model: ModelConfig = CONFIG,
    train: TrainConfig = TRAIN,
    labels: Labels | None = None,
    init: Bundle | None = None,
) -> Run:
    device = torch.device("cpu")
    return Run(folder, model, train, faces, device, labels=labels, init=init)


def tensors_of(bundle: Bundle) -> dict[str, torch.Tensor]:
    """All numbers of a model, by name."""
    found = {f"vae.{k}": v for k, v in bundle.vae.state_dict().items()}
    found |= {f"prior.{k}": v for k, v in bundle.prior.state_dict().items()}
    found |= {"mean": bundle.latent_mean, "covariance": bundle.latent_covariance}
    found |= {"axes": bundle.axes.rows, "offsets": bundle.axes.offsets}
    for name in ("directions", "scorers", "interactions"):
        if (tensor := getattr(bundle, name)) is not None:
            found[name] = tensor
    return {name: tensor for name, tensor in found.items() if tensor.numel()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not the same to the last bit."""
    return [
        k for k in sorted(a.keys() | b.keys()) if k not in a or k not in b or not a[k].equal(b[k])
    ]
