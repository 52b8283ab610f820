"""`info` and `cache`."""

import dataclasses
import shutil
import time
from typing import Annotated, Any

import typer

from facevae.cli import options
from facevae.cli.session import find_model, used_model
from facevae.errors import UsageError
from facevae.system.console import Console


def info(
    model: options.ModelArgument = "default",
    *,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what a model is: network, prior, attributes, where it comes from, and its terms.

    Examples:

      facevae info

      facevae info runs/ffhq-base --json
    """
    console = Console(quiet=quiet, as_json=json)
    located = find_model(console, model)

    # no earlier: torch takes seconds to import
    from facevae.models.loading import read_model
    from facevae.networks.vae import num_parameters

    bundle = read_model(located)
    values: dict[str, Any] = {
        "model": used_model(located),
        "num_bytes": located.path.stat().st_size,
        "num_parameters": {
            "vae": num_parameters(bundle.vae),
            "prior": num_parameters(bundle.prior),
        },
        **bundle.describe(),
    }
    if json:
        console.result([], values)
        return
    rows = [(key, _text(value)) for key, value in values.items() if key != "attributes"]
    console.table(f"{located.name}", ("", ""), rows)
    if bundle.attributes:
        console.say(f"{len(bundle.attributes)} attributes; see `facevae attributes list {model}`")


def cache(
    *,
    clear: Annotated[
        list[str] | None,
        typer.Option("--clear", metavar="KEY|all", help="Remove this entry, or all."),
    ] = None,
    cache_dir: options.CacheDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List the training data that were converted, or clear them.

    Examples:

      facevae cache

      facevae cache --clear all
    """
    from facevae.data.dataset import list_cache
    from facevae.system.files import locked

    console = Console(quiet=quiet, as_json=json)
    entries = list_cache(cache_dir)
    wanted = set(clear or [])
    if unknown := wanted - {"all"} - {entry.key for entry in entries}:
        msg = f"--clear {min(unknown)}: no such entry; `facevae cache` lists them"
        raise UsageError(msg)
    cleared = [entry for entry in entries if "all" in wanted or entry.key in wanted]
    for entry in cleared:
        with locked(entry.folder, "this cache"):
            pass  # refused while another process converts into it
        shutil.rmtree(entry.folder)
    shown = cleared if wanted else entries
    if json:
        records = [dataclasses.asdict(e) | {"folder": str(e.folder)} for e in shown]
        console.result([], {"cleared" if wanted else "entries": records})
    elif wanted:
        console.result([entry.folder for entry in cleared], {})
    elif entries:
        columns = ("key", "data", "px", "faces", "MB", "made")
        console.table(
            "converted training data",
            columns,
            [
                (
                    e.key,
                    ", ".join(e.sources) + " (unfinished)" * (not e.complete),
                    e.size,
                    e.num_faces,
                    round(e.num_bytes / 1e6),
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(e.created)),
                )
                for e in entries
            ],
        )
    else:
        console.say("nothing is converted yet")


def _text(value: object) -> str:
    if isinstance(value, dict):
        lines = []
        for key, item in value.items():
            nested = isinstance(item, dict)
            text = _text(item).replace("\n", "\n  ")
            lines.append(f"{key}:\n  {text}" if nested else f"{key}: {text}")
        return "\n".join(lines)
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:,.4g}"
    return "-" if value is None else str(value)
