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
from facevae.cli.examples import labelled_faces, sorted_faces
from facevae.cli.refinement import check_refine, refine_learned
from facevae.cli.session import find_model, open_model, used_model
from facevae.errors import DataError, UsageError
from facevae.system.console import Console

if TYPE_CHECKING:
    from facevae.models.bundle import Bundle
    from facevae.models.hub import Located

app = typer.Typer(
    help="The attributes that a model can edit: list them, or teach it others.",
    no_args_is_help=True,
)

_NAME = re.compile(r"[^,]*[^\W_][^,]*")
_FEW = 10  # faces; an average of fewer keeps much else that they have in common
_NUM_RELATED = 2  # correlated attributes to list
_MIN_CORRELATION = 0.2  # of a correlated attribute to list


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
    console = Console(quiet=quiet, as_json=json)
    located = find_model(console, model)

    # no earlier: torch takes seconds to import
    from facevae.attributes.directions import correlations
    from facevae.models.loading import read_model

    bundle = read_model(located)
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
    """An attribute's row in the table of `attributes list`."""
    correlations = sorted(record["correlations"].items(), key=lambda item: -abs(item[1]))
    related = [item for item in correlations[:_NUM_RELATED] if abs(item[1]) >= _MIN_CORRELATION]
    return (
        record["name"],
        _percentage(record["accuracy"]),
        record["num_positives"],
        f"+{record['unit']:.3g}" if record["continuous"] else "no → yes",
        f"{record['spread']:.2f}",
        "\n".join(f"{name} {correlation:+.1f}" for name, correlation in related),
    )


