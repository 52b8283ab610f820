"""Figures in the features of networks trained by others: FID, KID, LPIPS. Needs the extra `eval`."""

import hashlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facevae.errors import FacevaeError, UsageError
from facevae.images import to_pixels
from facevae.runtime import full_precision, seeded

INCEPTION = "Inception-v3 (2015-12-05), 2,048 features, as torch-fidelity resizes and runs it"
ALEXNET = "LPIPS 0.1 on torchvision's AlexNet"
_MAX_KID_SUBSET = 1000

Features = Callable[[Tensor], Tensor]
"""Features (B, 2048) of pictures, uint8 (B, 3, H, W)."""
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""The distances (B,), with gradients, of two sets of images (B, 3, H, W) in [0, 1]."""


class MissingWeightsError(FacevaeError):
    """Published weights that are neither in the user's cache nor to be had."""


def load_inception(device: torch.device) -> Features:
    """The network of FID and KID, its weights from torch's cache or downloaded into it.

    Raises `UsageError` without the extra, `MissingWeightsError` without the weights.
    """
    _require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies' own affair
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )

        _published(URL_INCEPTION_V3, download=True)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)

    def features(pictures: Tensor) -> Tensor:
        (found,) = network(pictures)
        return torch.as_tensor(found)

    return features


def load_lpips(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS of two sets of images (B, 3, H, W) in [0, 1]: (B,), each the batch's mean.

    Raises `UsageError` without the extra, `MissingWeightsError` without AlexNet in torch's cache.
    """
    _require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import AlexNet_Weights

        _published(AlexNet_Weights.DEFAULT.url, download=False)
        metric = LearnedPerceptualImagePatchSimilarity("alex", normalize=True).to(device)

    def score(made: Tensor, real: Tensor) -> Tensor:
        distance: Tensor = metric(made, real)
        return distance.expand(len(made))

    return score


def load_perceptual(device: torch.device) -> Perceptual:
    """LPIPS on VGG-16, which training may go down (Zhang et al. 2018 train with it too).

    Raises `UsageError` without the extra, `MissingWeightsError` without VGG-16 in torch's cache.
    """
    _require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import VGG16_Weights

        _published(VGG16_Weights.DEFAULT.url, download=False)
        metric = LearnedPerceptualImagePatchSimilarity("vgg").to(device)
    network = metric.net.requires_grad_(requires_grad=False)

    def distance(made: Tensor, real: Tensor) -> Tensor:
        return torch.as_tensor(network(made, real, normalize=True)).flatten()

    return distance


def _require() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_fidelity  # noqa: F401 - an extra
            import torchmetrics  # noqa: F401 - the same
    except ImportError as error:
        msg = "needs the extra 'eval': pip install 'facevae[eval]'"
        raise UsageError(msg) from error
    except RuntimeError as error:  # a torchvision made for another torch
        line = str(error).splitlines()[0]
        msg = f"the extra 'eval' does not run ({line}); install torchvision from where torch came"
        raise UsageError(msg) from error


def _published(url: str, *, download: bool) -> None:
    """See that torch's cache holds the file of that address, with the digest its name ends in."""
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    digest = Path(name).stem.rpartition("-")[2]
    if not path.exists() and download:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
        except (OSError, RuntimeError) as error:
            msg = f"{url} cannot be downloaded ({error}); put that file into {path.parent}"
            raise MissingWeightsError(msg) from error
    if not path.exists():
        msg = f"no weights in {path}; {url} has them"
        raise MissingWeightsError(msg)
    with path.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(digest):
            msg = f"{path}: not the published weights; remove it"
            raise MissingWeightsError(msg)


def features_of(features: Features, batches: Iterable[Tensor]) -> Tensor:
    """Features (N, F), on the CPU, of images (B, 3, H, W) in [0, 1], rounded as pictures are."""
    with full_precision():
        return torch.cat(
            [
                features(
                    torch.from_numpy(to_pixels(images)).movedim(-1, -3).to(images.device)
                ).cpu()
                for images in batches
            ]
        )


def feature_distances(real: Tensor, made: Tensor, seed: int = 0) -> dict[str, float]:
    """`fid` and `kid` of two sets of features, (N, F) and (M, F), N and M at least 2.

    Heusel et al. 2017, and Bińkowski et al. 2018 with its third-degree kernel: the mean over 100
    subsets of 1,000, or of fewer where a set has fewer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features, which is the intention
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        subset = min(_MAX_KID_SUBSET, len(real), len(made))
        as_they_are: Any = nn.Identity()
        as_they_are.num_features = real.shape[1]
        fid: Any = FrechetInceptionDistance(as_they_are)
        kid: Any = KernelInceptionDistance(as_they_are, subsets=100, subset_size=subset)
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(made, real=False)
        with seeded(seed):
            return {"fid": float(fid.compute()), "kid": float(kid.compute()[0])}
