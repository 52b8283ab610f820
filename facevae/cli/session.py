"""How every command that uses a model begins and ends."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facevae.console import Console

if TYPE_CHECKING:
    from facevae.bundle import Bundle
    from facevae.hub import Located


def open_model(console: Console, name: str, device: str) -> "tuple[Bundle, dict[str, Any]]":
    """Load the model onto the device and say which one it is."""
    from facevae.hub import load_model
    from facevae.runtime import describe, select_device

    chosen = select_device(device)
    bundle, located = load_model(name, quiet=console.quiet)
    size = bundle.config.size
    console.say(f"model: {located.name} ({size} × {size} px) on {describe(chosen)}")
    return bundle.to(chosen), used_model(located)


def used_model(located: "Located") -> dict[str, Any]:
    """A model as results name it."""
    return {"name": located.name, "path": str(located.path)}


def report_result(
    console: Console, used: dict[str, Any], written: Sequence[Path], more: dict[str, Any]
) -> None:
    """Give the command's result: what was written, and from which model."""
    outputs = [str(path) for path in written]
    console.result(outputs, {"model": used, "outputs": outputs, **more})
