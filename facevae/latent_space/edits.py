"""Latent arithmetic with attributes: which scores to move, which to hold still, and the outcome.

An edit is planned from names, applied to latents, and corrected by what its pictures show.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from facevae.attributes.directions import Attribute, core_attributes, regularised
from facevae.attributes.interactions import Axes
from facevae.attributes.names import match_attribute
from facevae.errors import Argument, UsageError
from facevae.latent_space.latents import combine, decode, posteriors
from facevae.models.bundle import Bundle

CHUNK = 64  # pictures drawn or encoded at a time
_MAX_STRETCH = 4.0  # a longer η, in lengths of the plain direction, cannot hold the others still
_MAX_CORRECTED = 2.5  # the same of the step that corrects a score: longer ones would break faces
_ROUNDS = 3  # of correction; each leaves about a tenth of what was missing
_TOLERANCE, _MOST = 0.02, 0.3  # α: scores that are near enough, and corrections at most
_NO_RESPONSE, _RESPONSE = (
    0.25,
    0.75,
)  # shares of a correction that show: none of it is taken, all is


@dataclass(frozen=True)
class Edit:
    """Attributes of a model to move, and others to hold still.

    `edited` and `kept` are their names. `scorers` (E + K, D) measure their scores, in this order.
    Each of `etas` (E, D) moves the score of one edited attribute by 1 and those of the others by 0.
    Where a face lies along the A `axes` changes its η by `interactions` (E, A, D), which move none of
    these scores. Asking for α = 1 moves a score by `signs` (E,), so asking for age moves Young by -1.
    `corrections` (E + K, D) each move one of all these scores by 1 and the others by 0; they are 0
    where scores are too alike for that, and of the paper's plain means.
    """

    edited: list[str]
    kept: list[str]
    etas: Tensor
    interactions: Tensor
    axes: Axes
    scorers: Tensor
    signs: Tensor
    corrections: Tensor

    def apply(self, latents: Tensor, alphas: Tensor) -> Tensor:
        """Edited latents, w = w_new + Σ α · η, of latents (N, D) and alphas (N, E).

        Panguluri & Kamarajugadda 2020, section 3, whose η is the same for all faces. Here it is that
        of the unedited face, so half of an edit twice is not quite the edit.
        """
        strengths, places = alphas.to(self.signs) * self.signs, self.axes.coordinates(latents)
        varying = torch.einsum("ne, nk, ekd -> nd", strengths, places, self.interactions)
        return latents + strengths @ self.etas + varying

    def scores(self, latents: Tensor) -> Tensor:
        """Scores (N, E + K) of latents (N, D), in α. Their zero points are arbitrary."""
        return latents @ self.scorers.T


@dataclass(frozen=True)
class Outcome:
    """Effect of an edit on pictures, as measured by the model's own encoder.

    `moved` (N, E + K) is the change of each score, in α. `distance` (N,) is the change of the
    latents, as a multiple of the distance between two random faces.
    """

    moved: Tensor
    distance: Tensor


# ---------------------------------------------------------------- planning


def plan_edit(bundle: Bundle, wanted: Sequence[str], keep: Sequence[str] | None = None) -> Edit:
    """Edit that moves the attributes `wanted`, under any of their names, and holds `keep` still.

    By default gender, age, smile and glasses are kept, as far as the model knows them and can
    separate them from what is edited. `["none"]` keeps nothing; `["all"]` keeps every other
    attribute that can be separated. Raises `UsageError`.
    """
    names = [attribute.name for attribute in bundle.attributes]
    matches = [match_attribute(name, names) for name in wanted]
    edited = [index for index, _ in matches]
    if len(set(edited)) < len(edited):
        twice = next(name for i, name in enumerate(wanted) if edited[i] in edited[:i])
        reason = ": is named twice; give each attribute once"
        raise UsageError(Argument("attribute", twice), reason)
    kept = _kept(bundle, edited, keep)
    assert bundle.directions is not None  # noqa: S101 - set together with attributes
    assert bundle.scorers is not None  # noqa: S101
    assert bundle.interactions is not None  # noqa: S101
    rows = [*edited, *kept]
    directions, scorers = bundle.directions[rows], bundle.scorers[rows]
    steps, stretch = _unit_steps(directions, scorers, len(edited))
    can_correct = stretch < _MAX_CORRECTED
    if any(bundle.attributes[i].method == "mean" for i in edited):
        can_correct = torch.zeros_like(can_correct)
    return Edit(
        [names[i] for i in edited],
        [names[i] for i in kept],
        steps[: len(edited)],
        # not those of the kept attributes, which would add more noise than they mend
        without_effect(bundle.interactions[edited], directions, scorers),
        bundle.axes,
        scorers,
        torch.tensor([float(sign) for _, sign in matches]).to(bundle.scorers),
        torch.where(can_correct[:, None].to(steps.device), steps, 0.0),
    )


def _kept(bundle: Bundle, edited: list[int], keep: Sequence[str] | None) -> list[int]:
    """Indices of the attributes to hold still, as `plan_edit` describes them."""
    names = [attribute.name for attribute in bundle.attributes]
    if keep is None:
        return _separable(bundle, edited, kept_by_default(bundle.attributes, edited))
    words = [name.casefold() for name in keep]
    if words == ["none"]:
        return []
    if words == ["all"]:
        first = kept_by_default(bundle.attributes, edited)
        rest = [i for i in range(len(names)) if i not in (*first, *edited)]
        return _separable(bundle, edited, [*first, *rest])
    kept = dict.fromkeys(match_attribute(name, names, "keep")[0] for name in keep)
    if both := [names[i] for i in kept if i in edited]:
        raise UsageError(Argument("keep", both[0]), ": is to be edited too; name it once")
    return list(kept)


def kept_by_default(attributes: Sequence[Attribute], edited: Sequence[int]) -> list[int]:
    """Indices of the attributes that an edit holds still: gender, age, smile and glasses.

    Empty if an edited attribute was learned by the paper's plain means.
    """
    if any(attributes[i].method == "mean" for i in edited):
        return []
    return [i for i in core_attributes(attributes) if i not in edited]


def _separable(bundle: Bundle, edited: list[int], candidates: list[int]) -> list[int]:
    """The candidates that can be held still together, chosen greedily in their order.

    For example, gender cannot be held still while lipstick is edited: the scores are too alike.
    """
    assert bundle.directions is not None  # noqa: S101 - set together with attributes
    assert bundle.scorers is not None  # noqa: S101
    kept: list[int] = []
    for candidate in candidates:
        with suppress(UsageError):
            edit_directions(bundle.directions, bundle.scorers, edited, [*kept, candidate])
            kept.append(candidate)
    return kept


def edit_directions(
    directions: Tensor, scorers: Tensor, edited: Sequence[int], kept: Sequence[int] = ()
) -> Tensor:
    """η (E, D): each moves the score of one edited attribute by 1 and those of the others by 0.

    `directions` and `scorers` are (A, D). The others are the remaining edited attributes and
    `kept`. With one attribute edited and none kept, η is the plain direction. Raises `UsageError`
    if attributes are so alike that one cannot move without another.
    """
    rows = [*edited, *kept]
    return _unit_steps(directions[rows], scorers[rows], len(edited))[0][: len(edited)]


def _unit_steps(directions: Tensor, scorers: Tensor, num_edited: int) -> tuple[Tensor, Tensor]:
    """Steps (R, D) of which each moves one of the scores by 1 and the others by 0.

    They are combinations of `directions` (R, D). The second result (R,), on the CPU, is their length
    as a multiple of that of the plain direction. Raises `UsageError` if one of the first `num_edited`
    is too long, or none.
    """
    device = directions.device  # not every device has float64
    directions, scorers = directions.cpu().double(), scorers.cpu().double()
    effects = directions @ scorers.T  # of a step along direction i on score j
    inverse, info = torch.linalg.inv_ex(effects)
    steps = inverse @ directions
    stretch = steps.norm(dim=1) / directions.norm(dim=1)
    if int(info):
        stretch = torch.full_like(stretch, math.inf)
    if not bool((stretch[:num_edited] < _MAX_STRETCH).all()):
        reason = "the attributes to edit and to keep are too alike to separate; keep fewer with "
        raise UsageError(reason, Argument("keep"))
    return steps.float().to(device), stretch


def without_effect(steps: Tensor, directions: Tensor, scorers: Tensor) -> Tensor:
    """Steps (…, D), less the parts along `directions` (R, D) that move the scores of `scorers`."""
    device = steps.device  # not every device has float64
    steps, directions, scorers = (t.cpu().double() for t in (steps, directions, scorers))
    moved = steps @ scorers.T
    parts = moved @ torch.linalg.pinv(directions @ scorers.T)  # a damaged file may say 0
    result: Tensor = (steps - parts @ directions).float().to(device)
    return result


# ---------------------------------------------------------------- applying


Draw = Callable[[Tensor], Tensor]
"""Latents (N, D) → images (N, 3, S, S) in [0, 1]."""


def edit_faces(
    bundle: Bundle, edit: Edit, latents: Tensor, alphas: Tensor, draw: Draw | None = None
) -> Tensor:
    """Latents (N, D), edited by alphas (N, E) so that their pictures show it.

    `Edit.apply` moves scores of latents. Of the scores that the model's encoder sees in pictures, some
    of that is lost in drawing them, and what should be held still drifts. So the edit is corrected,
    face by face, until the pictures' scores have moved by alphas, and the kept ones by nothing. An
    edit by 0 is the face itself. `draw` makes the pictures, of at most `CHUNK` latents at a time, in
    order; None is the model's decoder. Raises `UsageError` if pictures are not finite.
    """
    wanted = latents.new_zeros(len(latents), len(edit.scorers))
    wanted[:, : len(edit.signs)] = alphas.to(latents) * edit.signs
    edited = edit.apply(latents, alphas)
    if not (len(latents) and edit.corrections.any()):
        return edited

    def shown(chunk: Tensor) -> Tensor:
        images = draw(chunk) if draw else decode(bundle.vae, chunk)
        return edit.scores(posteriors(bundle.vae, [images.to(bundle.device)])[0])

    chunks = zip(latents.split(CHUNK), edited.split(CHUNK), wanted.split(CHUNK), strict=True)
    return torch.cat([_corrected(edit, *chunk, shown) for chunk in chunks])


def _corrected(
    edit: Edit, latents: Tensor, edited: Tensor, wanted: Tensor, shown: Callable[[Tensor], Tensor]
) -> Tensor:
    """`edited` latents (N, D), corrected so that the scores `shown` of them have moved by `wanted`.

    That is (N, E + K), from those of the unedited `latents`.
    """
    goal = shown(latents) + wanted
    corrections, missing = torch.zeros_like(goal), goal - shown(edited)
    can_correct = edit.corrections.any(1)
    for _ in range(_ROUNDS):
        is_off = can_correct & (missing.abs() > _TOLERANCE)
        if not is_off.any():
            break
        tried = (corrections + missing * is_off).clamp(-_MOST, _MOST)
        steps = tried - corrections
        response = missing - (goal - shown(edited + tried @ edit.corrections))
        # a smile as broad as can be becomes no broader, but the face would become another one
        is_asked = (wanted != 0) & (steps != 0)
        shares = torch.where(is_asked, _share_taken(response / steps), 1.0)
        corrections, missing = corrections + shares * steps, missing - shares * response
    return edited + corrections @ edit.corrections


def _share_taken(responses: Tensor) -> Tensor:
    """How much of a step to take if this share of it shows: without leaps, as between frames."""
    return ((responses - _NO_RESPONSE) / (_RESPONSE - _NO_RESPONSE)).clamp(0, 1)


# ---------------------------------------------------------------- measuring


def measure_edit(bundle: Bundle, edit: Edit, images: Tensor) -> Outcome:
    """Change from a face to its edits: images (1 + N, 3, S, S) in [0, 1], the face first.

    All are encoded again, so the outcome is about the pictures and not the latents behind them.
    """
    latents, _ = posteriors(bundle.vae, (part.to(bundle.device) for part in images.split(CHUNK)))
    moved, steps = edit.scores(latents) - edit.scores(latents[:1]), latents - latents[:1]
    return Outcome(moved[1:], relative_distance(bundle, steps[1:]))


def sum_of_faces(bundle: Bundle, latent: Tensor, plus: list[Tensor], minus: list[Tensor]) -> Tensor:
    """`combine` of latents (D,), pulled in to be as near the average face as the farthest of them.

    A plain sum of three faces lies about √3 times as far out as each of them, where no faces are.
    """
    centre = bundle.latent_mean
    combined = combine(latent, plus, minus, centre)
    stacked = torch.stack([combined, latent, *plus, *minus])
    distance, *known = relative_distance(bundle, stacked - centre).tolist()
    limit = max(known)
    return combined if distance <= limit else centre + (combined - centre) * (limit / distance)


def relative_distance(bundle: Bundle, steps: Tensor) -> Tensor:
    """Lengths (N,) of steps (N, D) in latent space; 1 is the distance between two random faces.

    Mahalanobis lengths divided by √(2D), the root mean square of such distances.
    """
    covariance = regularised(bundle.latent_covariance, loading=1e-3)
    steps = steps.cpu().double()
    squares = (steps * torch.linalg.solve(covariance, steps.T).T).sum(1)
    distances: Tensor = squares.clamp_min(0).sqrt() / math.sqrt(2 * steps.shape[1])
    return distances.float()
