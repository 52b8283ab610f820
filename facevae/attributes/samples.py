"""Labelled faces to learn attributes from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# one to three photos hardly ever have slopes of their two sides this opposed by chance
_MIRRORED_COSINE = -0.3


@dataclass(frozen=True)
class Examples:
    """Labelled faces: posterior means (N, D) of each and of its mirror image, labels (N, A).

    Labels are 1 and 0, or any numbers where `is_continuous` (A,); NaN means unknown. Faces that are
    `held_out` (N,) are used for evaluation only.
    """

    latents: Tensor
    mirrored: Tensor
    values: npt.NDArray[np.float32]
    names: Sequence[str]
    is_continuous: npt.NDArray[np.bool_]
    held_out: npt.NDArray[np.bool_]


class Sample:
    """Examples in float64 on the CPU, with label statistics (A,) of the training faces.

    Attributes whose label does not vary over the training faces are left out.

    `slopes` (2, A, D) are the sums of label deviation times latents over the training faces, and over
    their mirror images. A mirror sign (A,) is 1 where mirroring a face keeps its label, as with
    glasses, and -1 where it reverses the label, as with yaw: there the two slopes oppose each other.
    """

    def __init__(self, examples: Examples) -> None:
        values = examples.values[~examples.held_out]
        lowest = np.where(np.isnan(values), np.inf, values).min(0, initial=np.inf)
        highest = np.where(np.isnan(values), -np.inf, values).max(0, initial=-np.inf)
        columns = np.flatnonzero(lowest < highest)
        self.names = [examples.names[i] for i in columns.tolist()]
        self.latents = examples.latents.cpu().double()  # (N, D)
        self.mirrored = examples.mirrored.cpu().double()  # (N, D)
        self.labels = torch.from_numpy(examples.values[:, columns]).double()  # (N, A)
        self.is_continuous = torch.from_numpy(examples.is_continuous[columns])
        self.is_training = torch.from_numpy(~examples.held_out)[:, None]  # (N, 1)
        # (N, A), 1 for the known labels of training faces, else 0
        self.known = (~self.labels.isnan() & self.is_training).double()
        self.count = self.known.sum(0)
        self.total = (self.known * self.labels.nan_to_num()).sum(0)
        self.mean = self.total / self.count
        self.deviations = self.known * (self.labels.nan_to_num() - self.mean)  # (N, A)
        self.variance = self.deviations.square().sum(0) / self.count
        self.unit = torch.where(self.is_continuous, self.variance.sqrt(), 1.0)
        self.slopes = torch.stack([self.deviations.T @ z for z in (self.latents, self.mirrored)])
        cosines = torch.cosine_similarity(self.slopes[0], self.slopes[1], dim=1)
        self.mirror_signs = torch.where(cosines < _MIRRORED_COSINE, -1, 1)

    @property
    def smaller_group(self) -> Tensor:
        """Training faces (A,) with or without each yes-or-no attribute, whichever are fewer.

        Half of those with a label, for a continuous attribute.
        """
        fewer = torch.minimum(self.total, self.count - self.total)
        return torch.where(self.is_continuous, self.count / 2, fewer)
