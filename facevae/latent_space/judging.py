"""Judge edits of faces by what shows in their pictures, with a classifier trained on such pictures."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facevae.attributes.classifier import SIDE, Answers, reduced, train_classifier
from facevae.attributes.samples import Examples, Sample
from facevae.config import TRUE_TEXTURE
from facevae.data.augment import NUM_CHANGES, change, draw_changes
from facevae.data.dataset import Rows
from facevae.errors import DataError
from facevae.latent_space.edits import plan_edit
from facevae.models.bundle import Bundle
from facevae.system.runtime import training_precision

FEWEST = 1000  # labelled training faces
_FEWEST_OF_KIND = 100  # training faces with an attribute, and without it
_MOST, _MOST_HELD_OUT = 20_000, 2000  # training and held-out faces that are looked at
_CLEAR = 0.7  # balanced accuracy of a classifier that can see an attribute
_CHUNK = 64  # faces drawn at a time
_BATCH, _ALPHAS = 16, (0.8, 1.6)  # random faces, and their edits
_MEASURED, _MEASURED_ALPHA = 48, 1.5  # held-out faces of each kind, and their edits
_MARGIN = 1.0  # logit beyond which an answer gains little
_HELD = 0.3  # weight of what is to be held still
_COLOURS, _CELLS = 100.0, 8  # weight of changed colours, of so many parts of the side

Progress = Callable[[str, int, int], None]
"""Is told a task, and of its steps done and to do."""


class Judge:
    """Knows labelled faces, and sees attributes in pictures of a model's decoder."""

    def __init__(self, bundle: Bundle, examples: Examples, progress: Progress) -> None:
        """Train a classifier on what the decoder makes of the faces. Raises `DataError`.

        The error is for faces that are too few.
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
        self._pictures = _pictures(bundle, self._latents, progress)
        self._classifier = train_classifier(
            self._pictures,
            self._answers,
            self._training,
            self._device,
            lambda *done: progress("Training a classifier", *done),
        )

    def why_blind(self, name: str) -> str:
        """Why edits of an attribute cannot be judged; empty if they can be."""
        column = self._sample.names.index(name)
        if self._sample.smaller_group[column] < _FEWEST_OF_KIND:
            return f"fewer than {_FEWEST_OF_KIND} labelled faces have it, or lack it"
        known = self._held_out[self._answers.known[self._held_out, column]]
        right = self._answers.right[0, known, column]
        threshold = 0.0 if self._sample.is_continuous[column] else 0.5
        groups = known[right > threshold], known[right <= threshold]
        if not all(map(len, groups)):
            return "no held-out faces have it, or none lack it"
        accuracy = sum(
            (self._seen(rows)[:, column] * sign > 0).double().mean().item() / 2
            for rows, sign in zip(groups, (1, -1), strict=True)
        )
        return "" if accuracy >= _CLEAR else "a classifier does not see it well"

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
        continuous label its mean change, in standard deviations for α = 1.
        """
        rows, signs = [], []
        for sign in (1, -1):
            kind = self._lacking(name, sign, self._held_out)
            rows.append(torch.from_numpy(_some(kind.numpy(), _MEASURED)))
            signs.append(torch.full((len(rows[-1]),), float(sign)))
        alphas, faces = _MEASURED_ALPHA * torch.cat(signs), torch.cat(rows)
        column = self._sample.names.index(name)
        with torch.no_grad():
            look = self._look(bundle, name, faces, alphas, torch.zeros(len(faces), NUM_CHANGES))
            loss = self._missing(look, name).item()
        if self._sample.is_continuous[column]:
            moved = (look.after - look.before)[:, column] / look.alphas
            return loss, moved.mean().item()
        return loss, (look.after[:, column] * look.alphas > 0).double().mean().item()

    def _lacking(self, name: str, sign: int, rows: Tensor) -> Tensor:
        """Those of `rows` that lack what an edit by α of this sign adds; all for a number."""
        column = self._sample.names.index(name)
        known = rows[self._answers.known[rows, column]]
        if self._sample.is_continuous[column]:
            return known
        return known[(self._sample.labels[known, column] > 0) != (sign > 0)]

    @torch.no_grad()
    def _seen(self, rows: Tensor) -> Tensor:
        """What the classifier sees (M, A) in the unedited faces `rows` (M,)."""
        with training_precision(self._device):
            parts = [self._pictures[part].to(self._device) / 255 for part in rows.split(_CHUNK)]
            return torch.cat([self._classifier(part) for part in parts])

    def _look(
        self, bundle: Bundle, name: str, rows: Tensor, alphas: Tensor, changes: Tensor
    ) -> "_Look":
        """Look at the faces `rows` (B,) and at their edits by alphas (B,), with the same changes."""
        edit = plan_edit(bundle, [name])
        latents = self._latents[rows.to(self._latents.device)]
        latents, alphas, changes = (t.to(self._device) for t in (latents, alphas, changes))
        # by its own name an attribute moves as it is asked
        edited = edit.apply(latents, alphas[:, None] * edit.signs)
        with training_precision(self._device):
            with torch.no_grad():
                plain = bundle.vae.decode(latents, TRUE_TEXTURE).float()
                before = self._classifier(change(reduced(plain), changes))
            made = bundle.vae.decode(edited, TRUE_TEXTURE).float()
            after = self._classifier(change(reduced(made), changes))
        old, new = (functional.adaptive_avg_pool2d(images, _CELLS) for images in (plain, made))
        recoloured = functional.mse_loss(new, old)
        return _Look(edit.kept, alphas, before.float(), after.float(), recoloured)

    def _missing(self, look: "_Look", name: str) -> Tensor:
        """What is missing of an edit of `name`, and what it changes besides."""
        names = self._sample.names
        column, before, after = names.index(name), look.before, look.after
        if self._sample.is_continuous[column]:
            missing = functional.huber_loss((after - before)[:, column], look.alphas)
        else:
            wanted = look.alphas.sign() * after[:, column]
            missing = functional.softplus(_MARGIN - wanted).mean()
        kept = [names.index(other) for other in look.kept if other in names]
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
    if len(training) < FEWEST or not len(held_out):
        msg = f"{len(training):,} labelled faces are too few to refine directions with; it takes {FEWEST:,}"
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
