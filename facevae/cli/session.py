"""What every command that uses a model shares: finding and opening it, results, wording errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facevae.errors import Argument, FacevaeError, NoFaceError
from facevae.system.console import Console

if TYPE_CHECKING:
    from facevae.models.bundle import Bundle
    from facevae.models.hub import Located

# Python argument → option, where the option is not the argument's name with dashes
_OPTIONS = {"attribute": "--attr", "max_seconds": "--max-time"}
# pydantic's type of error → what is wrong with a value
_REASONS = {
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
}
_OR_AS_IT_IS = ", or take the picture as it is with --no-align"


def error_line(error: FacevaeError, *, has_no_align: bool = True) -> str:
    """The message of an error, its arguments written as options.

    For a photo without a face it suggests `--no-align`, unless the command does not have it.
    """
    advice = _OR_AS_IT_IS if has_no_align and isinstance(error, NoFaceError) else ""
    return error.line(_as_option) + advice


def refused_value(error: Any) -> str:
    """A message for an option's value that typer refused, by way of pydantic; else empty.

    Newer versions of typer would repeat pydantic's words, which do not show the value.
    """
    option, cause = getattr(error, "param", None), error.__cause__
    if option is None or not hasattr(cause, "errors"):
        return ""
    problem = cause.errors()[0]
    limits = {
        name: f"{limit:,.0f}" if limit == int(limit) else f"{limit:g}"
        for name, limit in problem.get("ctx", {}).items()
        if name in {"ge", "le"}
    }
    said = problem["msg"].removeprefix("Value error, ")
    reason = _REASONS.get(problem["type"], "{said}").format(said=said, **limits)
    _, is_choice, choices = reason.rstrip(".").partition(" is not one of ")
    if is_choice:
        reason = "must be one of " + choices.replace("'", "")
    source = error.ctx.get_parameter_source(option.name)
    is_variable = getattr(source, "name", "") == "ENVIRONMENT"
    name = f"{option.envvar}=" if is_variable else f"{max(option.opts, key=len)} "
    return f"{name}{problem['input']}: {reason}"


def _as_option(argument: Argument) -> str:
    option = _OPTIONS.get(argument.name, f"--{argument.name.replace('_', '-')}")
    return option if argument.value == "" else f"{option} {argument.value}"


def find_model(console: Console, name: str) -> "Located":
    """Find a model's file, without importing torch. Raises `ModelError`."""
    from facevae.models.hub import locate

    return locate(name, quiet=console.quiet)


def open_model(
    console: Console, located: "Located", device: str
) -> "tuple[Bundle, dict[str, Any]]":
    """Load a model onto a device and say which one it is.

    Returns the model, and its name and path as results state them.
    """
    from facevae.models.loading import read_model
    from facevae.system.runtime import describe, select_device

    torch_device = select_device(device)
    bundle = read_model(located)
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
