"""Refine the directions of attributes through the decoder, by what its pictures show.

A direction that is learned from latents leads to where faces with the attribute are. How much of it
shows in a picture, and what else shows, is for the decoder to say. A classifier looks at edited
faces, and its gradients turn the directions (Goetschalckx et al. 2019, "GANalyze"). The scores of
what is edited and of what is held still stay what they are, so α keeps its meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from facevae.attributes.directions import core_attributes, regularised
from facevae.attributes.samples import Examples
from facevae.data.conversion import Progress
from facevae.latent_space.edits import kept_by_default, plan_edit
from facevae.latent_space.judging import Judge
from facevae.models.bundle import Bundle
from facevae.system.runtime import Stream, generator

_STEPS = 150  # for each attribute
_LEARNING_RATE, _LAST_RATE = 5e-3, 5e-4  # at first, and at the end
_PRIOR = 0.05  # weight of the squared length of a refinement, in standard deviations of the latents
_WORKS = 0.9  # of what was asked; more may not be worth what else changes


@dataclass(frozen=True)
class Refinement:
    """What edits of held-out faces by ±1.5 did before attributes were refined, and what they do.

    The share of faces in which the classifier then sees the label that was asked for; for a
    continuous label its mean change, in standard deviations for α = 1. It is the classifier that
    turned the directions, so another one may see less.
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

    The names are among those of the examples' labels, and none was learned by the paper's means. The
    results are what became of those that were refined, and why the others were left as they were. A
    refinement that does not help on held-out faces is not kept. Raises `DataError` if labelled faces
    are too few.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        judge = Judge(bundle, examples, progress)
        core = {bundle.attributes[i].name for i in core_attributes(bundle.attributes)}
        # η of the others are made of the directions of these too
        names = sorted(names, key=lambda name: name not in core)
        reasons = {name: judge.why_blind(name) for name in names}
        before = {name: judge.measured(bundle, name) for name in names if not reasons[name]}
        for name, (_, effect) in before.items():
            if _is_enough(judge, name, effect):
                reasons[name] = "its edits do enough already"
        turns = [_Turn(bundle, name) for name in names if not reasons[name]]
        _take(turns, bundle, judge, progress)

        refined = replace(bundle)
        with torch.no_grad():
            for turn in turns:
                refined = turn.applied(refined)
            for turn in turns:
                loss = before[turn.name][0]
                reasons[turn.name] = _objection(judge, turn.name, loss, bundle, refined)
            accepted = [turn for turn in turns if not reasons[turn.name]]
            for turn in accepted:
                after = turn.applied(bundle)
                bundle.directions, bundle.interactions = after.directions, after.interactions
    refinements = {}
    for name in [turn.name for turn in accepted]:
        refinements[name] = Refinement(before[name][1], judge.measured(bundle, name)[1])
    return refinements, {name: reason for name, reason in reasons.items() if reason}


def _is_enough(judge: Judge, name: str, effect: float) -> bool:
    """Whether edits do what was asked, so that more is not worth what else may change."""
    return abs(effect - 1) <= 1 - _WORKS if judge.is_continuous(name) else effect >= _WORKS


def _objection(judge: Judge, name: str, loss: float, bundle: Bundle, refined: Bundle) -> str:
    """What speaks against a refined attribute, of which `loss` was measured before, or nothing."""
    if not judge.measured(refined, name)[0] < loss:
        return "it would not help"
    if plan_edit(refined, [name]).kept != plan_edit(bundle, [name]).kept:
        return "it would no longer hold the same attributes still"
    return ""


def _take(turns: Sequence["_Turn"], bundle: Bundle, judge: Judge, progress: Progress) -> None:
    """Fit the steps of all attributes, which take turns, in place."""
    if not turns:
        return
    current, numbers = replace(bundle), generator(0, Stream.REFINEMENT)
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
        is_it = (torch.arange(len(bundle.directions)) == self._row).to(after.device)
        return replace(
            bundle,
            directions=torch.where(is_it[:, None], after[0], bundle.directions),
            interactions=torch.where(is_it[:, None, None], after[1:], bundle.interactions),
        )
