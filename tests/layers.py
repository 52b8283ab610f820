"""The layers of the package, and its modules in words, as the README shows them."""

import ast
from pathlib import Path

import facevae

PACKAGE = Path(facevae.__file__).parent

# the lowest layer first; a module imports from its own layer and from lower ones
LAYERS = [
    "errors",
    "config",
    "system",
    "data",
    "faces",
    "networks",
    "measures",
    "attributes",
    "models",
    "latent_space",
    "charts",
    "stages",
    "training",
    "evaluation",
    "reports",
    "sharing",
    "api",
    "cli",
    "__main__",
    "__init__",
]
_UNLISTED = ("cli", "__main__", "__init__")  # commands are listed by their own help


def summary(path: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.split("\n", 1)[0].rstrip(".")


def module_list() -> str:
    """Every module with its summary, the highest layer first, as a block of Markdown."""
    sections = []
    for layer in reversed([layer for layer in LAYERS if layer not in _UNLISTED]):
        folder = PACKAGE / layer
        if not folder.is_dir():
            sections.append(f"{layer:<18}{summary(PACKAGE / f'{layer}.py')}")
            continue
        modules = [f"  {path.stem:<16}{summary(path)}" for path in sorted(folder.glob("[!_]*.py"))]
        title = f"{layer + '/':<18}{summary(folder / '__init__.py')}"
        sections.append("\n".join((title, *modules)))
    return "\n".join(("```", "\n\n".join(sections), "```"))
