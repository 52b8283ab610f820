"""How the direction of an attribute varies from face to face, as glasses follow a head that turns.

The direction for a face is d + Σ c_k · d_k, where c_k says how far the face lies along the axis k of
the main ways in which faces differ, and the interaction d_k is how much of a step along that axis
changes the direction: a varying-coefficient model (Hastie & Tibshirani 1993), with terms of first
order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from facevae.attributes.names import exact_match
from facevae.attributes.samples import Examples, Sample

# a face and its mirror image differ by how it is turned and lit; the other axes say more than that
_NUM_ASYMMETRIC, _NUM_SYMMETRIC = 2, 4
_FARTHEST = 2.5  # coordinate, in standard deviations, beyond which directions vary no more
_FEWEST_FOR_AXES = 1000  # faces; of fewer, axes would be those of a few unusual ones
_FEWEST = 100  # faces with an attribute, and without it
_PENALTY = 20.0  # L2, in faces of the smaller group
_EPSILON = 1e-6  # penalty that keeps the least squares solvable


@dataclass(frozen=True)
class Axes:
    """Main ways in which faces differ: `rows` (K, D) and `offsets` (K,); K may be 0."""

    rows: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def coordinates(self, latents: Tensor) -> Tensor:
        """Places (N, K) of latents (N, D) along the axes, in standard deviations from the mean.

        At most ±2.5: farther out there are too few faces to learn from.
        """
        places = latents @ self.rows.to(latents).T - self.offsets.to(latents)
        return places.clamp(-_FARTHEST, _FARTHEST)

    def to(self, device: torch.device) -> "Axes":
        """The same axes on another device."""
        return Axes(self.rows.to(device), self.offsets.to(device))


def no_axes(latent_dim: int) -> Axes:
    """No axes at all: directions that are the same for every face."""
    return Axes(torch.zeros(0, latent_dim), torch.zeros(0))


def find_axes(examples: Examples) -> Axes:
    """Axes of the training faces among the examples, or none if these are few.

    Principal components of the differences between faces and their mirror images, and of the means
    of both, which are what the sides of a face have in common.
    """
    is_training = torch.from_numpy(~examples.held_out)
    plain, mirrored = (z.cpu().double()[is_training] for z in (examples.latents, examples.mirrored))
    if len(plain) < _FEWEST_FOR_AXES:
        return no_axes(plain.shape[1])
    common = (plain + mirrored) / 2
    centre = common.mean(0)
    parts = ((plain - mirrored) / 2, _NUM_ASYMMETRIC), (common - centre, _NUM_SYMMETRIC)
    rows = torch.cat([_components(deviations, count) for deviations, count in parts])
    return Axes(rows.float(), (rows @ centre).float())


def _components(deviations: Tensor, count: int) -> Tensor:
    """The first principal components (K, D) of deviations (N, D), scaled to unit variance."""
    variances, vectors = torch.linalg.eigh(deviations.T @ deviations / len(deviations))
    found = variances > _EPSILON * variances[-1]
    rows: Tensor = (vectors[:, found] / variances[found].sqrt()).T.flip(0)[:count]
    # of the two signs of a vector, that in which its largest number is positive
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * largest.sign()


def learn_interactions(examples: Examples, names: Sequence[str], axes: Axes) -> Tensor:
    """Interactions (A, K, D) of the attributes `names` with axes, by penalised least squares.

    Gender is controlled for, if it is among the labels: faces of men lie elsewhere along the axes.
    Attributes that few faces have, or that few faces lack, get zeros.
    """
    interactions = examples.latents.new_zeros(len(names), *axes.rows.shape)
    if not len(axes):
        return interactions
    sample = Sample(examples)
    latents = torch.cat([sample.latents, sample.mirrored])
    places = torch.cat([torch.ones(len(latents), 1).double(), axes.coordinates(latents)], 1)
    deviations = torch.cat([sample.deviations, sample.mirror_signs * sample.deviations])
    gender = exact_match("gender", sample.names)
    for row, name in enumerate(names):
        i = sample.names.index(name)
        if sample.smaller_group[i] < _FEWEST:
            continue
        covariates = [places, places * (deviations[:, i, None] / sample.unit[i])]
        if gender and gender[0] != i:
            covariates.insert(0, places * deviations[:, gender[0], None])
        design = torch.cat(covariates, 1)
        penalties = torch.full((design.shape[1],), _EPSILON).double()
        penalties[-len(axes) :] = _PENALTY / sample.smaller_group[i]
        weighted = design * _weights(sample, i)[:, None]
        slopes = torch.linalg.solve(weighted.T @ design + penalties.diag(), weighted.T @ latents)
        interactions[row] = slopes[-len(axes) :]
    return interactions


def _weights(sample: Sample, attribute: int) -> Tensor:
    """Weights (2N,) of the faces and of their mirror images, of sum 1.

    With and without a yes-or-no attribute, faces have the same weight in total.
    """
    weights = sample.known[:, attribute].clone()
    if not sample.is_continuous[attribute]:
        has = sample.labels[:, attribute] > 0
        share = sample.mean[attribute]
        weights *= torch.where(has, 1 / share, 1 / (1 - share))
    return weights.repeat(2) / (2 * weights.sum())
