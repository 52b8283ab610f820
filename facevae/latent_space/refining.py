"""Refine the directions of attributes through the decoder, by what its pictures show.

A direction that is learned from latents leads to where faces with the attribute are. How much of it
shows, and what else shows, is for the decoder to say. A classifier that was trained on its pictures
of labelled faces looks at edited ones, and its gradients turn the directions (Goetschalckx et al.
2019, "GANalyze"). The scores of what is edited and what is held still stay what they are, so α keeps
its meaning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facevae.attributes.classifier import (
    SIDE,
    Answers,
    AttributeClassifier,
    reduced,
    train_classifier,
)
from facevae.attributes.directions import regularised
from facevae.attributes.samples import Examples, Sample
from facevae.config import TRUE_TEXTURE
from facevae.data.augment import NUM_CHANGES, change, draw_changes
from facevae.data.dataset import Rows
from facevae.errors import DataError
from facevae.latent_space.edits import Edit, kept_by_default, plan_edit
from facevae.models.bundle import Bundle
from facevae.system.runtime import Stream, generator, training_precision

FEWEST = 1000  # labelled training faces
_FEWEST_OF_KIND = 100  # training faces with an attribute, and without it
_MOST, _MOST_HELD_OUT = 20_000, 2000  # training and held-out faces that are looked at
_CLEAR = 0.7  # balanced accuracy of a classifier that can see an attribute
_STEPS = 200  # for each attribute
_BATCH = 16
_LEARNING_RATE, _LAST_RATE = 5e-3, 5e-4  # at first, and at the end
_ALPHAS = (0.8, 1.6)
_MARGIN = 1.0  # logit beyond which an answer gains little
_HELD = 0.3  # weight of what is to be held still
_PRIOR = (
    0.05  # weight of the squared length of the refinement, in standard deviations of the latents
)
_COLOURS, _CELLS = 100.0, 8  # weight of changed colours of so many parts of the side
_MEASURED, _MEASURED_ALPHA = 48, 1.5  # held-out faces of each kind, and their edits
_WORKS = 0.95  # share of edits that do what was asked; more may not be worth what else changes


@dataclass(frozen=True)
class Refinement:
    """What edits of held-out faces by ±1.5 did before an attribute was refined, and what they do.

    The share of faces that the classifier then sees with the label that was asked for; for a
    continuous label its mean change, in standard deviations for α = 1.
    """

    before: float
    after: float


@dataclass(frozen=True)
class _Faces:
    """Faces to refine with: latents (N, D), labels, what their answers are, and who is for what."""

    latents: Tensor
    sample: Sample
    answers: Answers
    training: Tensor
    held_out: Tensor

    def of_kind(self, column: int, sign: int, rows: Tensor) -> Tensor:
        """Those of `rows` that lack what an edit by α of this sign adds; all for a number."""
        known = rows[self.answers.known[rows, column]]
        if self.sample.is_continuous[column]:
            return known
        return known[(self.sample.labels[known, column] > 0) != (sign > 0)]


def refine_attributes(
    bundle: Bundle,
    examples: Examples,
    names: Sequence[str],
    progress: Callable[[str, int, int], None] = lambda _title, _done, _total: None,
) -> tuple[dict[str, Refinement], dict[str, str]]:
    """Refine directions and interactions of the attributes `names` of a model, in place.

    The results are what became of those that were refined, and why the others were left as they were.
    A refinement that does not help on held-out faces is not kept. `progress` is told of steps done
    and to do. Raises `DataError` if labelled faces are too few.
    """
    faces = _chosen(examples)
    with torch.inference_mode(mode=False), torch.enable_grad():
        pictures = _pictures(bundle, faces.latents, progress)
        classifier = train_classifier(
            pictures,
            faces.answers,
            faces.training,
            bundle.device,
            lambda *done: progress("Training a classifier", *done),
        )
        reasons = {name: _reason(bundle, classifier, pictures, faces, name) for name in names}
        before = {}
        for name in [name for name in names if not reasons[name]]:
            before[name] = loss, effect = _measured(bundle, classifier, faces, name)
            if effect >= _WORKS:
                reasons[name] = f"{_WORKS:.0%} of its edits or more work already"
        chosen = [name for name in names if not reasons[name]]
        refined = _refined(bundle, classifier, faces, chosen, progress) if chosen else bundle
        refinements = {}
        for name in chosen:
            candidate = _with_attribute_of(refined, bundle, name)
            loss, effect = _measured(candidate, classifier, faces, name)
            if loss < before[name][0]:
                bundle.directions, bundle.interactions = (
                    candidate.directions,
                    candidate.interactions,
                )
                refinements[name] = Refinement(before[name][1], effect)
            else:
                reasons[name] = "it would not help"
    return refinements, {name: reason for name, reason in reasons.items() if reason}


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


def _chosen(examples: Examples) -> _Faces:
    """The labelled faces, or some of them if they are many. Raises `DataError`."""
    is_labelled = ~np.isnan(examples.values).all(1)
    training, held_out = (
        _some(np.flatnonzero(is_labelled & group), most)
        for group, most in ((~examples.held_out, _MOST), (examples.held_out, _MOST_HELD_OUT))
    )
    if len(training) < FEWEST or not len(held_out):
        msg = f"{len(training):,} labelled faces are too few to refine directions with; it takes {FEWEST:,}"
        raise DataError(msg)
    rows = np.concatenate([training, held_out])
    chosen = torch.from_numpy(rows).to(examples.latents.device)
    sample = Sample(
        replace(
            examples,
            latents=examples.latents[chosen],
            mirrored=examples.mirrored[chosen],
            values=examples.values[rows],
            held_out=examples.held_out[rows],
        )
    )
    return _Faces(
        examples.latents[chosen],
        sample,
        Answers.of(sample),
        torch.arange(len(training)),
        torch.arange(len(training), len(rows)),
    )


def _some(rows: Rows, most: int) -> Rows:
    """At most `most` of the rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    chosen: Rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
    return chosen


