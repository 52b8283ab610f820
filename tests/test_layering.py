"""The house rules that no linter knows: which module may use which, and who alone may do what."""

import ast
from pathlib import Path

from layers import LAYERS, PACKAGE
from reference import README, with_modules


def dotted(path: Path) -> str:
    """`cli/faces.py` → `cli.faces`, `cli/__init__.py` → `cli`."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {dotted(path) for path in PACKAGE.rglob("*.py")}
SOURCES = {dotted(path): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}


def imports(tree: ast.Module) -> set[str]:
    """Every module that is imported anywhere in a file, and every name taken from one."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from facevae.cli import options` takes a module, and nothing from `cli` itself
            is_modules = all(name.removeprefix("facevae.") in MODULES for name in full)
            found |= full if is_modules else full | {str(node.module)}
    return found


def used(module: str) -> set[str]:
    """The modules of the package that `module` imports."""
    named = {name.removeprefix("facevae.") for name in imports(SOURCES[module])}
    return (named & SOURCES.keys()) - {module}


def layer(module: str) -> int:
    return LAYERS.index(module.split(".", maxsplit=1)[0])


def test_the_layers_name_every_package_and_module_at_the_top_and_no_other():
    assert sorted({name.split(".")[0] for name in SOURCES}) == sorted(LAYERS)


def test_the_readme_shows_every_module_in_its_own_words():
    text = README.read_text("utf-8")
    assert with_modules(text) == text, "run: python tests/reference.py"


def test_imports_point_downward_only():
    wrong = [
        f"{module} imports {other}"
        for module in SOURCES
        for other in used(module)
        if layer(other) > layer(module)
    ]
    assert wrong == []


def test_only_the_commands_have_code_for_a_whole_package():
    """Else importing a module would import its neighbours."""
    with_code = {
        module
        for module, tree in SOURCES.items()
        if (PACKAGE / module / "__init__.py").exists() and len(tree.body) > 1
    }
    assert with_code == {"cli"}


def test_no_modules_import_each_other_in_a_circle():
    known: set[str] = set()

    def below(module: str, path: tuple[str, ...] = ()) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in known:
            for other in used(module):
                below(other, (*path, module))
            known.add(module)

    for module in SOURCES:
        below(module)


def mentions(text: str) -> set[str]:
    """The modules in which the dotted name `text` is used or imported."""
    return {
        module
        for module, tree in SOURCES.items()
        if any(ast.unparse(n) == text for n in ast.walk(tree) if isinstance(n, ast.Attribute))
        or any(name == text or name.startswith(f"{text}.") for name in imports(tree))
    }


def test_only_the_two_rooms_of_the_machine_know_cuda():
    assert mentions("torch.cuda") == {"system.runtime", "system.memory"}
    assert mentions("torch.backends") <= {"system.runtime"}


def test_only_console_uses_rich():
    assert mentions("rich") == {"system.console"}


def test_only_images_decodes_pictures():
    assert calls("Image.open") | calls("PIL.Image.open") == {"data.images"}


def test_nothing_is_ever_unpickled():
    for text in ("pickle", "torch.load", "torch.save", "marshal", "shelve", "dill", "joblib"):
        assert mentions(text) == set(), text
    allowed = {
        (module, keyword.arg)
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
    }
    assert allowed == set()


def calls(name: str) -> set[str]:
    return {
        module
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    }


def test_the_library_neither_prints_nor_exits():
    assert calls("print") == set()
    for name in ("sys.exit", "exit", "quit", "os._exit"):
        assert {module for module in calls(name) if not module.startswith("cli")} == set(), name


def test_nothing_is_run_from_text():
    assert calls("eval") == calls("exec") == calls("__import__") == set()
