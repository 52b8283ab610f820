"""Attributes of faces: directions in latent space, learned from labels, and edits along them.

An attribute has a direction d, the way from the average face without it to the average face with
it, or to its score, and a scorer w, which reads off a face how much of it there is: w·d = 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facevae.attribute_names import exact_match
from facevae.errors import UsageError

Method = Literal["logistic", "lda", "mean"]

SHRINKAGE = 0.1  # of the covariance towards its diagonal
# of logistic weights in standard deviations; best in cross-validation of 14 attributes
PENALTY = 300.0
ENOUGH = 100  # faces with and without an attribute, from which on logistic regression is used
_NEWTON_STEPS, _SETTLED = 12, 1e-6
_OPPOSED = -0.3  # a cosine that the two sides of one to three photos hardly reach by chance
_LEAST_SHOWN = 1e-4  # of the latents' spread; what is below is the encoder's rounding
_TINY = 1e-12  # keeps from nought what is divided by
_LONGEST = 4.0  # times as far as the plain direction, beyond which holding others still is hopeless

# faces of each gender that have it, and that have it not; and more than this share of one gender
_ENOUGH_WITHIN, _LOPSIDED = 50, 0.75
# what an edit holds still unless it is told otherwise
_CORE = ("gender", "age", "smile", "glasses")


@dataclass(frozen=True)
class Attribute:
    """One attribute of a model: what it was learned from and how well it tells faces apart.

    `unit` is what α = 1 adds: 1 of a yes-or-no attribute, one standard deviation of one that has
    numbers (`continuous`), in its own unit. Positives and negatives are those it was learned from;
    of a continuous one, the faces above and below the average. `accuracy` (balanced, of telling
    these two apart) and `correlation` (of score and label) are held-out, None where not measured.
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
        """Refuse what a damaged file may hold."""
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


@dataclass(frozen=True)
class Examples:
    """Labelled faces: posterior means (N, D) of each and of its mirror image, labels (N, A).

    Labels are 1 and 0, or any numbers where `is_continuous` (A,), NaN where not known; faces that
    are `held_out` (N,) only measure.
    """

    latents: Tensor
    mirrored: Tensor
    values: npt.NDArray[np.float32]
    names: Sequence[str]
    is_continuous: npt.NDArray[np.bool_]
    held_out: npt.NDArray[np.bool_]