def _percentage(accuracy: float | None) -> str:
    """A held-out accuracy as people read it."""
    return "not measured" if accuracy is None else f"{accuracy:.0%}"


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
        str | None, typer.Option("--name", help="Name of what the --with faces have in common.")
    ] = None,
    having: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Photos, or a folder, of faces that have it; may repeat."),
    ] = None,
    lacking: Annotated[
        list[Path] | None,
        typer.Option("--without", help="The same of faces without it (default: the average face)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The model to write (default: MODEL itself)."),
    ] = None,
    method: Annotated[
        Literal["logistic", "lda", "mean"],
        typer.Option(
            "--method",
            help="How faces are scored: logistic regression (lda where examples are few), linear discriminants, or the paper's means, which hold nothing still.",
        ),
    ] = "logistic",
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="Then turn directions towards what shows in pictures: takes half an hour for 40 attributes on two CPU cores, and 1,000 labelled training faces.",
        ),
    ] = False,
    align: options.Align = True,
    cache_dir: options.CacheDir = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Teach a trained model attributes, from labels or from a handful of photos.

    Examples:

      facevae attributes learn runs/celeba --labels list_attr_celeba.txt

      facevae attributes learn default ffhq/ --labels ffhq-features/ --refine -o mine.safetensors

      facevae attributes learn default --name freckles --with with/ --without without/ -o mine.safetensors
    """
    from facevae.data.pictures import check_there

    console = Console(quiet=quiet, as_json=json)
    _check(data, labels, name, having, lacking)
    if refine:
        check_refine(labels, method)
    check_there([*(data or []), *(labels or []), *(having or []), *(lacking or [])])
    located = find_model(console, model)
    target = _target(located, output)

    # no earlier: torch takes seconds to import
    from facevae.latent_space.learning import add_attributes
    from facevae.models.bundle import save

    bundle, used = open_model(console, located, device)
    if labels:
        examples, skipped = labelled_faces(console, bundle, data or [], labels, align, cache_dir)
    else:
        assert name is not None  # noqa: S101 - checked above
        examples, skipped = sorted_faces(console, bundle, name, having or [], lacking or [], align)
    for reason in skipped:
        console.warn(f"left out: {reason}")
    earlier = [attribute.name for attribute in bundle.attributes]
    learned = add_attributes(bundle, examples, method)
    if not learned:
        msg = "nothing to learn: no attribute differs between the labelled faces"
        raise DataError(msg)
    refined, reasons = (
        refine_learned(console, bundle, examples, learned) if refine else (None, None)
    )
    save(bundle, target, half=bundle.half)
    if alike := [name for name in examples.names if name not in learned]:
        console.warn(
            "not learned, since labelled faces do not differ in it, or it does not show in latents: "
            + ", ".join(alike)
        )
    _warn(console, bundle, learned, earlier, are_labelled=bool(labels))
    quoted = shlex.quote(str(target))
    console.say(f"learned {', '.join(learned)}; see them with: facevae attributes list {quoted}")
    values = {
        "model": used,
        "outputs": [str(target)],
        "learned": learned,
        "refined": refined,
        "not_refined": reasons,
        "skipped": skipped,
    }
    console.result([target], values)


def _warn(
    console: Console,
    bundle: "Bundle",
    learned: Sequence[str],
    earlier: Sequence[str],
    *,
    are_labelled: bool,
) -> None:
    """Warn of new attributes that are unreliable or that change the meaning of a name."""
    from facevae.attributes.names import match_attribute

    if replaced := [name for name in learned if name in earlier]:
        console.warn(f"{', '.join(replaced)}: replaced, the model had an attribute of that name")
    rare = [
        a.name
        for a in bundle.attributes
        if a.name in learned and a.num_negatives < _FEW and not a.continuous
    ]
    if rare and are_labelled:
        console.warn(
            f"{', '.join(rare)}: fewer than {_FEW} labelled faces are without it; check the labels"
        )
    few = [a.name for a in bundle.attributes if a.name in learned and a.num_positives < _FEW]
    if few:
        console.warn(
            f"{', '.join(few)}: from fewer than {_FEW} faces, so an edit may add other things that they have in common"
        )
    for name in learned:
        with suppress(UsageError):
            meant = earlier[match_attribute(name, earlier)[0]]
            if meant not in learned:
                console.warn(f"--attr {name} meant {meant} before; now it means the new attribute")


def _check(
    data: Sequence[str] | None,
    labels: Sequence[str] | None,
    name: str | None,
    having: Sequence[Path] | None,
    lacking: Sequence[Path] | None,
) -> None:
    """Raise `UsageError` for options of `attributes learn` that do not fit together."""
    if bool(labels) == bool(having):
        msg = "give either --labels, or photos with --with (and --without), one or the other"
        raise UsageError(msg)
    if having and not name:
        msg = "--with needs a --name for the attribute that those faces have"
        raise UsageError(msg)
    if name and (not _NAME.fullmatch(name) or name.casefold() in ("none", "all")):
        msg = f"--name {name}: --attr and --keep could not find it; use letters or digits and no comma, and not 'none' or 'all'"
        raise UsageError(msg)
    if having and data:
        msg = f"{data[0]}: DATA is for --labels; give photos with --with or --without instead"
        raise UsageError(msg)
    if labels and (name or lacking):
        msg = "--name and --without go with --with, not with --labels"
        raise UsageError(msg)


def _target(located: "Located", output: Path | None) -> Path:
    """The file to write: `output`, or else the model's own file, unless it is the packaged model."""
    from facevae.cli.outputs import SUFFIX_OF_MODELS
    from facevae.models.hub import DEFAULT
    from facevae.system.files import check_place, expanded

    if output is not None:
        if output.suffix != SUFFIX_OF_MODELS or output.is_dir():
            msg = f"{output}: a model is a {SUFFIX_OF_MODELS} file; name one with -o"
            raise UsageError(msg)
        check_place(output)
        return output
    # the packaged model is never written, even if there is a local folder called "default"
    if located.name == DEFAULT or not expanded(located.name).exists():
        msg = f"{located.name}: cannot be changed; name a file to write with -o mine{SUFFIX_OF_MODELS}"
        raise UsageError(msg)
    return located.path
