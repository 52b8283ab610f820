"""`pull` and `push`."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facevae.cli import options
from facevae.cli.session import find_model, report_result, used_model
from facevae.errors import ModelError
from facevae.system.console import Console

if TYPE_CHECKING:
    from facevae.models.bundle import Bundle
    from facevae.sharing.card import Licence


def pull(
    model: Annotated[
        str, typer.Argument(metavar="USER/REPO", help="A repository: user/repo(@revision).")
    ],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Download it again, whatever the cache holds.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Download a model from the Hugging Face Hub, see that it is sound, and print where it is.

    Examples:

      facevae pull user/faces

      facevae pull user/faces@v1 --json
    """
    from facevae.models.hub import pull as find_or_download

    console = Console(quiet=quiet, as_json=json)
    located = find_or_download(model, force=force, quiet=quiet)

    from facevae.models.loading import read_model  # no earlier: it imports torch

    read_model(located)
    console.say(f"{located.name}, {located.path.stat().st_size / 1e6:,.1f} MB")
    used = used_model(located)
    report_result(console, used, [located.path], {"commit": located.commit})


def push(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN|MODEL", help="A run's folder, a file, or any other --model."),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="USER/REPO", help="The repository; made where there is none.")
    ],
    *,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository a private one.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="A branch instead of main."),
    ] = None,
    message: Annotated[str, typer.Option("--message", help="Commit message.")] = "",
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="A licence identifier of the Hub, such as mit (default: the model's own terms).",
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Replace even a card that was changed by hand, or another program's model.",
        ),
    ] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Publish a run that is not finished.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder, and upload nothing.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write that folder; implies --dry-run."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Publish a model on the Hugging Face Hub, with a card and pictures of generated faces.

    Examples:

      facevae push runs/ffhq user/faces --dry-run

      facevae push runs/ffhq user/faces --private
    """
    from facevae.models.loading import read_model
    from facevae.sharing import publish
    from facevae.sharing.card import licence_of
    from facevae.sharing.package import check_folder, write_package
    from facevae.system.files import unused

    # Check
    console = Console(quiet=quiet, as_json=json)
    publish.check_repository(repository)
    is_local = dry_run or output is not None
    if not is_local:
        publish.check_token()
    located = find_model(console, model)
    bundle = read_model(located)
    if not (bundle.provenance.get("complete") or unfinished):
        msg = f"{located.name}: is not finished; `facevae train` again ends it, --unfinished publishes it as it is"
        raise ModelError(msg)
    licence = licence_of(bundle, license_id)
    _warn_of_terms(console, bundle, licence)
    used = used_model(located)

    # Write
    if is_local:
        folder = output or unused(Path(repository.replace("/", "-")))
        check_folder(folder, located.path)
        names = write_package(bundle, located.path, repository, licence, folder)
        console.say(f"{folder}: what a push would make of {repository}; nothing was uploaded")
        report_result(console, used, [folder / name for name in names], {"dry_run": True})
        return

    # Publish
    with tempfile.TemporaryDirectory(prefix="facevae-") as name:
        write_package(bundle, located.path, repository, licence, Path(name))
        done = publish.push(
            Path(name),
            repository,
            private=private,
            branch=revision,
            message=message,
            replace=replace,
            quiet=quiet,
        )
    if done.kept:
        console.warn(
            f"{', '.join(done.kept)} there was not written by a push, or was changed since, and is kept; "
            "--replace replaces it"
        )
    if not done.is_changed:
        console.say("nothing has changed since the last push")
    console.say(f"try: facevae sample --model {repository} -n 64 -o grid.png")
    values = {
        "model": used,
        "outputs": [],
        "url": done.url,
        "commit": done.commit,
        "kept": done.kept,
    }
    console.result([done.url], values)


def _warn_of_terms(console: Console, bundle: "Bundle", licence: "Licence") -> None:
    """Warn about missing or conflicting terms, and about missing figures."""
    if licence.identifier == "unknown":
        console.warn("the model carries no terms; without --license nobody knows what they may do")
    elif licence.terms and not licence.is_in_words:
        console.warn(
            f"beside {licence.identifier} the card repeats the model's own terms: {licence.terms}"
        )
    if not bundle.provenance.get("figures"):
        console.warn("the model carries no figures of held-out faces, so the card has none")
