"""Refine the directions of attributes through the decoder, by what its pictures show.

A direction that is learned from latents leads to where faces with the attribute are. How much of it
shows in a picture, and what else shows, is for the decoder to say. A classifier looks at edited
faces, and its gradients turn the directions (Goetschalckx et al. 2019, "GANalyze"). The scores of
what is edited and of what is held still stay what they are, so α keeps its meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from facevae.attributes.directions import regularised
from facevae.attributes.samples import Examples
from facevae.latent_space.edits import kept_by_default
from facevae.latent_space.judging import Judge, Progress
from facevae.models.bundle import Bundle
from facevae.system.runtime import Stream, generator

_STEPS = 200  # for each attribute
_LEARNING_RATE, _LAST_RATE = 5e-3, 5e-4  # at first, and at the end
_PRIOR = 0.05  # weight of the squared length of a refinement, in standard deviations of the latents
_WORKS = 0.95  # share of edits that do what was asked; more may not be worth what else changes


@dataclass(frozen=True)
class Refinement:
    """What edits of held-out faces by ±1.5 did before an attribute was refined, and what they do.

    The share of faces in which a classifier then sees the label that was asked for; for a continuous
    label its mean change, in standard deviations for α = 1.
    """

    before: float
    after: float


def refine_attributes(
    bundle: Bundle,
    examples: Examples,
    names: Sequence[str],
    progress: Progress = lambda _task, _done, _total: None,
) -> tuple[dict[str, Refinement], dict[str, str]]:
    """Refine directions and interactions of the attributes `names` of a model, in place.

    The names are among those of the examples' labels. The results are what became of those that were
    refined, and why the others were left as they were. A refinement that does not help on held-out
    faces is not kept. Raises `DataError` if labelled faces are too few.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        judge = Judge(bundle, examples, progress)
        methods = {attribute.name: attribute.method for attribute in bundle.attributes}
        refinements: dict[str, Refinement] = {}
        reasons = {
            name: "it was learned by the paper's means"
            if methods[name] == "mean"
            else judge.why_blind(name)
            for name in names
        }
        before = {name: judge.measured(bundle, name) for name in names if not reasons[name]}
        for name, (_, effect) in before.items():
            if effect >= _WORKS:
                reasons[name] = f"{_WORKS:.0%} of its edits or more work already"
        chosen = [name for name in names if not reasons[name]]
        refined = _refined(bundle, judge, chosen, progress)
        for name in chosen:
            candidate = _with_attribute_of(refined, bundle, name)
            loss, effect = judge.measured(candidate, name)
            if loss < before[name][0]:
                bundle.directions, bundle.interactions = (
                    candidate.directions,
                    candidate.interactions,
                )
                refinements[name] = Refinement(before[name][1], effect)
            else:
                reasons[name] = "it would not help"
    return refinements, {name: reason for name, reason in reasons.items() if reason}


def _refined(bundle: Bundle, judge: Judge, names: Sequence[str], progress: Progress) -> Bundle:
    """A model like `bundle` with refined directions and interactions, which take turns."""
    current, numbers = replace(bundle), generator(0, Stream.REFINEMENT)
    if not names:
        return current
    turns = [_Turn(bundle, name) for name in names]
    optimizer = torch.optim.Adam([turn.whitened for turn in turns], _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, _LAST_RATE / _LEARNING_RATE, _STEPS
    )
    for step in range(_STEPS):
        for number, turn in enumerate(turns):
            loss = judge.loss(turn.applied(current), turn.name, numbers)
            loss = loss + _PRIOR * turn.moved.square().sum()
            optimizer.zero_grad()  # those without a gradient stay as they are
            (turn.whitened.grad,) = torch.autograd.grad(loss, [turn.whitened])
            optimizer.step()
            with torch.no_grad():
                current = turn.applied(current)
            progress("Refining", step * len(turns) + number + 1, _STEPS * len(turns))
        schedule.step()
    return current


class _Turn:
    """The refinement of one attribute: steps for its direction and interactions, (1 + K, D).

    `whitened` are the steps in standard deviations of the latents, which are likely to be short.
    What they would change of the scores of the attribute and of those it holds still is left out.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.name = name
        self._row = [attribute.name for attribute in bundle.attributes].index(name)
        assert bundle.directions is not None  # noqa: S101 - set together with attributes
        assert bundle.scorers is not None  # noqa: S101
        assert bundle.interactions is not None  # noqa: S101
        self._before = torch.cat(
            [bundle.directions[self._row, None], bundle.interactions[self._row]]
        )
        root = torch.linalg.cholesky(regularised(bundle.latent_covariance, loading=1e-3))
        rows = [self._row, *kept_by_default(bundle.attributes, [self._row])]
        scored = bundle.scorers[rows].cpu().double() @ root
        self._scored = torch.linalg.qr(scored.T)[0].float().to(bundle.device)  # (D, R)
        self._root = root.float().to(bundle.device)
        self.whitened = torch.zeros_like(self._before, requires_grad=True)

    @property
    def moved(self) -> torch.Tensor:
        """The steps (1 + K, D), whitened, without an effect on scores."""
        moved: torch.Tensor = self.whitened - (self.whitened @ self._scored) @ self._scored.T
        return moved

    def applied(self, bundle: Bundle) -> Bundle:
        """A model with this attribute's steps taken."""
        after = self._before + self.moved @ self._root.T
        assert bundle.directions is not None  # noqa: S101 - set together with attributes
        assert bundle.interactions is not None  # noqa: S101
        row = torch.tensor([self._row], device=after.device)
        return replace(
            bundle,
            directions=bundle.directions.index_copy(0, row, after[:1]),
            interactions=bundle.interactions.index_copy(0, row, after[None, 1:]),
        )


def _with_attribute_of(refined: Bundle, bundle: Bundle, name: str) -> Bundle:
    """A model like `bundle`, with the direction and interactions of an attribute in `refined`."""
    is_it = torch.tensor([a.name == name for a in bundle.attributes], device=bundle.device)
    assert refined.directions is not None  # noqa: S101 - set together with attributes
    assert refined.interactions is not None  # noqa: S101
    assert bundle.directions is not None  # noqa: S101
    assert bundle.interactions is not None  # noqa: S101
    return replace(
        bundle,
        directions=torch.where(is_it[:, None], refined.directions, bundle.directions),
        interactions=torch.where(is_it[:, None, None], refined.interactions, bundle.interactions),
    )
