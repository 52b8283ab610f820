"""Learn a model's attributes from labelled faces: its training set, or other photos."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from facevae.attributes.directions import Method, learn
from facevae.attributes.interactions import find_axes, learn_interactions
from facevae.attributes.names import plain_name
from facevae.attributes.samples import Examples
from facevae.data.batches import batches_of
from facevae.data.dataset import Faces, is_held_out
from facevae.data.hub_files import is_url
from facevae.data.image_tensors import from_pixels
from facevae.data.images import Pixels
from facevae.data.label_files import read_labels, read_table_labels
from facevae.data.labels import Labels, Values
from facevae.data.pictures import Source, find_data
from facevae.data.tables import SUFFIXES
from facevae.latent_space.latents import encode_both_sides
from facevae.models.bundle import Bundle

MIN_MEASURED = 100  # photos; of fewer, none is held out
_CHUNK = 64  # photos encoded at a time


def find_labels(source: Source) -> Labels:
    """Labels from a list, a CSV, a folder of FFHQ's features, or the tables of a data set.

    Raises `DataError`.
    """
    if is_url(source) or Path(source).is_dir() or Path(source).suffix.lower() in SUFFIXES:
        tables = [file for file in find_data([source]) if file.suffix.lower() in SUFFIXES]
        if tables:
            return read_table_labels(tables)
    return read_labels(Path(source))


def examples_of_faces(bundle: Bundle, faces: Faces, labels: Labels) -> Examples | None:
    """Examples of the converted faces that have labels, or None if none has; keeps their split."""
    rows = np.concatenate([faces.train, faces.held_out])
    values = labels.rows_for([faces.stems[row] for row in rows])
    is_labelled = ~np.isnan(values).all(1)
    if not is_labelled.any():
        return None
    held_out = (np.arange(len(rows)) >= len(faces.train))[is_labelled]
    batches = batches_of(faces, rows[is_labelled], bundle.device)
    latents = encode_both_sides(bundle.vae, batches)
    return Examples(*latents, values[is_labelled], labels.names, labels.is_continuous, held_out)


def examples_of_photos(
    bundle: Bundle,
    photos: Iterable[tuple[Pixels, str, Values]],
    names: Sequence[str],
    is_continuous: Sequence[bool],
) -> Examples:
    """Examples from framed faces (size, size, 3), each with its stem and labels (A,); at least one.

    Of `MIN_MEASURED` photos or more, one in twelve is held out, by a hash of its stem. If every
    photo has every attribute, the model's average face is added as the one face without them.
    """
    stems: list[str] = []
    rows: list[Values] = []

    def pixels_only() -> Iterator[Pixels]:
        """Yield the pixels of each photo, and keep its stem and labels for later."""
        for pixels, stem, row in photos:
            stems.append(stem)
            rows.append(row)
            yield pixels

    batches = (batch.to(bundle.device) for batch in _batches(pixels_only()))
    plain, mirrored = encode_both_sides(bundle.vae, batches)
    values, continuous = np.stack(rows), np.array(is_continuous, bool)
    held_out = np.array([is_held_out(stem) for stem in stems])
    if len(stems) < MIN_MEASURED:
        held_out[:] = False
    if not continuous.any() and (values == 1).all():
        plain, mirrored = (
            torch.cat([side, bundle.latent_mean[None]]) for side in (plain, mirrored)
        )
        values = np.vstack([values, np.zeros((1, len(names)), np.float32)])
        held_out = np.append(held_out, False)
    return Examples(plain, mirrored, values, names, continuous, held_out)


def _batches(pixels: Iterable[Pixels]) -> Iterator[torch.Tensor]:
    """Yield batches (B, 3, size, size) of up to `_CHUNK` pictures."""
    remaining = iter(pixels)
    while chunk := list(islice(remaining, _CHUNK)):
        yield from_pixels(np.stack(chunk))


def add_attributes(bundle: Bundle, examples: Examples, method: Method = "logistic") -> list[str]:
    """Learn attributes, add them to the model in place, and return their names.

    They replace attributes with the same plain name (letters and digits). If nothing could be
    learned, because all examples are alike, the model does not change and the result is empty.

    Their directions vary along the model's axes. A model without axes gets those of the examples, if
    these are many enough; the directions of attributes that it knew do not vary then.
    """
    attributes, directions, scorers = learn(examples, bundle.latent_covariance, method)
    learned = [attribute.name for attribute in attributes]
    if not learned:
        return []
    axes = bundle.axes
    if not len(axes) and method != "mean":
        axes = find_axes(examples).to(bundle.device)
    interactions = directions.new_zeros(len(learned), *axes.rows.shape)
    if method != "mean":  # the paper's directions are the same for every face
        interactions = learn_interactions(examples, learned, axes)
    replaced = set(map(plain_name, learned))
    kept = [i for i, old in enumerate(bundle.attributes) if plain_name(old.name) not in replaced]
    if kept:
        assert bundle.directions is not None  # noqa: S101 - set together with attributes
        assert bundle.scorers is not None  # noqa: S101
        assert bundle.interactions is not None  # noqa: S101
        before = bundle.interactions[kept]
        if axes is not bundle.axes:
            before = before.new_zeros(len(kept), *axes.rows.shape)
        attributes = [bundle.attributes[i] for i in kept] + attributes
        directions = torch.cat([bundle.directions[kept], directions])
        scorers = torch.cat([bundle.scorers[kept], scorers])
        interactions = torch.cat([before, interactions])
    bundle.attributes, bundle.directions, bundle.scorers = attributes, directions, scorers
    bundle.axes, bundle.interactions = axes, interactions
    return learned
