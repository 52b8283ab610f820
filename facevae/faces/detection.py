"""Two small published networks: YuNet detects faces, O-Net locates the eyes, nose and mouth.

Wu, Peng & Yu 2023, "YuNet: A Tiny Millisecond-level Face Detector"; Zhang et al. 2016, "Joint Face
Detection and Alignment Using Multitask Cascaded Convolutional Networks". Their weights and
licence notices are in `weights/`.
"""

import torch
from torch import Tensor, nn

STRIDES = (8, 16, 32)  # of the three levels of YuNet, in pixels
ONET_SIZE = 48
_HEADS = {"classes": 1, "objects": 1, "boxes": 4, "points": 10}
_STAGE_WITHOUT_POOLING = 1  # every other stage halves its input first


class _Separable(nn.Module):
    """A 1 × 1 convolution, a depthwise 3 × 3 convolution and, unless in a head, a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, is_head: bool = False) -> None:
        super().__init__()
        self.point = nn.Conv2d(in_channels, out_channels, 1)
        self.depth = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)
        self.is_head = is_head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.depth(self.point(x))
        return out if self.is_head else out.relu()


class YuNet(nn.Module):
    """BGR images (B, 3, H, W) in 0…255, sides multiples of 32 → scores, boxes and points.

    There are N rows, one for each cell of the three levels: scores (B, N) in [0, 1], boxes
    (B, N, 4) as left, top, right, bottom, and points (B, N, 5, 2), both in pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.first = _Separable(16, 16)
        widths = ((16, 16, 32), (32, 32, 64), (64, 64, 64), (64, 64, 64), (64, 64, 64))
        self.stages = nn.ModuleList(
            nn.Sequential(_Separable(a, b), _Separable(b, c)) for a, b, c in widths
        )
        self.neck = nn.ModuleList(_Separable(64, 64) for _ in STRIDES)
        self.heads = nn.ModuleDict(
            {
                name: nn.ModuleList(_Separable(64, width, is_head=True) for _ in STRIDES)
                for name, width in _HEADS.items()
            }
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute scores, boxes and points."""
        # backbone: the last three stages are the levels, at strides 8, 16 and 32
        x = self.first(self.stem(images).relu())
        levels: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(x if i == _STAGE_WITHOUT_POOLING else nn.functional.max_pool2d(x, 2))
            levels.append(x)

        # feature pyramid: each level is added to the next coarser one
        features: list[Tensor] = []
        for level, neck in zip(levels[-1:-4:-1], list(self.neck)[::-1], strict=True):
            coarser = nn.functional.interpolate(features[0], scale_factor=2) if features else 0
            features.insert(0, neck(level + coarser))

        # heads
        parts = [self._decode(i, f) for i, f in enumerate(features)]
        scores, boxes, points = (torch.cat(p, 1) for p in zip(*parts, strict=True))
        return scores, boxes, points

    def _decode(self, level: int, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, boxes and points from the features (B, 64, H, W) of one level."""
        stride = STRIDES[level]
        rows, columns = features.shape[-2:]
        ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        cells = torch.stack([xs, ys], -1).reshape(-1, 2).to(features)

        def head(name: str) -> Tensor:
            levels = self.heads[name]
            assert isinstance(levels, nn.ModuleList)  # noqa: S101 - for the type checker
            out: Tensor = levels[level](features)
            return out.flatten(2).transpose(1, 2)

        scores = (head("classes").sigmoid() * head("objects").sigmoid()).sqrt().squeeze(2)
        offsets, sizes = head("boxes").split(2, dim=2)
        centres, halves = (cells + offsets) * stride, sizes.exp() * stride / 2
        boxes = torch.cat([centres - halves, centres + halves], 2)
        points = (head("points").unflatten(2, (5, 2)) + cells[:, None]) * stride
        return scores, boxes, points


class ONet(nn.Module):
    """RGB crops (B, 3, 48, 48) in [-1, 1] → scores (B,), box corrections (B, 4), points (B, 5, 2).

    The points are left eye, right eye, nose, and left and right corner of the mouth, where left and
    right are as seen in the picture. Points and corrections are in units of the crop's side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.PReLU(32),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 64, 3),
            nn.PReLU(64),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 64, 3),
            nn.PReLU(64),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(64, 128, 2),
            nn.PReLU(128),
        )
        self.dense = nn.Sequential(nn.Linear(1152, 256), nn.PReLU(256))
        self.scores, self.boxes, self.points = (nn.Linear(256, n) for n in (2, 4, 10))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute scores, box corrections and points."""
        # the published weights are for transposed pictures with channels last
        features = self.convolutions(crops.transpose(2, 3)).permute(0, 2, 3, 1).flatten(1)
        x = self.dense(features)
        points = self.points(x).unflatten(1, (2, 5)).transpose(1, 2)
        return self.scores(x).softmax(1)[:, 1], self.boxes(x), points
