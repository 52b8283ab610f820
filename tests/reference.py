"""The README's lists of all options and of all modules, made from the code itself.

    python tests/reference.py

puts them in place; `test_reference.py` and `test_layering.py` fail where the README differs.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from layers import module_list
from typer.main import get_command

from facevae.cli import app
from facevae.config import PRESETS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- made by tests/reference.py -->\n", "<!-- end -->\n"
BEGIN_MODULES = "<!-- modules, made by tests/reference.py -->\n"
HEAD = ("| option | value | default | |", "|---|---|---|---|")
SHARED_BY = 3  # commands that take the same option, from which on it is listed once


@dataclass(frozen=True)
class Parameter:
    """An option or argument as people read it."""

    names: str
    values: str
    default: str
    meaning: str
    is_option: bool

    def row(self) -> str:
        cells = (self.names, self.values, self.default, self.meaning)
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its name, as `attributes list`, in the order of the help."""
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", {"": command})
        for last, found in inner.items():
            yield f"{name} {last}".strip(), found


def parameters(name: str, command: Any) -> list[Parameter]:
    """All that a command takes, but for `--help`."""
    hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
    preset = PRESETS["base"].model.to_dict() | PRESETS["base"].train.to_dict()
    preset["r_loss_factor"] = "auto"
    found = []
    for given in command.params:
        if given.name not in hints:
            continue  # --help
        is_option = given.param_type_name == "option"
        default = given.default
        if default is None and name == "train":
            default = preset.get(given.name)
        meaning = " ".join(given.help.split()).replace("; may repeat", "").replace("<", "&lt;")
        if given.envvar:
            meaning += f" (`{given.envvar}`)"
        found.append(
            Parameter(
                _names(given),
                _values(given.metavar, hints[given.name]) if is_option else "",
                "required" if is_option and given.required else _default(default),
                meaning,
                is_option,
            )
        )
    return found


def _names(given: Any) -> str:
    if given.param_type_name != "option":
        return f"`{given.metavar}`" if given.required else f"`[{given.metavar}]`"
    names = [*sorted(given.opts, key=len, reverse=True), *given.secondary_opts]
    return ", ".join(f"`{name}`" for name in names)


def _values(metavar: str | None, hint: Any) -> str:
    """What may be given, from the annotation `hint`: Annotated[type, an option]."""
    kind, option = get_args(hint)
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if is_list := get_origin(kind) is list:
        (kind,) = get_args(kind)
    if metavar:
        text = f"`{metavar}`"
    elif get_origin(kind) is Literal:
        text = ", ".join(f"`{choice}`" for choice in get_args(kind))
    else:
        text = {bool: "", str: "text", int: "integer", float: "number", Path: "path"}[kind]
    if option.min is not None:
        text += f" from {option.min:,}"
    if option.max is not None:
        text += f" to {option.max:,}"
    return f"{text}, repeatable" if is_list else text


def _default(value: object) -> str:
    if value is None or value is False or value == "":
        return ""
    if isinstance(value, tuple):
        value = ",".join(value)
    return "yes" if value is True else f"`{value}`"


def listing() -> str:
    """The whole list, as Markdown."""
    found = {name: parameters(name, command) for name, command in commands()}
    taken = Counter(p for of in found.values() for p in of if p.is_option)
    shared = [p for p, count in taken.most_common() if count >= SHARED_BY]
    lines = ["Shared by several commands:", "", *HEAD, *(p.row() for p in shared)]
    for name, command in commands():
        of = found[name]
        usage = " ".join(["facevae", name, *(p.names.strip("`") for p in of if not p.is_option)])
        summary = " ".join((command.help or "").split("\n\n")[0].split())
        rows = [p.row() for p in of if p not in shared]
        rest = [p.names.split(",")[0] for p in of if p in shared]
        lines += ["", "<details>", f"<summary><code>{usage}</code>: {summary}</summary>", ""]
        lines += [*HEAD, *rows, ""] if rows else []
        lines += [f"Shared options: {', '.join(rest)}.", "", "</details>"]
    return "\n".join(lines) + "\n"


def with_listing(text: str) -> str:
    """The README's text with the list of options in its place."""
    return _between(text, BEGIN, listing())


def with_modules(text: str) -> str:
    """The README's text with the list of modules in its place."""
    return _between(text, BEGIN_MODULES, module_list())


def _between(text: str, begin: str, content: str) -> str:
    before, rest = text.split(begin, 1)
    _, after = rest.split(END, 1)
    return f"{before}{begin}\n{content}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_modules(with_listing(README.read_text("utf-8"))), "utf-8")
    sys.stdout.write(f"{README}\n")
