"""Judge edits of faces by what shows in their pictures, with a classifier trained on such pictures."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facevae.attributes.classifier import SIDE, Answers, reduced, train_classifier
from facevae.attributes.names import are_alike
from facevae.attributes.samples import Examples, Sample
from facevae.config import TRUE_TEXTURE
from facevae.data.augment import NUM_CHANGES, change, draw_changes
from facevae.data.conversion import Progress
from facevae.data.dataset import Rows
from facevae.errors import DataError
from facevae.latent_space.edits import plan_edit
from facevae.models.bundle import Bundle
from facevae.system.runtime import training_precision

_FEWEST = 1000  # labelled training faces
_FEWEST_OF_KIND, _FEWEST_HELD_OUT = 100, 10  # training and held-out faces of each kind
_MOST, _MOST_HELD_OUT = 20_000, 2000  # training and held-out faces that are looked at
_CLEAR = 0.7  # balanced accuracy of a classifier that can see an attribute
_CHUNK = 64  # faces drawn at a time
_BATCH, _ALPHAS = 16, (0.8, 1.6)  # random faces, and their edits
_MEASURED, _MEASURED_ALPHA = 48, 1.5  # held-out faces of each kind, and their edits
_MARGIN = 1.0  # logit beyond which an answer gains little
_HELD = 0.3  # weight of what is to be held still
_COLOURS, _CELLS = 100.0, 8  # weight of changed colours, of so many parts of the side


class Judge:
    """Knows labelled faces, and sees attributes in pictures of a model's decoder.

    Edits are judged as `Edit.apply` makes them, before they are corrected by what the encoder sees.
    """

    def __init__(self, bundle: Bundle, examples: Examples, progress: Progress) -> None:
        """Train a classifier on what the decoder makes of the faces.

        Raises `DataError` if they are too few.
        """
        self._device = bundle.device
        rows, num_training = _chosen(examples)
        chosen = torch.from_numpy(rows).to(examples.latents.device)
        self._latents = examples.latents[chosen]
        self._sample = Sample(
            replace(
                examples,
                latents=self._latents,
                mirrored=examples.mirrored[chosen],
                values=examples.values[rows],
                held_out=examples.held_out[rows],
            )
        )
        self._answers = Answers.of(self._sample)
        self._training, self._held_out = torch.arange(len(rows)).tensor_split([num_training])
        pictures = _pictures(bundle, self._latents, progress)
        self._classifier = train_classifier(
            pictures,
            self._answers,
            self._training,
            self._device,
            lambda *done: progress("Training a classifier", *done),
        )
        with torch.no_grad(), training_precision(self._device):
            parts = pictures[self._held_out].split(_CHUNK)
            seen = [self._classifier(part.to(self._device) / 255).float() for part in parts]
        self._seen_held_out = torch.cat(seen).cpu()

    def why_blind(self, name: str) -> str:
        """Why edits of an attribute cannot be judged; empty if they can be."""
        too_few = f"too few labelled faces are of either kind (it takes {_FEWEST_OF_KIND} of each)"
        if name not in self._sample.names:
            return too_few
        column = self._sample.names.index(name)
        known = self._answers.known[self._held_out, column]
        right = self._answers.right[0, self._held_out, column]
        has = right > (0.0 if self._sample.is_continuous[column] else 0.5)
        seen = self._seen_held_out[:, column] > 0
        groups = has & known, ~has & known
        if (
            self._sample.smaller_group[column] < _FEWEST_OF_KIND
            or min(int(group.sum()) for group in groups) < _FEWEST_HELD_OUT
        ):
            return too_few
        accuracy = sum((seen == has)[group].double().mean().item() / 2 for group in groups)
        return "" if accuracy >= _CLEAR else "a classifier does not see it well"

    def is_continuous(self, name: str) -> bool:
        """Whether the labels of an attribute are numbers."""
        return bool(self._sample.is_continuous[self._sample.names.index(name)])

    def loss(self, bundle: Bundle, name: str, numbers: torch.Generator) -> Tensor:
        """How far a model's edits of random training faces are from what was asked."""
        rows, signs = [], []
        for sign in (1, -1):
            kind = self._lacking(name, sign, self._training)
            rows.append(kind[torch.randint(len(kind), (_BATCH // 2,), generator=numbers)])
            signs.append(torch.full((_BATCH // 2,), float(sign)))
        alphas = torch.cat(signs) * torch.empty(_BATCH).uniform_(*_ALPHAS, generator=numbers)
        look = self._look(bundle, name, torch.cat(rows), alphas, draw_changes(_BATCH, numbers))
        return self._missing(look, name)

    def measured(self, bundle: Bundle, name: str) -> tuple[float, float]:
        """The same loss of held-out faces edited by ±1.5, and what these edits do.

        That is the share of faces that are then seen with the label that was asked for; for a
        continuous label its mean change, in standard deviations for α = 1. Adding and taking away
        count the same.
        """
        column, figures = self._sample.names.index(name), []
        for sign in (1, -1):
            rows = torch.from_numpy(
                _some(self._lacking(name, sign, self._held_out).numpy(), _MEASURED)
            )
            alphas = torch.full((len(rows),), sign * _MEASURED_ALPHA)
            with torch.no_grad():
                look = self._look(bundle, name, rows, alphas, torch.zeros(len(rows), NUM_CHANGES))
                loss = self._missing(look, name).item()
            if self.is_continuous(name):
                done = (look.after - look.before)[:, column] / look.alphas
            else:
                done = (look.after[:, column] * look.alphas > 0).float()
            figures.append((loss, done.mean().item()))
        losses, effects = zip(*figures, strict=True)
        return sum(losses) / 2, sum(effects) / 2

    def _lacking(self, name: str, sign: int, rows: Tensor) -> Tensor:
        """Those of `rows` that lack what an edit by α of this sign adds; all for a number."""
        column = self._sample.names.index(name)
        known = rows[self._answers.known[rows, column]]
        if self._sample.is_continuous[column]:
            return known
        return known[(self._sample.labels[known, column] > 0) != (sign > 0)]

    def _look(
        self, bundle: Bundle, name: str, rows: Tensor, alphas: Tensor, changes: Tensor
    ) -> "_Look":
        """Look at the faces `rows` (B,) and at their edits by alphas (B,), with the same changes."""
        edit = plan_edit(bundle, [name])
        latents = self._latents[rows.to(self._latents.device)]
        latents, alphas, changes = (t.to(self._device) for t in (latents, alphas, changes))
        with torch.no_grad():
            plain, before = self._seen(bundle, latents, changes)
        made, after = self._seen(bundle, edit.apply(latents, alphas[:, None]), changes)
        old, new = (functional.adaptive_avg_pool2d(images, _CELLS) for images in (plain, made))
        return _Look(edit.kept, alphas, before, after, functional.mse_loss(new, old))

    def _seen(self, bundle: Bundle, latents: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures of latents (B, D), and what the classifier sees in them (B, A) after changes."""
        with training_precision(self._device):
            made = bundle.vae.decode(latents, TRUE_TEXTURE).float()
        changed = change(reduced(made), changes)
        with training_precision(self._device):
            return made, self._classifier(changed).float()

    def _missing(self, look: "_Look", name: str) -> Tensor:
        """What is missing of an edit of `name`, and what it changes besides."""
        column, before, after = self._sample.names.index(name), look.before, look.after
        if self.is_continuous(name):
            missing = functional.huber_loss((after - before)[:, column], look.alphas)
        else:
            wanted = look.alphas.sign() * after[:, column]
            missing = functional.softplus(_MARGIN - wanted).mean()
        labels = enumerate(self._sample.names)
        kept = [i for i, label in labels if any(are_alike(label, other) for other in look.kept)]
        kept = [i for i in kept if i != column]
        held = functional.huber_loss(after[:, kept], before[:, kept], reduction="none")
        return missing + _HELD * held.sum(1).mean() + _COLOURS * look.recoloured


@dataclass(frozen=True)
class _Look:
    """What a classifier sees (B, A) before and after an edit by `alphas` (B,) that holds `kept`.

    `recoloured` is the mean squared change of colours, averaged over parts of the picture.
    """

    kept: list[str]
    alphas: Tensor
    before: Tensor
    after: Tensor
    recoloured: Tensor


def _chosen(examples: Examples) -> tuple[Rows, int]:
    """Rows of labelled faces, and how many of them, the first ones, are for training."""
    is_labelled = ~np.isnan(examples.values).all(1)
    training = _some(np.flatnonzero(is_labelled & ~examples.held_out), _MOST)
    held_out = _some(np.flatnonzero(is_labelled & examples.held_out), _MOST_HELD_OUT)
    if len(training) < _FEWEST:
        msg = f"{len(training):,} labelled training faces are too few to refine directions with; it takes {_FEWEST:,}"
        raise DataError(msg)
    if not len(held_out):
        msg = "no labelled face is held out, to see whether a refined direction helps; label more"
        raise DataError(msg)
    return np.concatenate([training, held_out]), len(training)


def _some(rows: Rows, most: int) -> Rows:
    """At most `most` of the rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    chosen: Rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
    return chosen


def _pictures(bundle: Bundle, latents: Tensor, progress: Progress) -> Tensor:
    """What the decoder makes of latents (N, D), as bytes (N, 3, 96, 96)."""
    found = torch.empty(len(latents), 3, SIDE, SIDE, dtype=torch.uint8)
    with torch.no_grad(), training_precision(bundle.device):
        for rows in torch.arange(len(latents)).split(_CHUNK):
            made = bundle.vae.decode(latents[rows].to(bundle.device), TRUE_TEXTURE).float()
            found[rows] = (reduced(made).clamp(0, 1) * 255).round().byte().cpu()
            progress("Drawing faces", int(rows[-1]) + 1, len(latents))
    return found
