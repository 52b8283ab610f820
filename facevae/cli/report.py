"""The command `report`."""

from pathlib import Path
from typing import Annotated

import typer

from facevae.cli import options
from facevae.cli.session import report_result
from facevae.errors import UsageError
from facevae.system.console import Console


def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's folder, finished or not, or a model: default, a file, user/repo.",
        ),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page to write (default: a new report.html)."),
    ] = None,
    cache_dir: options.CacheDir = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show a run as one HTML page: curves, faces, latents, attributes, settings, how to repeat it.

    The page needs no server and nothing from elsewhere. Needs the extra `plot`.

    Examples:

      facevae report runs/ffhq-base

      facevae report default -o default.html
    """
    from facevae.system.files import check_place, expanded, unused

    console = Console(quiet=quiet, as_json=json)
    path = unused(Path("report.html")) if output is None else expanded(output)
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        msg = f"-o {path}: a report is one .html file; name one"
        raise UsageError(msg)
    check_place(path)

    # no earlier: torch takes seconds to import
    from facevae.reports.page import require_pages
    from facevae.reports.report import write_report
    from facevae.reports.sources import open_source
    from facevae.system.runtime import describe, select_device

    require_pages()
    chosen = select_device(device)
    source = open_source(run, chosen, cache_dir)
    console.say(f"report of {source.name}, on {describe(chosen)}")
    write_report(source, path, console.progress)
    used = {"name": source.name, "path": str(source.path) if source.bundle else None}
    report_result(console, used, [path], {})
