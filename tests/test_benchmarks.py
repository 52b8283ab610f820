import ast
import importlib

import pytest
from conftest import ROOT

BENCHMARKS = sorted((ROOT / "tests" / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_what_a_benchmark_takes_from_the_package_is_there(path):
    """Wherever in it that stands: no test runs them, and what they name may have moved."""
    taken = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("facevae")
        for alias in node.names
    ]
    for module, name in taken:
        parent = importlib.import_module(module)
        if not hasattr(parent, name):
            importlib.import_module(f"{module}.{name}")