def _pictures(bundle: Bundle, latents: Tensor, progress: Callable[[str, int, int], None]) -> Tensor:
    """What the decoder makes of latents (N, D), as bytes (N, 3, 96, 96)."""
    found = torch.empty(len(latents), 3, SIDE, SIDE, dtype=torch.uint8)
    chunks = torch.arange(len(latents)).split(4 * _BATCH)
    with torch.no_grad(), training_precision(bundle.device):
        for rows in chunks:
            images = _decode(bundle, latents[rows])
            found[rows] = (reduced(images).clamp(0, 1) * 255).round().byte().cpu()
            progress("Drawing faces", int(rows[-1]) + 1, len(latents))
    return found


def _decode(bundle: Bundle, latents: Tensor) -> Tensor:
    """Images (B, 3, S, S) of latents (B, D) on any device."""
    return bundle.vae.decode(latents.to(bundle.device), TRUE_TEXTURE).float()


def _reason(
    bundle: Bundle, classifier: AttributeClassifier, pictures: Tensor, faces: _Faces, name: str
) -> str:
    """Why an attribute cannot be refined; empty if it can."""
    attribute = next(a for a in bundle.attributes if a.name == name)
    if attribute.method == "mean":
        return "it was learned by the paper's means"
    column = faces.sample.names.index(name)
    if faces.sample.smaller_group[column] < _FEWEST_OF_KIND:
        return f"fewer than {_FEWEST_OF_KIND} labelled faces have it, or lack it"
    kinds = [faces.of_kind(column, sign, faces.held_out) for sign in (-1, 1)]
    if faces.sample.is_continuous[column]:
        place = faces.answers.right[0, kinds[0], column]
        kinds = [kinds[0][place > 0], kinds[0][place <= 0]]
    if not all(map(len, kinds)):
        return "no held-out faces have it, or none lack it"
    rates = []
    for rows, sign in zip(kinds, (1, -1), strict=True):
        with torch.no_grad(), training_precision(bundle.device):
            parts = [pictures[part].to(bundle.device) / 255 for part in rows.split(4 * _BATCH)]
            seen = torch.cat([classifier(part)[:, column] for part in parts])
        rates.append((seen * sign > 0).double().mean().item())
    accuracy = sum(rates) / len(rates)
    return (
        ""
        if accuracy >= _CLEAR
        else f"a classifier cannot see it well (less than {_CLEAR:.0%} right)"
    )


def _refined(
    bundle: Bundle,
    classifier: AttributeClassifier,
    faces: _Faces,
    names: Sequence[str],
    progress: Callable[[str, int, int], None],
) -> Bundle:
    """A model like `bundle` with refined directions and interactions, taking turns."""
    steps = [_Turn(bundle, name) for name in names]
    optimizer = torch.optim.Adam([turn.whitened for turn in steps], _LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, _LAST_RATE / _LEARNING_RATE, _STEPS)
    numbers = generator(0, Stream.REFINEMENT)
    current = replace(bundle)
    for done in range(_STEPS):
        for number, turn in enumerate(steps):
            loss = _loss(turn.applied(current), classifier, faces, turn.name, numbers)
            loss = loss + _PRIOR * turn.moved.square().sum()
            optimizer.zero_grad()  # those without a gradient stay as they are
            (turn.whitened.grad,) = torch.autograd.grad(loss, [turn.whitened])
            optimizer.step()
            with torch.no_grad():
                current = turn.applied(current)
            progress("Refining", done * len(steps) + number + 1, _STEPS * len(steps))
        decay.step()
    return current


