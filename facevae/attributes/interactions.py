"""How the direction of an attribute varies from face to face, as glasses follow a head that turns.

The direction for a face is d + Σ c_k · d_k, where c_k says how far the face lies along the axis k of
the main ways in which faces differ, and the interaction d_k is the change of the direction per
standard deviation along it: a varying-coefficient model (Hastie & Tibshirani 1993), with terms of
first order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from facevae.attributes.names import exact_match
from facevae.attributes.samples import Examples, Sample

# a face and its mirror image differ by how it is turned and lit; the tables in networks.md compare
# numbers of axes
_NUM_ASYMMETRIC, _NUM_SYMMETRIC = 2, 4
_FARTHEST = 2.5  # coordinate, in standard deviations, beyond which directions vary no more
_FEWEST_FOR_AXES = 1000  # faces; of fewer, axes would be those of a few unusual ones
_FEWEST = 100  # faces with an attribute, and without it
_NOTHING = 1e-6  # a penalty that keeps least squares solvable, and a share of variance


@dataclass(frozen=True)
class Axes:
    """Main ways in which faces differ: `rows` (K, D) and `offsets` (K,); K may be 0.

    A latent z lies at rows · z - offsets, in standard deviations over the training faces.
    """

    rows: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def coordinates(self, latents: Tensor) -> Tensor:
        """Places (N, K) of latents (N, D), rows · z - offsets, at most ±2.5.

        They are standard deviations from the mean face; farther out there are too few faces to learn
        from.
        """
        # first to the device, then to the type, which the other device may not have
        rows, offsets = (t.to(latents.device).to(latents.dtype) for t in (self.rows, self.offsets))
        return (latents @ rows.T - offsets).clamp(-_FARTHEST, _FARTHEST)

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
    floor = _NOTHING * float((plain - plain.mean(0)).square().mean())
    rows = torch.cat(
        [
            _components((plain - mirrored) / 2, _NUM_ASYMMETRIC, floor),
            _components(common - centre, _NUM_SYMMETRIC, floor),
        ]
    )
    return Axes(rows.float(), (rows @ centre).float())


def _components(deviations: Tensor, count: int, floor: float) -> Tensor:
    """The first principal components (K, D) of deviations (N, D), scaled to unit variance.

    At most `count`, and none with a variance of `floor` or less.
    """
    variances, vectors = torch.linalg.eigh(deviations.T @ deviations / len(deviations))
    found = variances > floor
    rows: Tensor = (vectors[:, found] / variances[found].sqrt()).T.flip(0)[:count]
    # of the two signs of a vector, that in which its largest number is positive
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * largest.sign()


def learn_interactions(examples: Examples, names: Sequence[str], axes: Axes) -> Tensor:
    """Interactions (A, K, D) of the attributes `names` with axes, by least squares, shrunk.

    `names` are of labels that differ among the training faces. Gender is controlled for, if it is
    among the labels: faces of men lie elsewhere along the axes. Yes-or-no attributes get zeros unless
    100 training faces have them and 100 lack them, continuous ones unless 200 have a label.
    """
    interactions = examples.latents.new_zeros(len(names), *axes.rows.shape)
    if not len(axes):
        return interactions
    sample = Sample(examples)
    latents = torch.cat([sample.latents, sample.mirrored])
    places = torch.cat([torch.ones(len(latents), 1).double(), axes.coordinates(latents)], 1)
    gender = exact_match("gender", sample.names)
    for row, name in enumerate(names):
        i = sample.names.index(name)
        if sample.smaller_group[i] < _FEWEST:
            continue
        labels, weights = _both_sides(sample, i)
        covariates = [places, places * labels[:, None]]
        if gender and gender[0] != i:
            covariates.insert(0, places * sample.deviations[:, gender[0]].repeat(2)[:, None])
        slopes = _least_squares(torch.cat(covariates, 1), weights, latents)
        interactions[row] = slopes[-len(axes) :]
    return interactions


def _least_squares(design: Tensor, weights: Tensor, outcomes: Tensor) -> Tensor:
    """Slopes (P, D) of outcomes (2N, D) on a design (2N, P), each shrunk as far as it may be noise.

    The first N rows are of faces and the others of their mirror images. A slope is a vector of D
    numbers, so how much of its length the noise explains is known well: positive-part James-Stein
    (Efron & Morris 1973).
    """
    weighted = design * weights[:, None]
    moments, products = weighted.T @ design, weighted.T @ outcomes
    moments.diagonal().add_(_NOTHING)
    slopes: Tensor = torch.linalg.solve(moments, products)
    # of the residuals: the outcomes' less what is explained
    variances = weights @ outcomes.square() - (slopes * products).sum(0)
    variances = variances.clamp_min(_NOTHING)
    # of slopes, in units of these; as small as if mirror images were other faces, since they cancel
    # the half of the noise that is not symmetric
    inverse = torch.linalg.inv(moments)
    noise = (inverse @ (weighted.T @ weighted) @ inverse).diagonal()
    lengths = (slopes.square() / variances).mean(1)
    kept = (1 - noise / lengths.clamp_min(_NOTHING)).clamp_min(0)
    shrunk: Tensor = kept[:, None] * slopes
    return shrunk


def _both_sides(sample: Sample, attribute: int) -> tuple[Tensor, Tensor]:
    """Centred labels and weights, each (2N,), of the faces and then of their mirror images.

    The sum of the weights is 1; faces with and faces without a yes-or-no attribute have half each.
    """
    known, sign = sample.known[:, attribute].repeat(2), sample.mirror_signs[attribute]
    if sample.is_continuous[attribute]:
        labels = sample.deviations[:, attribute] / sample.unit[attribute]
        return torch.cat([labels, sign * labels]), known / known.sum()
    labels = sample.labels[:, attribute].nan_to_num() - 0.5
    labels = torch.cat([labels, sign * labels])
    share = (known * (labels > 0)).sum() / known.sum()
    weights = known * torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
    return known * labels, weights / weights.sum()