def learn(
    examples: Examples, covariance: Tensor, method: Method = "logistic"
) -> tuple[list[Attribute], Tensor, Tensor]:
    """Attributes with their directions d and scorers w, each (A, D), all of them in one pass.

    d is the regression of the latents on the label: between yes and no the difference of means
    (Panguluri & Kamarajugadda 2020, section 3), of a number one standard deviation's worth. Where
    most that have it are of one gender, and yet enough of the other, it is the mean of the
    differences among women and among men, weighted by how many faces are of either: else glasses
    are men's. (Epidemiology calls that direct standardisation.) w is
    by logistic regression; by `lda`, and for numbers and where there are few examples, it is the
    linear discriminant Σ⁻¹d, from `covariance` (D, D) of the latents of all training faces, shrunk
    towards its diagonal (Friedman 1989); by `mean` it is d itself. Attributes that no face has, or
    all have, and those of which the latents show nothing, are left out.
    """
    training = torch.from_numpy(~examples.held_out)[:, None]
    labels, is_continuous, names = _varying(examples)
    known = (~labels.isnan() & training).double()
    count, total = known.sum(0), (known * labels.nan_to_num()).sum(0)
    middle = total / count
    centred = known * (labels.nan_to_num() - middle)
    variance = centred.square().sum(0) / count
    unit = torch.where(is_continuous, variance.sqrt(), 1.0)

    latents, mirrored = (z.cpu().double() for z in (examples.latents, examples.mirrored))
    slopes = [centred.T @ z for z in (latents, mirrored)]
    # a mirrored face keeps its glasses, but looks the other way: where the two sides' slopes
    # oppose each other, as those of yaw do, mirroring has changed the label
    turn = torch.where(torch.cosine_similarity(slopes[0], slopes[1], dim=1) < _OPPOSED, -1, 1)
    direction = (slopes[0] + turn[:, None] * slopes[1]) / 2
    direction = direction * (unit / (count * variance))[:, None]
    scorer = direction if method == "mean" else _discriminant(direction, covariance)
    methods: list[Method] = ["mean" if method == "mean" else "lda"] * len(names)
    if method == "logistic":
        rarer = torch.minimum(total, count - total)
        for i in (~is_continuous & (rarer >= ENOUGH)).nonzero()[:, 0].tolist():
            rows = known[:, i].bool()
            sides = torch.cat([latents[rows], turn[i] * mirrored[rows]])
            scorer[i], methods[i] = _logistic(sides, labels[rows, i].repeat(2)), "logistic"
    difference = (scorer * direction).sum(1, keepdim=True)
    if method != "mean" and (gender := exact_match("gender", names)):
        labelled = labels.where(training, torch.nan)
        within, is_apart = _within_genders(latents, mirrored, labelled, gender[0], turn)
        reached = (scorer * within).sum(1, keepdim=True)
        is_apart = is_apart & ~is_continuous & (reached > _TINY)[:, 0]
        # another way to the same score
        within = within * difference / reached.clamp_min(_TINY)
        direction = torch.where(is_apart[:, None], within, direction)
    scorer = scorer / difference.clamp_min(_TINY)

    # a face counts as having it beyond the middle between the two averages
    cut = torch.where(is_continuous, middle, 0.5)
    average = known.T @ latents / count[:, None]
    scores = latents @ scorer.T - (scorer * average).sum(1) - (cut - middle) / unit
    measured = ~labels.isnan() & ~training
    attributes = []
    for i, name in enumerate(names):
        above, rows = labels[:, i] > cut[i], measured[:, i]
        positives = int((above & known[:, i].bool()).sum())
        attributes.append(
            Attribute(
                name,
                positives,
                int(count[i]) - positives,
                _balanced_accuracy(scores[rows, i], above[rows]),
                _correlation(scores[rows, i], labels[rows, i]),
                bool(is_continuous[i]),
                float(unit[i]),
                methods[i],
            )
        )
    spread = covariance.diag().sum().sqrt().cpu().double()
    shown = direction.norm(dim=1) > _LEAST_SHOWN * spread + _TINY
    attributes = [
        attribute for attribute, is_shown in zip(attributes, shown, strict=True) if is_shown
    ]
    return attributes, direction[shown].to(examples.latents), scorer[shown].to(examples.latents)


def _within_genders(
    latents: Tensor, mirrored: Tensor, labels: Tensor, gender: int, turn: Tensor
) -> tuple[Tensor, Tensor]:
    """The standardised difference of means, of women's and men's, and where it is to be used.

    That is where most that have it are of one gender, and yet enough of the other. Of latents
    (N, D) of faces and of their mirror images, in which a label is `turn` (A,) times what it was,
    and labels (N, A), of which `gender` is the column: (A, D) and (A,).
    """
    means, counts = [], []
    for side in (0, 1):
        for answer in (0, 1):
            those = ((labels == answer) & (labels[:, gender, None] == side)).double()
            sums = those.T @ latents + turn[:, None] * (those.T @ mirrored)
            counts.append(those.sum(0))
            means.append(sums / (2 * counts[-1].clamp_min(1))[:, None])
    _, women, _, men = counts
    is_enough = torch.stack(counts).min(0).values >= _ENOUGH_WITHIN
    is_lopsided = torch.maximum(women, men) > _LOPSIDED * (women + men)
    share = torch.stack([labels[:, gender] == 0, labels[:, gender] == 1]).double().mean(1)
    weights = share / share.sum().clamp_min(_TINY)
    within = weights[0] * (means[1] - means[0]) + weights[1] * (means[3] - means[2])
    return within, is_enough & is_lopsided


def _varying(examples: Examples) -> tuple[Tensor, Tensor, list[str]]:
    """Labels (N, A), which are continuous (A,), and the names, of attributes that differ at all."""
    training = examples.values[~examples.held_out]
    some = (~np.isnan(training)).any(0)
    low = np.where(np.isnan(training), np.inf, training).min(0, initial=np.inf)
    high = np.where(np.isnan(training), -np.inf, training).max(0, initial=-np.inf)
    found = np.flatnonzero(some & (low < high))
    labels = torch.from_numpy(examples.values[:, found]).double()
    is_continuous = torch.from_numpy(examples.is_continuous[found])
    return labels, is_continuous, [examples.names[i] for i in found.tolist()]


