"""Attributes of a model from labelled faces: its training set's, or anyone's photos."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from facevae.attribute_names import plain_name
from facevae.attributes import Examples, Method, learn
from facevae.batches import batches_of
from facevae.bundle import Bundle
from facevae.data import Faces, is_held_out
from facevae.hub_files import is_url
from facevae.images import Pixels, from_pixels
from facevae.label_files import read_labels, read_table_labels
from facevae.labels import Labels, Values
from facevae.latents import encode_both_sides
from facevae.pictures import Source, find_data
from facevae.tables import SUFFIXES

MIN_MEASURED = 100  # photos, of which fewer all teach and none measures
_CHUNK = 64


def find_labels(source: Source) -> Labels:
    """The labels in a list, a CSV, a folder of FFHQ's features, or the tables of a data set.

    Raises `DataError`.
    """
    if is_url(source) or Path(source).is_dir() or Path(source).suffix.lower() in SUFFIXES:
        tables = [file for file in find_data([source]) if file.suffix.lower() in SUFFIXES]
        if tables:
            return read_table_labels(tables)
    return read_labels(Path(source))


def examples_of_faces(bundle: Bundle, faces: Faces, labels: Labels) -> Examples | None:
    """The labelled ones of converted faces; those of the held-out split measure."""
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
    """Framed faces (size, size, 3), each with its stem and labels (A,); at least one.

    Of many, one in twelve measures, by a hash of its stem. Where all have all attributes, the
    model's average face stands for those that have not.
    """
    stems: list[str] = []
    rows: list[Values] = []

    def pictures() -> Iterator[Pixels]:
        for pixels, stem, row in photos:
            stems.append(stem)
            rows.append(row)
            yield pixels

    plain, mirrored = encode_both_sides(
        bundle.vae, (part.to(bundle.device) for part in _batches(pictures()))
    )
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
    part: list[Pixels] = []
    for picture in pixels:
        part.append(picture)
        if len(part) == _CHUNK:
            yield from_pixels(np.stack(part))
            part = []
    if part:
        yield from_pixels(np.stack(part))


def add_attributes(bundle: Bundle, examples: Examples, method: Method = "logistic") -> list[str]:
    """Learn attributes and add them to the model, in the place of those of the same name.

    Names are the same that `match_attribute` could not tell apart.

    Returns the names of those that were learned: none where all examples are alike.
    """
    attributes, directions, scorers = learn(examples, bundle.latent_covariance, method)
    learned = [attribute.name for attribute in attributes]
    if not learned:
        return []
    known = bundle.attributes
    if bundle.directions is not None and bundle.scorers is not None:
        taken = set(map(plain_name, learned))
        kept = [i for i, attribute in enumerate(known) if plain_name(attribute.name) not in taken]
        attributes = [known[i] for i in kept] + attributes
        directions = torch.cat([bundle.directions[kept], directions])
        scorers = torch.cat([bundle.scorers[kept], scorers])
    bundle.attributes, bundle.directions, bundle.scorers = attributes, directions, scorers
    return learned
