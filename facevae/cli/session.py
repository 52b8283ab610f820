"""What every command that uses a model shares: opening it, reporting results, wording errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facevae.console import Console
from facevae.errors import Argument, FacevaeError, NoFaceError

if TYPE_CHECKING:
    from facevae.bundle import Bundle
    from facevae.hub import Located

# Python argument → option, where the option is not the argument's name with dashes
_OPTIONS = {"attribute": "--attr", "max_seconds": "--max-time"}
_OR_AS_IT_IS = ", or take the picture as it is with --no-align"


def error_line(error: FacevaeError, *, has_no_align: bool = True) -> str:
    """The message of an error, its arguments written as options.

    For a photo without a face it suggests `--no-align`, unless the command does not have it.
    """
    advice = _OR_AS_IT_IS if has_no_align and isinstance(error, NoFaceError) else ""
    return error.line(_as_option) + advice


def _as_option(argument: Argument) -> str:
    option = _OPTIONS.get(argument.name, f"--{argument.name.replace('_', '-')}")
    return option if argument.value == "" else f"{option} {argument.value}"


def open_model(console: Console, name: str, device: str) -> "tuple[Bundle, dict[str, Any]]":
    """Load a model onto a device and say which one it is.

    Returns the model, and its name and path as results state them.
    """
    from facevae.hub import load_model
    from facevae.runtime import describe, select_device

    torch_device = select_device(device)
    bundle, located = load_model(name, quiet=console.quiet)
    size = bundle.config.size
    console.say(f"model: {located.name} ({size} × {size} px) on {describe(torch_device)}")
    return bundle.to(torch_device), used_model(located)


def used_model(located: "Located") -> dict[str, Any]:
    """A model's name and path, as results state them."""
    return {"name": located.name, "path": str(located.path)}


def report_result(
    console: Console, used: dict[str, Any], written: Sequence[Path], more: dict[str, Any]
) -> None:
    """Print the command's result: the written files, and in JSON also the model and `more`."""
    outputs = [str(path) for path in written]
    console.result(outputs, {"model": used, "outputs": outputs, **more})