def _discriminant(direction: Tensor, covariance: Tensor) -> Tensor:
    covariance = covariance.cpu().double()
    spread = covariance.diag()
    least = (1e-6 * spread.mean()).clamp_min(_TINY)  # of a spread: faces may all be alike
    shrunk = (1 - SHRINKAGE) * covariance + torch.diag(SHRINKAGE * spread + least)
    scorers: Tensor = torch.linalg.solve(shrunk, direction.T).T
    return scorers


def _logistic(latents: Tensor, wanted: Tensor) -> Tensor:
    """Weights (D,) of a regularised logistic regression, by Newton's method.

    Latents (2N, D) are faces' and their mirror images', `wanted` (2N,) 1 and 0, which count alike.
    """
    spread = latents.std(0).clamp_min(_TINY)
    design = torch.cat([latents / spread, torch.ones(len(latents), 1).double()], 1)
    ridge = PENALTY * torch.eye(design.shape[1]).double()
    ridge[-1, -1] = 1e-6  # the intercept is free
    share = wanted.mean()
    # half a face each side, and half the faces' weight for each answer
    weight = torch.where(wanted > 0, 0.25 / share, 0.25 / (1 - share))
    theta = torch.zeros(design.shape[1]).double()
    for _ in range(_NEWTON_STEPS):
        chance = (design @ theta).sigmoid()
        slope = design.T @ (weight * (chance - wanted)) + ridge @ theta
        curve = (design * (weight * chance * (1 - chance))[:, None]).T @ design + ridge
        step = torch.linalg.solve(curve, slope)
        theta = theta - step
        if step.abs().max() < _SETTLED:
            break
    return theta[:-1] / spread


def _balanced_accuracy(scores: Tensor, above: Tensor) -> float | None:
    positive, negative = scores[above], scores[~above]
    if not len(positive) or not len(negative):
        return None
    return float(((positive > 0).double().mean() + (negative <= 0).double().mean()) / 2)


def _correlation(scores: Tensor, labels: Tensor) -> float | None:
    if len(scores) < 2 or scores.std() == 0 or labels.std() == 0:  # noqa: PLR2004 - a line needs two
        return None
    return float(torch.corrcoef(torch.stack([scores, labels]))[0, 1])


# ---------------------------------------------------------------- editing


def edit_directions(
    directions: Tensor, scorers: Tensor, edited: Sequence[int], kept: Sequence[int] = ()
) -> Tensor:
    """η (E, D): each moves the score of its own attribute by 1 and those of all others not at all.

    `directions` and `scorers` are (A, D); others are those edited along with it, and `kept`. With
    one edited and none kept, η is the plain direction. Raises `UsageError` where attributes are so
    alike that one cannot move without the other.
    """
    rows, device = [*edited, *kept], directions.device
    # not every device has float64
    directions, scorers = directions[rows].cpu().double(), scorers[rows].cpu().double()
    effects = directions @ scorers.T  # on the score of column j, of going along row i
    found, info = torch.linalg.inv_ex(effects)
    etas = found[: len(edited)] @ directions
    lengths = etas.norm(dim=1) / directions[: len(edited)].norm(dim=1)
    if int(info) or not bool((lengths < _LONGEST).all()):
        msg = "the attributes to edit and to keep are too alike to be told apart; keep fewer with --keep"
        raise UsageError(msg)
    plain: Tensor = etas.float().to(device)
    return plain


def core_attributes(attributes: Sequence[Attribute]) -> list[int]:
    """Which are what people ask for first: gender, age, smile and glasses, as far as there are."""
    names = [attribute.name for attribute in attributes]
    return [match[0] for word in _CORE if (match := exact_match(word, names))]


def kept_by_default(attributes: Sequence[Attribute], edited: Sequence[int]) -> list[int]:
    """Which attributes an edit holds still: gender, age, smile and glasses, as far as there are.

    Where an edited one was learned by the paper's plain means, none are.
    """
    if any(attributes[i].method == "mean" for i in edited):
        return []
    return [i for i in core_attributes(attributes) if i not in edited]


def correlations(scorers: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Spreads (A,) of the scores over training faces, in α, and their correlations (A, A)."""
    joint = scorers @ covariance @ scorers.T
    spreads = joint.diag().sqrt()
    return spreads, joint / (spreads[:, None] * spreads).clamp_min(_TINY)
