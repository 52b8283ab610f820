"""FID and KID: their arithmetic, and that nothing but the published weights is used for them."""

import builtins
import hashlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from facevae.errors import UsageError
from facevae.measures import perceptual
from facevae.measures.perceptual import MissingWeightsError, feature_distances, features_of


def gaussian(seed, count, mean, deviation):
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed))
    return noise * torch.tensor(deviation) + torch.tensor(mean)


def test_fid_is_the_distance_of_two_gaussians():
    pytest.importorskip("torchmetrics")
    real = gaussian(0, 40_000, [0.0, 1.0, -1.0], [1.0, 2.0, 0.5])
    made = gaussian(1, 40_000, [0.5, 1.0, 1.0], [2.0, 2.0, 1.5])
    # |Δμ|² + Σ (σ₁ − σ₂)², the covariances being diagonal
    assert feature_distances(real, made)["fid"] == pytest.approx(4.25 + 2.0, rel=0.02)


def test_kid_is_the_unbiased_discrepancy_under_a_cubic_kernel():
    pytest.importorskip("torchmetrics")
    real, made = gaussian(2, 60, [0.0] * 4, [1.0] * 4), gaussian(3, 60, [0.4] * 4, [1.0] * 4)

    def kernel(a, b):
        return (a.double().numpy() @ b.double().numpy().T / 4 + 1) ** 3

    within = [(k.sum() - np.trace(k)) / (60 * 59) for k in (kernel(real, real), kernel(made, made))]
    expected = sum(within) - 2 * kernel(real, made).mean()
    # subsets are as large as the sets, so that each is the whole set
    assert feature_distances(real, made)["kid"] == pytest.approx(expected, rel=1e-3)


def test_the_same_features_give_the_same_figures():
    pytest.importorskip("torchmetrics")
    real, made = gaussian(4, 1500, [0.0] * 4, [1.0] * 4), gaussian(5, 1200, [0.4] * 4, [1.0] * 4)
    torch.manual_seed(1)
    first = feature_distances(real, made)
    torch.manual_seed(2)
    assert feature_distances(real, made) == first
    assert feature_distances(real, real)["fid"] == pytest.approx(0, abs=1e-6)


def test_features_are_of_pictures_as_they_are_saved():
    seen = []

    def extract(pictures):
        seen.append(pictures)
        return pictures.float().flatten(1)

    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    found = features_of(extract, [images[:2], images[2:]])
    assert found[:, 0].tolist() == [0, 128, 255]
    assert [(s.dtype, s.shape[1:]) for s in seen] == [(torch.uint8, (3, 2, 2))] * 2


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    for load in (perceptual.load_inception, perceptual.load_lpips, perceptual.load_perceptual):
        with pytest.raises(UsageError, match=r"pip install 'facevae\[eval\]'"):
            load(torch.device("cpu"))


URL = "https://example.org/models/net-2015-12-05-{}.pth"
WEIGHTS = b"the published numbers"
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()[:8]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Torch's cache, and no network."""

    def refuse(*_arguments, **_options):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_published_weights_in_the_cache_are_used_as_they_are(hub):
    (hub / f"net-2015-12-05-{DIGEST}.pth").write_bytes(WEIGHTS)
    perceptual._ensure_weights(URL.format(DIGEST), download=True)


def test_other_weights_under_the_published_name_are_refused(hub):
    (hub / f"net-2015-12-05-{DIGEST}.pth").write_bytes(b"random ones")
    with pytest.raises(MissingWeightsError, match="not the published weights"):
        perceptual._ensure_weights(URL.format(DIGEST), download=True)


@pytest.mark.parametrize("download", [True, False])
def test_missing_weights_are_named_with_where_they_belong(hub, download):
    with pytest.raises(MissingWeightsError) as caught:
        perceptual._ensure_weights(URL.format(DIGEST), download=download)
    assert str(hub) in str(caught.value)
    assert URL.format(DIGEST) in str(caught.value)


def test_a_torchvision_of_another_torch_is_one_line(monkeypatch):
    def importing(name, *_):
        if name == "torch_fidelity":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        return real(name, *_)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(UsageError, match="nms does not exist") as caught:
        perceptual._require()
    assert "\n" not in str(caught.value)


def test_what_training_goes_down_is_the_network_of_the_metric_with_frozen_weights(hub, monkeypatch):
    """With stand-ins for torchvision's weights and for VGG-16."""
    lpip = pytest.importorskip("torchmetrics.image.lpip")
    url = URL.format(DIGEST)
    models = SimpleNamespace(VGG16_Weights=SimpleNamespace(DEFAULT=SimpleNamespace(url=url)))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr(perceptual, "_require", lambda: None)

    class Network(torch.nn.Linear):
        def forward(self, made, real, *, normalize):
            assert normalize
            return super().forward((made - real).square().mean((2, 3)))

    class Metric(torch.nn.Module):
        def __init__(self, kind):
            super().__init__()
            assert kind == "vgg"
            self.net = Network(3, 1)

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", Metric)
    with pytest.raises(MissingWeightsError, match=url):
        perceptual.load_perceptual(torch.device("cpu"))
    (hub / url.rpartition("/")[2]).write_bytes(WEIGHTS)
    distance = perceptual.load_perceptual(torch.device("cpu"))
    made = torch.rand(2, 3, 8, 8, requires_grad=True)
    found = distance(made, torch.rand(2, 3, 8, 8))
    assert found.shape == (2,)
    found.sum().backward()
    assert made.grad is not None
