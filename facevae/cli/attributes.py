"""`attributes list` and `attributes learn`."""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from facevae.cli import options
from facevae.cli.session import open_model, used_model
from facevae.console import Console
from facevae.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facevae.attributes import Examples
    from facevae.bundle import Bundle
    from facevae.data import Faces
    from facevae.hub import Located
    from facevae.images import Pixels
    from facevae.labels import Values
    from facevae.pictures import Opener, Picture

app = typer.Typer(
    help="The attributes that a model can edit: list them, or teach it others.",
    no_args_is_help=True,
)

_NAME = re.compile(r"[^,]*[^\W_][^,]*")
_FEW = 10  # faces, from whose average much else does not drop out yet
_NUM_RELATED, _RELATED = 2, 0.2  # how many correlated attributes to name, from which correlation on


@app.command("list")
def list_attributes(
    model: options.ModelArgument = "default",
    *,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what a model can edit, how well it tells it, and what goes along with it.

    Accuracies are balanced and held-out; the spread is the scores' standard deviation over training
    faces, in alphas.

    Examples:

      facevae attributes list

      facevae attributes list runs/ffhq-base --json
    """
    from facevae.attributes import correlations
    from facevae.hub import load_model

    console = Console(quiet=quiet, as_json=json)
    bundle, located = load_model(model, quiet=quiet)
    records: list[dict[str, Any]] = [dataclasses.asdict(a) for a in bundle.attributes]
    if bundle.scorers is not None:
        names = [attribute.name for attribute in bundle.attributes]
        spreads, joint = correlations(bundle.scorers, bundle.latent_covariance)
        for i, record in enumerate(records):
            record["spread"] = round(float(spreads[i]), 4)
            pairs = zip(names, joint[i].tolist(), strict=True)
            record["correlations"] = {n: round(r, 4) for n, r in pairs if n != names[i]}
    if json:
        console.result([], {"model": used_model(located), "attributes": records})
    elif records:
        console.table(
            f"{located.name}: attributes, for `facevae arith --attr`",
            ("name", "accuracy", "with it", "α = 1", "spread", "goes along with"),
            [_row(record) for record in records],
        )
    else:
        console.say(f"{located.name}: knows no attributes; see `facevae attributes learn --help`")


def _row(record: dict[str, Any]) -> tuple[object, ...]:
    related = sorted(record["correlations"].items(), key=lambda item: -abs(item[1]))
    accuracy = "not measured" if record["accuracy"] is None else f"{record['accuracy']:.0%}"
    return (
        record["name"],
        accuracy,
        record["num_positives"],
        f"+{record['unit']:.3g}" if record["continuous"] else "no → yes",
        f"{record['spread']:.2f}",
        "\n".join(f"{name} {r:+.1f}" for name, r in related[:_NUM_RELATED] if abs(r) >= _RELATED),
    )


@app.command("learn")
def learn_attributes(
    model: options.ModelArgument,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA…",
            help="The labelled photos, if they are not the model's training set.",
        ),
    ] = None,
    *,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            help="A CelebA list, a CSV, a folder of FFHQ features, or a table; may repeat.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What to call what --with has in common.")
    ] = None,
    having: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Photos, or a folder, of faces that have it; may repeat."),
    ] = None,
    lacking: Annotated[
        list[Path] | None,
        typer.Option(
            "--without", help="And of faces that do not (default: the model's average face)."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The model to write (default: MODEL itself)."),
    ] = None,
    method: Annotated[
        Literal["logistic", "lda", "mean"],
        typer.Option(
            "--method",
            help="What scores faces: logistic regression (with few of them lda), linear discriminants, or the paper's means, which hold nothing still.",
        ),
    ] = "logistic",
    align: options.Align = True,
    cache_dir: options.CacheDir = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Teach a trained model attributes, from labels or from a handful of photos.

    Examples:

      facevae attributes learn runs/celeba --labels list_attr_celeba.txt

      facevae attributes learn default ffhq/ --labels ffhq-features/ -o mine.safetensors

      facevae attributes learn default --name freckles --with with/ --without without/ -o mine.safetensors
    """
    from facevae.bundle import save
    from facevae.hub import locate
    from facevae.learning import add_attributes

    console = Console(quiet=quiet, as_json=json)
    _check(data, labels, name, having, lacking)
    target = _target(locate(model, quiet=quiet), output)
    bundle, used = open_model(console, model, device)
    skipped: list[str] = []
    if labels:
        examples = _labelled(console, bundle, data or [], labels, align, cache_dir, skipped)
    else:
        assert name is not None  # noqa: S101 - checked
        examples = _sorted(console, bundle, name, having or [], lacking or [], align, skipped)
    for reason in skipped:
        console.warn(f"left out: {reason}")
    earlier = [attribute.name for attribute in bundle.attributes]
    learned = add_attributes(bundle, examples, method)
    if not learned:
        msg = "nothing to learn: no attribute differs between the labelled faces"
        raise DataError(msg)
    save(bundle, target, half=bundle.half)
    _warn(console, bundle, learned, earlier)
    quoted = shlex.quote(str(target))
    console.say(f"learned {', '.join(learned)}; see them with: facevae attributes list {quoted}")
    values = {"model": used, "outputs": [str(target)], "learned": learned, "skipped": skipped}
    console.result([target], values)


def _warn(
    console: Console, bundle: "Bundle", learned: Sequence[str], earlier: Sequence[str]
) -> None:
    """Say what of the new attributes is not to be trusted, or stands in another's place."""
    from facevae.attributes import match_attribute

    few = [a.name for a in bundle.attributes if a.name in learned and a.num_positives < _FEW]
    if few:
        console.warn(
            f"{', '.join(few)}: from fewer than {_FEW} faces, so an edit brings much else that these have in common"
        )
    for name in learned:
        with suppress(UsageError):
            meant = earlier[match_attribute(name, earlier)[0]]
            if meant not in learned:
                console.warn(f"--attr {name} meant {meant} before; now it means what was learned")


def _check(
    data: Sequence[str] | None,
    labels: Sequence[str] | None,
    name: str | None,
    having: Sequence[Path] | None,
    lacking: Sequence[Path] | None,
) -> None:
    if bool(labels) == bool(having):
        msg = "name --labels, or photos with --with (and --without), one or the other"
        raise UsageError(msg)
    if having and not name:
        msg = "--with needs a --name for what those faces have"
        raise UsageError(msg)
    if name and (not _NAME.fullmatch(name) or name.casefold() in ("none", "all")):
        msg = f"--name {name}: --attr and --keep could not find it; use letters or digits, no comma, and neither none nor all"
        raise UsageError(msg)
    if having and data:
        msg = f"{data[0]}: stands beside --with; give each photo a --with or --without of its own, or name a folder"
        raise UsageError(msg)
    if labels and (name or lacking):
        msg = "--name and --without go with --with, not with --labels"
        raise UsageError(msg)


def _target(located: "Located", output: Path | None) -> Path:
    """The file to write: `output`, or the model's own if it is the user's."""
    from facevae.files import expanded
    from facevae.hub import DEFAULT
    from facevae.outputs import SUFFIX_OF_MODELS

    if output is not None:
        if output.suffix != SUFFIX_OF_MODELS or output.is_dir():
            msg = f"{output}: a model is a {SUFFIX_OF_MODELS} file; name one with -o"
            raise UsageError(msg)
        return output
    # a folder called "default" here makes the packaged model nobody's to write
    if located.name == DEFAULT or not expanded(located.name).exists():
        msg = f"{located.name}: stays as it is; name the model to write with -o mine{SUFFIX_OF_MODELS}"
        raise UsageError(msg)
    return located.path


def _labelled(
    console: Console,
    bundle: "Bundle",
    data: list[str],
    labels: Sequence[str],
    align: bool,  # noqa: FBT001 - an option's value
    cache_dir: Path | None,
    skipped: list[str],
) -> "Examples":
    """Faces with labels in tables: those of the training set, or of the photos in `data`."""
    import numpy as np

    from facevae.labels import merged
    from facevae.learning import examples_of_faces, find_labels
    from facevae.pictures import find_data, list_pictures

    table = merged([find_labels(source) for source in labels])
    for column in table.ignored:
        console.warn(f"left out: the column {column}, which is neither yes-or-no nor numbers")
    examples: Examples | None = None
    faces = _training_faces(bundle, data, cache_dir)
    if faces is not None:
        console.say("learning from the model's training set")
        examples = examples_of_faces(bundle, faces, table)
    elif data:
        pictures = list_pictures(find_data(data))
        if not pictures:
            msg = f"{', '.join(data)}: no pictures in there"
            raise DataError(msg)
        values = table.rows_for([picture.stem for picture in pictures])
        rows = np.flatnonzero(~np.isnan(values).all(1))
        chosen = [pictures[row] for row in rows.tolist()]
        continuous = table.is_continuous.tolist()
        if chosen:
            examples = _read(
                console, bundle, chosen, values[rows], table.names, continuous, align, skipped
            )
    else:
        msg = "the model's training set is not on this machine; name the folder of labelled photos"
        raise UsageError(msg)
    if examples is None:
        msg = f"none of the faces has a label in {', '.join(map(str, labels))}; names must match"
        raise DataError(msg)
    return examples


def _training_faces(bundle: "Bundle", data: list[str], cache_dir: Path | None) -> "Faces | None":
    """The model's training set, if that is what `data` is, or if none is named and it is cached."""
    from facevae.data import cached_faces, converted, load_faces
    from facevae.pictures import find_data

    fingerprint, size = str(bundle.provenance.get("fingerprint")), bundle.config.size
    if not data:
        return cached_faces(fingerprint, size, cache_dir)
    if converted(find_data(data), size, cache_dir)[1]:
        faces = load_faces(data, size, cache=cache_dir)
        return faces if faces.fingerprint == fingerprint else None
    return None


def _sorted(
    console: Console,
    bundle: "Bundle",
    name: str,
    having: list[Path],
    lacking: list[Path],
    align: bool,  # noqa: FBT001 - an option's value
    skipped: list[str],
) -> "Examples":
    """Faces that have something and faces that do not, each in photos or folders of their own."""
    import numpy as np

    from facevae.pictures import find_files, list_pictures

    sides = [list_pictures(find_files(side)) for side in (having, lacking)]
    if not sides[0] or (lacking and not sides[1]):
        empty = lacking if sides[0] else having
        msg = f"{', '.join(map(str, empty))}: no pictures in there"
        raise DataError(msg)
    marks = [1] * len(sides[0]) + [0] * len(sides[1])
    values = np.array(marks, np.float32)[:, None]
    return _read(console, bundle, [*sides[0], *sides[1]], values, [name], [False], align, skipped)


def _read(
    console: Console,
    bundle: "Bundle",
    pictures: "Sequence[Picture]",
    values: "Values",
    names: Sequence[str],
    continuous: Sequence[bool],
    align: bool,  # noqa: FBT001 - an option's value
    skipped: list[str],
) -> "Examples":
    """The pictures, framed as the model's training faces are, with the labels of those readable."""
    from facevae.errors import ImageError
    from facevae.faces import load_faces_of
    from facevae.learning import examples_of_photos
    from facevae.pictures import opened

    framing = bundle.framing if align else None

    def readable() -> "Iterator[tuple[Pixels, str, Values]]":
        num_found = 0
        order: list[int] = []

        def photos() -> "Iterator[tuple[str, Opener]]":
            for part in opened(pictures, range(len(pictures))):
                for i, opener in part:
                    order.append(i)
                    yield pictures[i].name, opener

        for done, found in enumerate(load_faces_of(photos(), bundle.config.size, framing)):
            console.progress("Encoding", done + 1, len(pictures))
            if isinstance(found, ImageError):
                skipped.append(str(found))
            else:
                num_found += 1
                yield found, pictures[order[done]].stem, values[order[done]]
        if not num_found:
            msg = f"none of the {len(pictures)} photos can be used; the first: {skipped[0]}"
            raise ImageError(msg)

    return examples_of_photos(bundle, readable(), names, continuous)
