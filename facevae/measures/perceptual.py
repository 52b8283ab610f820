"""FID, KID and LPIPS, by networks that others trained. Needs the extra `eval`."""

import hashlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facevae.data.image_tensors import to_pixels
from facevae.errors import FacevaeError, UsageError
from facevae.system.runtime import full_precision, seeded

INCEPTION = "Inception-v3 (2015-12-05), 2,048 features, as torch-fidelity resizes and runs it"
ALEXNET = "LPIPS 0.1 on torchvision's AlexNet"
_MAX_KID_SUBSET = 1000

Features = Callable[[Tensor], Tensor]
"""Maps pictures, uint8 (B, 3, H, W), to features (B, 2048)."""
Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Distances (B,), with gradients, between two sets of images (B, 3, H, W) in [0, 1]."""


class MissingWeightsError(FacevaeError):
    """Published weights are not in the user's cache and could not be downloaded."""


def load_inception(device: torch.device) -> Features:
    """The feature network of FID and KID; its weights are downloaded to torch's cache if missing.

    Raises `UsageError` without the extra, `MissingWeightsError` without the weights.
    """
    _require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from its dependencies
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )

        _ensure_weights(URL_INCEPTION_V3, download=True)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)

    def features(pictures: Tensor) -> Tensor:
        (output,) = network(pictures)
        return torch.as_tensor(output)

    return features


def load_lpips(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS on AlexNet of two sets of images (B, 3, H, W) in [0, 1]: (B,), each the batch's mean.

    Raises `UsageError` without the extra, `MissingWeightsError` without AlexNet in torch's cache.
    """
    _require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import AlexNet_Weights

        _ensure_weights(AlexNet_Weights.DEFAULT.url, download=False)
        metric = LearnedPerceptualImagePatchSimilarity("alex", normalize=True).to(device)

    def score(made: Tensor, real: Tensor) -> Tensor:
        distance: Tensor = metric(made, real)
        return distance.expand(len(made))

    return score


def load_perceptual(device: torch.device) -> Perceptual:
    """LPIPS on VGG-16 as a training loss, as Zhang et al. 2018 use it too.

    Raises `UsageError` without the extra, `MissingWeightsError` without VGG-16 in torch's cache.
    """
    _require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import VGG16_Weights

        _ensure_weights(VGG16_Weights.DEFAULT.url, download=False)
        metric = LearnedPerceptualImagePatchSimilarity("vgg").to(device)
    network = metric.net.requires_grad_(requires_grad=False)

    def distance(made: Tensor, real: Tensor) -> Tensor:
        return torch.as_tensor(network(made, real, normalize=True)).flatten()

    return distance


def _require() -> None:
    """Raise `UsageError` if the packages of the extra are missing or do not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_fidelity  # noqa: F401 - only whether it is there
            import torchmetrics  # noqa: F401 - only whether it is there
    except ImportError as error:
        msg = "needs the extra 'eval': pip install 'facevae[eval]'"
        raise UsageError(msg) from error
    except RuntimeError as error:  # torchvision was built for another torch
        line = str(error).splitlines()[0]
        msg = (
            f"the extra 'eval' fails to load ({line}); install the torchvision built for your torch"
        )
        raise UsageError(msg) from error


def _ensure_weights(url: str, *, download: bool) -> None:
    """Check that torch's cache has the file at `url`, with the digest at the end of its name.

    With `download`, get it if it is missing. Raises `MissingWeightsError` if it cannot be had or is
    not the published file.
    """
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    digest = Path(name).stem.rpartition("-")[2]
    if not path.exists() and download:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
        except (OSError, RuntimeError) as error:
            msg = f"{url}: cannot be downloaded ({error}); save the file in {path.parent}"
            raise MissingWeightsError(msg) from error
    if not path.exists():
        msg = f"{path}: no such file; download it from {url}"
        raise MissingWeightsError(msg)
    with path.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(digest):
            msg = f"{path}: not the published weights; delete the file and try again"
            raise MissingWeightsError(msg)


def features_of(features: Features, batches: Iterable[Tensor]) -> Tensor:
    """Features (N, F), on the CPU, of batches (B, 3, H, W) in [0, 1], rounded to 8 bits first."""
    with full_precision():
        found = []
        for images in batches:
            pictures = torch.from_numpy(to_pixels(images)).movedim(-1, -3)
            found.append(features(pictures.to(images.device)).cpu())
        return torch.cat(found)


def feature_distances(real: Tensor, made: Tensor, seed: int = 0) -> dict[str, float]:
    """`fid` and `kid` of two sets of features, (N, F) and (M, F), with N and M at least 2.

    FID is that of Heusel et al. 2017. KID is that of Bińkowski et al. 2018 with its cubic kernel:
    the mean over 100 random subsets of 1,000, or of the smaller set's size. `seed` draws them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notice that all features are kept, which is intended
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        subset = min(_MAX_KID_SUBSET, len(real), len(made))
        identity: Any = nn.Identity()
        identity.num_features = real.shape[1]
        fid: Any = FrechetInceptionDistance(identity)
        kid: Any = KernelInceptionDistance(identity, subsets=100, subset_size=subset)
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(made, real=False)
        with seeded(seed):
            return {"fid": float(fid.compute()), "kid": float(kid.compute()[0])}
