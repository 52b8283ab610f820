"""Latent arithmetic with attributes: what moves, what is held still, and what came of it."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from facevae.attribute_names import match_attribute
from facevae.attributes import edit_directions, kept_by_default
from facevae.bundle import Bundle
from facevae.errors import UsageError
from facevae.latents import combine, posteriors


@dataclass(frozen=True)
class Edit:
    """Attributes of a model to move, and those that this holds still.

    `edited` and `kept` are their names. Their scores, in this order, are read by `scorers`
    (E + K, D), and `etas` (E, D) each move one of the edited by 1 and no other. α = 1 of what was
    asked for moves the score by `signs` (E,): of age, Young by -1.
    """

    edited: list[str]
    kept: list[str]
    etas: Tensor
    scorers: Tensor
    signs: Tensor

    def apply(self, latents: Tensor, alphas: Tensor) -> Tensor:
        """w = w_new + Σ α · η: latents (N, D), alphas (N, E).

        Panguluri & Kamarajugadda 2020, section 3.
        """
        return latents + (alphas.to(self.signs) * self.signs) @ self.etas

    def scores(self, latents: Tensor) -> Tensor:
        """How much of each attribute there is in latents (N, D), in α, from an arbitrary 0: (N, E + K)."""
        return latents @ self.scorers.T


@dataclass(frozen=True)
class Outcome:
    """What an edit did to pictures, as the model sees them itself.

    `moved` (N, E + K) is how far each score went, in α. `distance` (N,) is how far the latents
    went, over the distance between two faces taken at random.
    """

    moved: Tensor
    distance: Tensor


def plan_edit(bundle: Bundle, wanted: Sequence[str], keep: Sequence[str] | None = None) -> Edit:
    """An edit of the attributes `wanted`, under any of their names, holding `keep` still.

    By default gender, age, smile and glasses are kept, as far as the model knows them and can tell
    them from what is edited; of `["none"]` nothing is, of `["all"]` all the others that can be. Raises `UsageError`.
    """
    names = [attribute.name for attribute in bundle.attributes]
    matches = [match_attribute(name, names) for name in wanted]
    edited = [index for index, _ in matches]
    if len(set(edited)) < len(edited):
        twice = next(name for i, name in enumerate(wanted) if edited[i] in edited[:i])
        msg = f"--attr {twice}: is named twice; give each attribute once, with its own --alpha"
        raise UsageError(msg)
    kept = _kept(bundle, edited, keep)
    assert bundle.directions is not None  # noqa: S101 - with attributes it has both
    assert bundle.scorers is not None  # noqa: S101
    return Edit(
        [names[i] for i in edited],
        [names[i] for i in kept],
        edit_directions(bundle.directions, bundle.scorers, edited, kept),
        bundle.scorers[[*edited, *kept]],
        torch.tensor([float(sign) for _, sign in matches]).to(bundle.scorers),
    )


def _kept(bundle: Bundle, edited: list[int], keep: Sequence[str] | None) -> list[int]:
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
    kept = dict.fromkeys(match_attribute(name, names, "--keep")[0] for name in keep)
    if both := [names[i] for i in kept if i in edited]:
        msg = f"--keep {both[0]}: is to be edited too; name it once"
        raise UsageError(msg)
    return list(kept)


def _separable(bundle: Bundle, edited: list[int], wanted: list[int]) -> list[int]:
    """Those of `wanted`, the first before the rest, that can be held still together.

    Lipstick cannot be put on with the gender held: the scores of the two are too alike.
    """
    assert bundle.directions is not None  # noqa: S101 - with attributes it has both
    assert bundle.scorers is not None  # noqa: S101
    kept: list[int] = []
    for one in wanted:
        with suppress(UsageError):
            edit_directions(bundle.directions, bundle.scorers, edited, [*kept, one])
            kept.append(one)
    return kept


def measure_edit(bundle: Bundle, edit: Edit, before: Tensor, images: Tensor) -> Outcome:
    """What became of the face in `before` (3, S, S), edited to images (N, 3, S, S), in [0, 1].

    They are compared as they come out of the encoder.
    """
    pictures = torch.cat([before[None].cpu(), images.cpu()])
    both, _ = posteriors(bundle.vae, (part.to(bundle.device) for part in pictures.split(64)))
    start, seen = both[:1], both[1:]
    return Outcome(edit.scores(seen) - edit.scores(start), relative_distance(bundle, seen - start))


def sum_of_faces(bundle: Bundle, latent: Tensor, plus: list[Tensor], minus: list[Tensor]) -> Tensor:
    """`combine` of latents (D,), no farther from the average face than the farthest of them.

    A plain sum of three faces lies about √3 times as far as each, where no faces are.
    """
    centre = bundle.latent_mean
    summed = combine(latent, plus, minus, centre)
    all_of_them = torch.stack([summed, latent, *plus, *minus])
    far, *known = relative_distance(bundle, all_of_them - centre).tolist()
    return summed if far <= max(known) else centre + (summed - centre) * (max(known) / far)


def relative_distance(bundle: Bundle, steps: Tensor) -> Tensor:
    """Lengths (N,) of steps (N, D) in latent space; 1 is between two faces taken at random.

    Mahalanobis lengths over √(2D), the root mean square of such distances.
    """
    # not every device has float64
    covariance, steps = bundle.latent_covariance.cpu().double(), steps.cpu().double()
    spread = covariance.diag()
    least = (1e-6 * spread.mean()).clamp_min(1e-12)  # of a spread: faces may all be alike
    covariance = covariance + torch.diag(1e-3 * spread + least)
    squares = (steps * torch.linalg.solve(covariance, steps.T).T).sum(1)
    distances: Tensor = squares.clamp_min(0).sqrt() / math.sqrt(2 * steps.shape[1])
    return distances.float()
