"""Examples for `attributes learn`: faces with labels in tables, or faces sorted by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from facevae.cli.session import error_line
from facevae.errors import DataError, UsageError
from facevae.system.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facevae.attributes.samples import Examples
    from facevae.data.dataset import Faces
    from facevae.data.images import Pixels
    from facevae.data.labels import Values
    from facevae.data.pictures import Picture
    from facevae.models.bundle import Bundle


def labelled_faces(
    console: Console,
    bundle: "Bundle",
    data: list[str],
    labels: Sequence[str],
    align: bool,  # noqa: FBT001 - an option's value
    cache_dir: Path | None,
) -> "tuple[Examples, list[str]]":
    """Examples with labels in tables: the training set, or the photos in `data`.

    The second result says which photos were skipped and why.
    """
    import numpy as np

    from facevae.data.labels import merged
    from facevae.data.pictures import find_data, list_pictures, no_pictures
    from facevae.latent_space.learning import examples_of_faces, find_labels

    table = merged([find_labels(source) for source in labels])
    for column in table.ignored:
        console.warn(f"left out: the column {column}, which is neither yes-or-no nor numbers")
    examples: Examples | None = None
    skipped: list[str] = []
    faces = _training_faces(bundle, data, cache_dir)
    if faces is not None:
        console.say("learning from the model's training set")
        examples = examples_of_faces(bundle, faces, table)
    elif data:
        pictures = list_pictures(find_data(data))
        if not pictures:
            raise DataError(no_pictures(data))
        values = table.rows_for([picture.stem for picture in pictures])
        rows = np.flatnonzero(~np.isnan(values).all(1))
        chosen = [pictures[row] for row in rows.tolist()]
        continuous = table.is_continuous.tolist()
        if chosen:
            examples, skipped = _read(
                console, bundle, chosen, values[rows], table.names, continuous, align
            )
    else:
        msg = "the model's training set is not on this machine; name the folder of labelled photos"
        raise UsageError(msg)
    if examples is None:
        msg = f"none of the faces has a label in {', '.join(map(str, labels))}; names must match"
        raise DataError(msg)
    return examples, skipped


def _training_faces(bundle: "Bundle", data: list[str], cache_dir: Path | None) -> "Faces | None":
    """The model's training set, if `data` is that set, or if `data` is empty and the set is cached."""
    from facevae.data.dataset import cached_faces, converted, load_faces
    from facevae.data.pictures import find_data

    fingerprint, size = str(bundle.provenance.get("fingerprint")), bundle.config.size
    if not data:
        return cached_faces(fingerprint, size, cache_dir)
    if converted(find_data(data), size, cache_dir)[1]:
        faces = load_faces(data, size, cache=cache_dir)
        return faces if faces.fingerprint == fingerprint else None
    return None


def sorted_faces(
    console: Console,
    bundle: "Bundle",
    name: str,
    having: list[Path],
    lacking: list[Path],
    align: bool,  # noqa: FBT001 - an option's value
) -> "tuple[Examples, list[str]]":
    """Examples of the attribute `name` from photos or folders of faces with it and without it.

    The second result says which photos were skipped and why.
    """
    import numpy as np

    from facevae.data.pictures import IMAGE_FILES, find_files, list_pictures, no_pictures

    sides = [list_pictures(find_files(side)) for side in (having, lacking)]
    if not sides[0] or (lacking and not sides[1]):
        empty = lacking if sides[0] else having
        raise DataError(no_pictures(empty, IMAGE_FILES))
    marks = [1] * len(sides[0]) + [0] * len(sides[1])
    values = np.array(marks, np.float32)[:, None]
    return _read(console, bundle, [*sides[0], *sides[1]], values, [name], [False], align)


def _read(
    console: Console,
    bundle: "Bundle",
    pictures: "Sequence[Picture]",
    values: "Values",
    names: Sequence[str],
    continuous: Sequence[bool],
    align: bool,  # noqa: FBT001 - an option's value
) -> "tuple[Examples, list[str]]":
    """Examples of the readable pictures, framed like the model's training faces.

    The second result says which pictures were skipped and why. `values` (N, A) are their labels.
    Raises `ImageError` if none is readable.
    """
    from facevae.data.pictures import opened
    from facevae.errors import ImageError
    from facevae.faces.alignment import load_keyed_faces
    from facevae.latent_space.learning import examples_of_photos

    framing = bundle.framing if align else None
    skipped: list[str] = []

    def readable() -> "Iterator[tuple[Pixels, str, Values]]":
        """Yield each readable picture with its stem and labels; note the others in `skipped`."""
        photos = (
            (i, pictures[i].name, opener)
            for part in opened(pictures, range(len(pictures)))
            for i, opener in part
        )
        num_found = 0
        faces = load_keyed_faces(photos, bundle.config.size, framing)
        for done, (i, found) in enumerate(faces):
            console.progress("Encoding", done + 1, len(pictures))
            if isinstance(found, ImageError):
                skipped.append(error_line(found))
            else:
                num_found += 1
                yield found, pictures[i].stem, values[i]
        if not num_found:
            msg = f"none of the {len(pictures)} photos can be used; the first: {skipped[0]}"
            raise ImageError(msg)

    examples = examples_of_photos(bundle, readable(), names, continuous)
    return examples, skipped
