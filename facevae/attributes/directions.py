"""Directions and scorers of attributes in latent space, learned from labels.

The direction d of an attribute leads from the average face without it to the average face with it.
For a continuous attribute it follows the label. The scorer w measures the attribute in a latent z
as w·z, scaled so that w·d = 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from facevae.attributes.names import exact_match
from facevae.attributes.samples import Examples, Sample

Method = Literal["logistic", "lda", "mean"]

SHRINKAGE = 0.1  # of the covariance towards its diagonal
# L2 penalty on logistic weights of standardised latents; best in cross-validation of 14 attributes
PENALTY = 300.0
_MIN_LOGISTIC = 100  # faces with, and faces without: fewer are left to the linear discriminant
_NEWTON_STEPS = 12
_NEWTON_TOLERANCE = 1e-6
_MIN_LENGTH = 1e-4  # of a direction, as a share of the latents' spread; below is rounding error
_MIN_PER_GENDER = 50  # faces with, and faces without, for a direction within each gender
_MAX_GENDER_SHARE = 0.75  # of the faces with an attribute; above, gender is controlled for
_CORE = ("gender", "age", "smile", "glasses")
_EPSILON = 1e-12  # lower bound of divisors


@dataclass(frozen=True)
class Attribute:
    """Metadata of a model's attribute: what it was learned from and how well its scorer works.

    `unit` is the change of the label for α = 1: 1 for a yes-or-no attribute, one standard deviation
    in the label's own unit for a `continuous` one. The counts are of training faces with and
    without the attribute, or above and below the mean of a continuous one. `accuracy` (balanced, of
    separating these two groups) and `correlation` (of score and label) are measured on held-out
    faces; None means not measured.
    """

    name: str
    num_positives: int
    num_negatives: int
    accuracy: float | None = None
    correlation: float | None = None
    continuous: bool = False
    unit: float = 1.0
    method: Method = "logistic"

    def __post_init__(self) -> None:
        """Raise `ValueError` for values that only a damaged file can hold."""
        counts = (self.num_positives, self.num_negatives)
        figures = (self.unit, self.accuracy or 0, self.correlation or 0)
        if not (
            isinstance(self.name, str)
            and all(type(count) is int and count >= 0 for count in counts)
            and all(type(figure) in (int, float) and math.isfinite(figure) for figure in figures)
            and type(self.continuous) is bool
            and self.method in get_args(Method)
        ):
            msg = f"attribute {self.name}: needs a name, two counts, a unit and held-out figures"
            raise ValueError(msg)


# ---------------------------------------------------------------- learning


def learn(
    examples: Examples, covariance: Tensor, method: Method = "logistic"
) -> tuple[list[Attribute], Tensor, Tensor]:
    """Attributes with their directions d and scorers w, each (A, D).

    d is the regression of the latents on the label: the difference of means for a yes-or-no label
    (Panguluri & Kamarajugadda 2020, section 3), the change over one standard deviation for a
    number. Unless `method` is `mean`, gender is controlled for in the directions of attributes that
    mostly one gender has (see `_control_for_gender`).

    w is fitted by logistic regression. The method `lda` uses the linear discriminant Σ⁻¹d instead,
    with `covariance` (D, D) of the latents of all training faces, shrunk towards its diagonal
    (Friedman 1989); so does `logistic` for numbers and where examples are few. With `mean`, w is d
    itself, scaled. Attributes whose label does not vary, or that the latents do not show, are left
    out.
    """
    sample = Sample(examples)
    directions = _directions(sample)
    scorers, methods = _scorers(sample, directions, covariance, method)
    effects = (scorers * directions).sum(1, keepdim=True)
    if method != "mean" and (gender := exact_match("gender", sample.names)):
        directions = _control_for_gender(sample, gender[0], directions, scorers, effects)
    scorers = scorers / effects.clamp_min(_EPSILON)
    attributes = _assess(sample, scorers, methods)

    spread = covariance.diag().sum().sqrt().cpu().double()
    is_shown = directions.norm(dim=1) > _MIN_LENGTH * spread + _EPSILON
    return (
        [attributes[i] for i in is_shown.nonzero()[:, 0].tolist()],
        directions[is_shown].to(examples.latents),
        scorers[is_shown].to(examples.latents),
    )


def _directions(sample: Sample) -> Tensor:
    """Directions (A, D), averaged over both sides of each face."""
    slopes, mirrored_slopes = sample.slopes
    averages: Tensor = (slopes + sample.mirror_signs[:, None] * mirrored_slopes) / 2
    scale = sample.unit / (sample.count * sample.variance)
    return averages * scale[:, None]


def _scorers(
    sample: Sample,
    directions: Tensor,
    covariance: Tensor,
    method: Method,
) -> tuple[Tensor, list[Method]]:
    """Scorers (A, D), not yet scaled to w·d = 1, and the method that gave each."""
    if method == "mean":
        return directions, ["mean"] * len(directions)
    shrunk = regularised(covariance, SHRINKAGE, weight=1 - SHRINKAGE)
    scorers: Tensor = torch.linalg.solve(shrunk, directions.T).T
    methods: list[Method] = ["lda"] * len(directions)
    if method == "logistic":
        is_logistic = ~sample.is_continuous & (sample.smaller_group >= _MIN_LOGISTIC)
        for i in is_logistic.nonzero()[:, 0].tolist():
            rows = sample.known[:, i].bool()
            both_sides = [sample.latents[rows], sample.mirror_signs[i] * sample.mirrored[rows]]
            scorers[i] = _logistic(torch.cat(both_sides), sample.labels[rows, i].repeat(2))
            methods[i] = "logistic"
    return scorers, methods


def regularised(covariance: Tensor, loading: float, weight: float = 1.0) -> Tensor:
    """weight · Σ + loading · diag(Σ), (D, D), in float64 on the CPU: not every device has float64.

    A small multiple of the identity is added, so that the result can be inverted even if all faces
    have the same latents.
    """
    covariance = covariance.cpu().double()
    variances = covariance.diag()
    floor = (1e-6 * variances.mean()).clamp_min(_EPSILON)
    return weight * covariance + torch.diag(loading * variances + floor)


def _logistic(latents: Tensor, labels: Tensor) -> Tensor:
    """Weights (D,) of a logistic regression with an L2 penalty, by Newton's method.

    Latents (2N, D) are of faces and their mirror images. Labels (2N,) are 1 and 0; the two classes
    have equal weight in total.
    """
    spread = latents.std(0).clamp_min(_EPSILON)
    design = torch.cat([latents / spread, torch.ones(len(latents), 1).double()], 1)
    ridge = PENALTY * torch.eye(design.shape[1]).double()
    ridge[-1, -1] = 1e-6  # hardly any penalty on the intercept
    share = labels.mean()
    # each side counts as half a face, each class as half of all faces
    weight = torch.where(labels > 0, 0.25 / share, 0.25 / (1 - share))
    theta = torch.zeros(design.shape[1]).double()
    for _ in range(_NEWTON_STEPS):
        probability = (design @ theta).sigmoid()
        gradient = design.T @ (weight * (probability - labels)) + ridge @ theta
        curvature = weight * probability * (1 - probability)
        hessian = (design * curvature[:, None]).T @ design + ridge
        step = torch.linalg.solve(hessian, gradient)
        theta = theta - step
        if step.abs().max() < _NEWTON_TOLERANCE:
            break
    return theta[:-1] / spread


def _control_for_gender(
    sample: Sample,
    gender: int,
    directions: Tensor,
    scorers: Tensor,
    effects: Tensor,
) -> Tensor:
    """Directions (A, D), with gender controlled for where mostly one gender has the attribute.

    Otherwise a direction of glasses, which more men wear, would make faces more male. Such a
    direction becomes the mean of the differences within each gender, weighted by the numbers of
    faces (direct standardisation in epidemiology), if both genders have enough faces with and
    without the attribute. It is scaled to the `effects` (A, 1) on the score, w·d, of the direction
    that it replaces. `gender` is the column of the gender label.
    """
    labels = sample.labels.where(sample.is_training, torch.nan)

    def mean_latents(is_chosen: Tensor) -> Tensor:
        """Means (A, D) of both sides of the faces that are chosen (N, A) for each attribute."""
        chosen = is_chosen.double()
        sums = chosen.T @ sample.latents + sample.mirror_signs[:, None] * (
            chosen.T @ sample.mirrored
        )
        return sums / (2 * chosen.sum(0).clamp_min(1))[:, None]

    is_of_gender = torch.stack([labels[:, gender] == label for label in (0, 1)])
    has = [(labels == 1) & rows[:, None] for rows in is_of_gender]
    lacks = [(labels == 0) & rows[:, None] for rows in is_of_gender]
    differences = [mean_latents(a) - mean_latents(b) for a, b in zip(has, lacks, strict=True)]
    shares = is_of_gender.double().mean(1)
    weights = shares / shares.sum().clamp_min(_EPSILON)
    within = weights[0] * differences[0] + weights[1] * differences[1]

    num_with, num_without = (
        torch.stack([c.double().sum(0) for c in part]) for part in (has, lacks)
    )
    is_enough = torch.minimum(num_with, num_without).amin(0) >= _MIN_PER_GENDER
    is_lopsided = num_with.amax(0) > _MAX_GENDER_SHARE * num_with.sum(0)
    within_effects = (scorers * within).sum(1, keepdim=True)
    is_usable = ~sample.is_continuous & (within_effects > _EPSILON)[:, 0]
    scaled = within * effects / within_effects.clamp_min(_EPSILON)
    return torch.where((is_enough & is_lopsided & is_usable)[:, None], scaled, directions)


def _assess(sample: Sample, scorers: Tensor, methods: Sequence[Method]) -> list[Attribute]:
    """Attributes with their training counts, and their figures on held-out faces."""
    # a label above the threshold counts as having the attribute; a score above 0 predicts it
    threshold = torch.where(sample.is_continuous, sample.mean, 0.5)
    mean_latents = sample.known.T @ sample.latents / sample.count[:, None]
    offsets = (scorers * mean_latents).sum(1)
    scores = sample.latents @ scorers.T - offsets - (threshold - sample.mean) / sample.unit
    is_measured = ~sample.labels.isnan() & ~sample.is_training
    attributes = []
    for i, name in enumerate(sample.names):
        is_positive, rows = sample.labels[:, i] > threshold[i], is_measured[:, i]
        num_positives = int((is_positive & sample.known[:, i].bool()).sum())
        attributes.append(
            Attribute(
                name,
                num_positives,
                num_negatives=int(sample.count[i]) - num_positives,
                accuracy=_balanced_accuracy(scores[rows, i], is_positive[rows]),
                correlation=_correlation(scores[rows, i], sample.labels[rows, i]),
                continuous=bool(sample.is_continuous[i]),
                unit=float(sample.unit[i]),
                method=methods[i],
            )
        )
    return attributes


def _balanced_accuracy(scores: Tensor, is_positive: Tensor) -> float | None:
    """Mean of the true positive and true negative rates; None if there are faces of one kind only."""
    positive, negative = scores[is_positive], scores[~is_positive]
    if not len(positive) or not len(negative):
        return None
    return float(((positive > 0).double().mean() + (negative <= 0).double().mean()) / 2)


def _correlation(scores: Tensor, labels: Tensor) -> float | None:
    """Pearson's correlation coefficient; None where it is undefined."""
    if len(scores) < 2 or scores.std() == 0 or labels.std() == 0:  # noqa: PLR2004 - needs two points
        return None
    return float(torch.corrcoef(torch.stack([scores, labels]))[0, 1])


# ---------------------------------------------------------------- learned attributes


def core_attributes(attributes: Sequence[Attribute]) -> list[int]:
    """Indices of gender, age, smile and glasses, those that people ask for first, if present."""
    names = [attribute.name for attribute in attributes]
    return [match[0] for word in _CORE if (match := exact_match(word, names))]


def correlations(scorers: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations (A,) of the scores over training faces, in α, and correlations (A, A)."""
    joint = scorers @ covariance @ scorers.T
    spreads = joint.diag().sqrt()
    return spreads, joint / (spreads[:, None] * spreads).clamp_min(_EPSILON)
