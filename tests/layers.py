"""The layers of the package, and its modules in words, as the README shows them."""

import ast
from pathlib import Path

import facevae

PACKAGE = Path(facevae.__file__).parent

# a module imports from lower layers only, and stands as low as it can; `cli` is a package of its own
_TABLE = """
errors console losses detection hub_client blocks budget states augment image_features memory signals
files config runtime metrics attribute_names hub_files parallel
images texture prior attributes latent_files labels tables swd guard fast discriminator tensor_files
model pictures framing label_files outputs plots events perceptual critic formats
flow_matching projected conversion faces bundle figures page curves latent_plots run_folders
data hub latents card export
batches runs edits sources
stages adversary learning baselines evaluation novelty package api earlier report
snapshots estimate steps gallery publish
network_fit prior_fit finish_fit
training
cli
__main__ __init__
"""
LAYERS = [tuple(line.split()) for line in _TABLE.strip().splitlines()]


def summary(module: str) -> str:
    """The first line of a module's docstring."""
    path = PACKAGE / f"{module}.py"
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.split("\n", 1)[0].rstrip(".")


def module_list() -> str:
    """Every module with its summary, the highest layer first, as a block of Markdown."""
    below = LAYERS[: LAYERS.index(("cli",))]
    layers = [
        "\n".join(f"{module:<16} {summary(module)}" for module in sorted(layer))
        for layer in reversed(below)
    ]
    return "\n".join(("```", "\n\n".join(layers), "```"))
