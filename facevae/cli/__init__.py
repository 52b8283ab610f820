"""The command line: each command checks, builds what it needs, calls the library, and reports.

Nothing here imports torch, numpy or PIL before a command runs, so that help is instant. A command
imports torch, which takes seconds, only when all that can be checked without it is.
"""

import errno
import os
import shutil
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.main import get_command

from facevae.cli import attributes
from facevae.cli.align import align
from facevae.cli.arith import arith
from facevae.cli.evaluate import evaluate
from facevae.cli.export import export
from facevae.cli.faces import reconstruct, sample
from facevae.cli.hub import pull, push
from facevae.cli.models import cache, info
from facevae.cli.morph import morph
from facevae.cli.report import report
from facevae.cli.session import error_line, refused_value
from facevae.cli.train import train
from facevae.errors import FacevaeError, ProcessError, Stopped
from facevae.system.console import Console, is_heard

_NARROW = 70  # columns; below that, the frames of the help leave no room for option names
_INTERRUPTED = 130  # typer's exit code after Ctrl-C, as in shells
_ASKED_FOR_HELP = "NoArgsIsHelpError"  # click's, raised after it has printed the help

app = typer.Typer(
    name="facevae",
    help="Train a VAE on faces, then reconstruct, sample, morph and edit faces with it.",
    epilog="Start with: facevae sample -n 64 -o grid.png",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    train,
    reconstruct,
    sample,
    morph,
    arith,
    align,
    report,
    export,
    info,
    cache,
    pull,
    push,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(attributes.app, name="attributes")
app.command("eval")(evaluate)


def _version(*, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("facevae"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda value: _version(wanted=value),
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    pass


def _one_line(error: Any) -> str:
    """The line to print for an expected failure; empty for any other exception."""
    if isinstance(error, FacevaeError):
        return error_line(error)
    # typer's own errors, whose classes are not public
    if hasattr(error, "format_message"):
        said = error.format_message().rstrip(".").replace("\n", " ")
        message = refused_value(error) or f"{said[:1].lower()}{said[1:]}"
        end = " See {} --help" if message.endswith("?") else "; see {} --help"
        # which escapes what was typed, as in every other message
        return str(FacevaeError(message, end.format(_command_path(error))))
    if isinstance(error, OSError) and error.errno is not None and error.strerror is not None:
        hint = "; free some space and run the command again" if error.errno == errno.ENOSPC else ""
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}{hint}"
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return "too little memory for that many or such large pictures; ask for fewer"
    return ""


def _command_path(error: Any) -> str:
    """The command that was given, such as `facevae attributes list`, as far as it exists."""
    if context := getattr(error, "ctx", None):
        return str(context.command_path)
    command: Any = get_command(app)
    path = [str(app.info.name)]
    for word in sys.argv[1:]:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        path.append(word)
    return " ".join(path)


def _is_out_of_memory(error: Exception) -> bool:
    if not isinstance(error, RuntimeError):
        return False
    from facevae.system.memory import is_out_of_memory

    return is_out_of_memory(error)


def main() -> None:
    """Run the command line; an expected failure ends as one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # file names may not be valid text
            stream.reconfigure(errors="backslashreplace")
    # Pillow's warnings about large or oddly tagged pictures, which are usable
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if shutil.get_terminal_size().columns < _NARROW:
        app.rich_markup_mode = None
    sys.exit(_run())


def _run() -> int:
    """Run the given command; returns the exit code."""
    try:
        code = app(prog_name=app.info.name, standalone_mode=False)
    except Stopped as stopped:
        Console.close()
        kept = (
            f"stopped and saved in {stopped.saved_in};"
            if stopped.saved_in
            else "stopped; what was converted is kept, and"
        )
        Console(quiet=Console.is_quiet).say(f"{kept} the same command goes on from here")
        return stopped.exit_code
    except BrokenPipeError:
        # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if type(error).__name__ == _ASKED_FOR_HELP:
            return 0
        if not (text := _one_line(error)):
            raise
        if is_heard() or isinstance(error, ProcessError):
            Console().error(text)
        return int(getattr(error, "exit_code", 1))
    if code == _INTERRUPTED:
        Console.close()
        Console(quiet=Console.is_quiet).say("stopped")
    return code if isinstance(code, int) else 0
