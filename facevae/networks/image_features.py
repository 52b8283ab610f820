"""Image features of EfficientNet-Lite0, pretrained on ImageNet.

Tan & Le 2019, "EfficientNet", in the variant for small devices (no squeeze-and-excitation, ReLU6).
The network gives features at four levels and has no classifier. Its weights and their notice are in
`weights/`.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from importlib import resources
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

_FILE = "features.safetensors"
_STEM = 32
# channels, blocks, stride and kernel size of each stage
_STAGES = (
    (16, 1, 1, 3),
    (24, 2, 2, 3),
    (40, 2, 2, 5),
    (80, 3, 2, 3),
    (112, 3, 1, 5),
    (192, 4, 2, 5),
    (320, 1, 1, 3),
)
_EXPANSION = 6  # of the channels inside a block, in all stages but the first
_LEVELS = (1, 2, 4, 6)  # stages whose features are returned, at strides of 4, 8, 16 and 32 pixels
CHANNELS = tuple(_STAGES[stage][0] for stage in _LEVELS)
STRIDE = 32  # the side of an image must be a multiple of it


class _Convolution(nn.Conv2d):
    """A convolution with TensorFlow's zero padding: an odd number puts one more at the end."""

    def forward(self, features: Tensor) -> Tensor:
        padding = self.kernel_size[0] - self.stride[0]
        before = padding // 2
        padded = functional.pad(features, (before, padding - before) * 2)
        # on CPUs the gradient of a strided depthwise convolution takes 4 times as long in bfloat16
        is_slow = self.groups > 1 and self.stride[0] > 1 and features.device.type == "cpu"
        with torch.autocast(features.device.type, enabled=False) if is_slow else nullcontext():
            return super().forward(padded.float() if is_slow else padded)


class _Block(nn.Module):
    """An inverted residual block: features (B, C, H, W) → (B, C', H/stride, W/stride)."""

    def __init__(self, before: int, after: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        inside = before * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(before, inside, 1), nn.ReLU6()]
        layers += [_Convolution(inside, inside, kernel, stride, groups=inside), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(inside, after, 1))
        self.is_residual = stride == 1 and before == after

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layers(features)
        return features + out if self.is_residual else out


class ImageFeatures(nn.Module):
    """images (B, 3, S, S) in [0, 1], S a multiple of 32 → features of four levels.

    Level i is (B, C_i, S / 2^(i + 2), S / 2^(i + 2)), with C_i from `CHANNELS`. Each channel is
    standardised by its mean and standard deviation in generated faces. Batch norms are folded into
    the convolutions before them. The weights are frozen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_Convolution(3, _STEM, 3, 2), nn.ReLU6())
        self.stages = nn.ModuleList()
        widths = (_STEM, *(channels for channels, *_ in _STAGES))
        for (before, after), (_, blocks, stride, kernel) in zip(
            pairwise(widths), _STAGES, strict=True
        ):
            expansion = _EXPANSION if self.stages else 1
            stage = [_Block(before, after, expansion, stride, kernel)]
            stage += [_Block(after, after, expansion, 1, kernel) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
        for i, channels in enumerate(CHANNELS):
            self.register_buffer(f"mean{i}", torch.zeros(channels, 1, 1))
            self.register_buffer(f"spread{i}", torch.ones(channels, 1, 1))
        self.requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Standardised features of each level, the finest first."""
        return [
            (features - self.get_buffer(f"mean{i}")) / self.get_buffer(f"spread{i}")
            for i, features in enumerate(self.raw(images))
        ]

    def raw(self, images: Tensor) -> Iterator[Tensor]:
        """Features of each level before standardisation."""
        hidden = self.stem((images * 255 - 127) / 128)
        for i, stage in enumerate(self.stages):
            hidden = stage(hidden)
            if i in _LEVELS:
                yield hidden


def load_image_features(device: torch.device) -> ImageFeatures:
    """The network with the published weights, which are part of the package."""
    network = ImageFeatures()
    path = Path(str(resources.files("facevae") / "weights" / _FILE))
    network.load_state_dict(load_file(path))
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