class _Turn:
    """The refinement of one attribute: steps for its direction and interactions, (1 + K, D).

    `whitened` are the steps in standard deviations of the latents, which are likely to be short.
    What they would change of the scores of the attribute and of those it holds still is left out.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.name = name
        self.row = next(i for i, a in enumerate(bundle.attributes) if a.name == name)
        assert bundle.directions is not None  # noqa: S101 - set together with attributes
        assert bundle.scorers is not None  # noqa: S101
        assert bundle.interactions is not None  # noqa: S101
        self.before = torch.cat([bundle.directions[self.row, None], bundle.interactions[self.row]])
        root = torch.linalg.cholesky(regularised(bundle.latent_covariance, loading=1e-3))
        rows = [self.row, *kept_by_default(bundle.attributes, [self.row])]
        scored = bundle.scorers[rows].cpu().double() @ root
        self._scored = torch.linalg.qr(scored.T)[0].float().to(bundle.device)  # (D, R)
        self._root = root.float().to(bundle.device)
        self.whitened = torch.zeros_like(self.before, requires_grad=True)

    @property
    def moved(self) -> Tensor:
        """The steps (1 + K, D), whitened, without an effect on scores."""
        moved: Tensor = self.whitened - (self.whitened @ self._scored) @ self._scored.T
        return moved

    def applied(self, bundle: Bundle) -> Bundle:
        """A model with this attribute's steps taken."""
        after = self.before + self.moved @ self._root.T
        assert bundle.directions is not None  # noqa: S101 - set together with attributes
        assert bundle.interactions is not None  # noqa: S101
        row = torch.tensor([self.row], device=after.device)
        return replace(
            bundle,
            directions=bundle.directions.index_copy(0, row, after[:1]),
            interactions=bundle.interactions.index_copy(0, row, after[None, 1:]),
        )


def _loss(
    bundle: Bundle,
    classifier: AttributeClassifier,
    faces: _Faces,
    name: str,
    numbers: torch.Generator,
) -> Tensor:
    """How far edits of random faces are from what was asked, as the classifier sees them."""
    edit, column = plan_edit(bundle, [name]), faces.sample.names.index(name)
    rows, signs = [], []
    for sign in (1, -1):
        kind = faces.of_kind(column, sign, faces.training)
        rows.append(kind[torch.randint(len(kind), (_BATCH // 2,), generator=numbers)])
        signs.append(torch.full((_BATCH // 2,), float(sign)))
    alphas = torch.cat(signs) * torch.empty(_BATCH).uniform_(*_ALPHAS, generator=numbers)
    changes = draw_changes(_BATCH, numbers).to(bundle.device)
    latents = faces.latents[torch.cat(rows)].to(bundle.device)
    alphas = alphas.to(bundle.device)
    return _Seen.of(bundle, classifier, edit, latents, alphas, changes).loss(faces, edit, alphas)


@dataclass(frozen=True)
class _Seen:
    """What a classifier sees (B, A) in faces and in their edits, and how the colours change."""

    before: Tensor
    after: Tensor
    recoloured: Tensor

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        classifier: AttributeClassifier,
        edit: Edit,
        latents: Tensor,
        alphas: Tensor,
        changes: Tensor | None = None,
    ) -> "_Seen":
        """Look at faces, latents (B, D), and at their edits by alphas (B,), with the same changes."""
        if changes is None:
            changes = latents.new_zeros(len(latents), NUM_CHANGES)
        # asked for by their own names, attributes move as they are
        edited = edit.apply(latents, alphas[:, None] * edit.signs)
        with training_precision(bundle.device):
            with torch.no_grad():
                plain = _decode(bundle, latents)
                before = classifier(change(reduced(plain), changes))
            made = _decode(bundle, edited)
            after = classifier(change(reduced(made), changes))
        colours, new_colours = (
            functional.adaptive_avg_pool2d(images, _CELLS) for images in (plain, made)
        )
        recoloured = functional.mse_loss(new_colours, colours)
        return cls(before.float(), after.float(), recoloured)

    def loss(self, faces: _Faces, edit: Edit, alphas: Tensor) -> Tensor:
        """What is missing of the edit, and what it changes besides."""
        names = faces.sample.names
        column = names.index(edit.edited[0])
        moved, seen = self.after - self.before, self.after[:, column]
        if faces.sample.is_continuous[column]:
            missing = functional.huber_loss(moved[:, column], alphas)
        else:
            missing = functional.softplus(_MARGIN - alphas.sign() * seen).mean()
        kept = [names.index(name) for name in edit.kept if name in names]
        held = functional.huber_loss(
            self.after[:, kept], self.before[:, kept], reduction="none"
        ).sum(1)
        return missing + _HELD * held.mean() + _COLOURS * self.recoloured


def _measured(
    bundle: Bundle, classifier: AttributeClassifier, faces: _Faces, name: str
) -> tuple[float, float]:
    """The loss of edits of held-out faces, and what they do, as `Refinement` says."""
    edit, column = plan_edit(bundle, [name]), faces.sample.names.index(name)
    rows, signs = [], []
    for sign in (1, -1):
        kind = faces.of_kind(column, sign, faces.held_out)
        kind = torch.from_numpy(_some(kind.numpy(), _MEASURED))
        rows.append(kind)
        signs.append(torch.full((len(kind),), float(sign)))
    latents = faces.latents[torch.cat(rows)].to(bundle.device)
    alphas = _MEASURED_ALPHA * torch.cat(signs).to(bundle.device)
    with torch.no_grad():
        seen = _Seen.of(bundle, classifier, edit, latents, alphas)
        loss = seen.loss(faces, edit, alphas).item()
    after = seen.after[:, column]
    if faces.sample.is_continuous[column]:
        return loss, ((after - seen.before[:, column]) / alphas).mean().item()
    return loss, (after * alphas > 0).double().mean().item()
