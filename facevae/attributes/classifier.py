"""A network that tells attributes from pictures of faces, to see what edits do to them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from facevae.attributes.samples import Sample
from facevae.data.augment import change, draw_changes
from facevae.networks.image_features import CHANNELS, STRIDE, load_image_features
from facevae.system.runtime import Stream, generator, seeded, training_precision

SIDE = 3 * STRIDE  # px of what it sees
_EPOCHS, _BATCH = 5, 64
_LEARNING_RATE = 4e-4  # of the pretrained layers; the last one learns ten times as fast
_WEIGHT_DECAY, _DROPOUT = 0.05, 0.3
_RISE = 0.1  # share of the steps in which the learning rate rises
_MAX_GRADIENT = 1.0  # norm
_RAREST = 0.04  # the rarer an answer, the more it counts, down to this share of faces


class AttributeClassifier(nn.Module):
    """images (B, 3, S, S) in [0, 1] → (B, A): logits, or continuous labels in standard deviations.

    EfficientNet-Lite0 (Tan & Le 2019), pretrained on photographs, with a linear layer for the
    attributes on the averages of its two coarsest levels. It sees images at 96 px.
    """

    def __init__(self, num_attributes: int, device: torch.device) -> None:
        super().__init__()
        self.features = load_image_features(device)
        self.dropout = nn.Dropout(_DROPOUT)
        with seeded(0):
            self.head = nn.Linear(sum(CHANNELS[-2:]), num_attributes).to(device)

    def forward(self, images: Tensor) -> Tensor:
        """What the network sees in images of any size."""
        levels = self.features(reduced(images))[-2:]
        averages = torch.cat([level.float().mean((2, 3)) for level in levels], 1)
        seen: Tensor = self.head(self.dropout(averages))
        return seen


def reduced(images: Tensor) -> Tensor:
    """Images (B, 3, S, S) at the size at which the classifier sees them, (B, 3, 96, 96)."""
    if images.shape[-1] == SIDE:
        return images
    # not all releases of torch have its gradient on MPS
    device = torch.device("cpu") if images.device.type == "mps" else images.device
    smaller = functional.interpolate(
        images.to(device), (SIDE, SIDE), mode="bilinear", antialias=True
    )
    return smaller.to(images.device)


@dataclass(frozen=True)
class Answers:
    """What a classifier should say of faces (N,), and of their mirror images.

    `right` (2, N, A) are 1 and 0, or continuous labels in standard deviations from the mean where
    `is_continuous` (A,); 0 where not `known` (N, A). `weights` (N, A) are 0 there, and elsewhere such
    that yes and no count the same, if neither is rarer than 4 %.
    """

    right: Tensor
    known: Tensor
    weights: Tensor
    is_continuous: Tensor

    @classmethod
    def of(cls, sample: Sample) -> "Answers":
        """The answers for the faces of a sample; the weights are for its training faces."""
        known = ~sample.labels.isnan()
        labels, is_continuous = sample.labels.nan_to_num(), sample.is_continuous
        standard = (labels - sample.mean) / sample.unit
        plain = torch.where(is_continuous, standard, labels)
        opposite = torch.where(is_continuous, -standard, 1 - labels)
        mirrored = torch.where(sample.mirror_signs < 0, opposite, plain)
        share = sample.mean.clamp(_RAREST, 1 - _RAREST)
        weights = torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
        weights = weights.masked_fill(is_continuous, 1.0) * known
        right = torch.stack([plain, mirrored]) * known
        return cls(right.float(), known, weights.float(), is_continuous)

    def loss(self, seen: Tensor, rows: Tensor, sides: Tensor) -> Tensor:
        """Mean loss of what was `seen` (B, A) in the faces `rows` (B,), mirrored where `sides` is 1."""
        right, weights = (t.to(seen.device) for t in (self.right[sides, rows], self.weights[rows]))
        is_continuous = self.is_continuous.to(seen.device)
        yes_or_no = functional.binary_cross_entropy_with_logits(
            seen, right.clamp(0, 1), reduction="none"
        )
        distances = functional.huber_loss(seen, right, reduction="none")
        losses = torch.where(is_continuous, distances, yes_or_no)
        return (losses * weights).mean()


def train_classifier(
    images: Tensor,
    answers: Answers,
    rows: Tensor,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> AttributeClassifier:
    """A classifier that has learned the answers for the faces `rows` (M,).

    `images` (N, 3, 96, 96) are all faces as bytes. Half of those in a batch are mirrored, and all are
    moved and relit a little. `progress` is told of steps done and to do.
    """
    network = AttributeClassifier(answers.known.shape[1], device).train()
    network.features.requires_grad_()
    rates = [_LEARNING_RATE, 10 * _LEARNING_RATE]
    layers = [network.features.parameters(), network.head.parameters()]
    groups = [{"params": part, "lr": rate} for part, rate in zip(layers, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY)
    num_steps = max(2, _EPOCHS * len(rows) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, num_steps, pct_start=_RISE)
    numbers = generator(0, Stream.CLASSIFIER)
    order = torch.cat(
        [
            torch.randperm(len(rows), generator=numbers)
            for _ in range(-(-num_steps * _BATCH // len(rows)))
        ]
    )
    with seeded(0, device):  # dropout
        for step in range(num_steps):
            chosen = rows[order[step * _BATCH : (step + 1) * _BATCH]]
            sides = torch.randint(2, (len(chosen),), generator=numbers)
            changes = draw_changes(len(chosen), numbers)
            faces = images[chosen].to(device).float() / 255
            faces = torch.where(sides.to(device).view(-1, 1, 1, 1) > 0, faces.flip(3), faces)
            faces = change(faces, changes.to(device))
            with training_precision(device):
                seen = network(faces)
            optimizer.zero_grad()
            answers.loss(seen.float(), chosen, sides).backward()
            nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT)
            optimizer.step()
            schedule.step()
            progress(step + 1, num_steps)
    return network.eval().requires_grad_(requires_grad=False)
