"""`--json`: every command's keys and types are those of the README's table."""

import contextlib
import io
import json
import re
import shlex
import sys
from functools import cache
from typing import Any

import pytest
import stand_in
from conftest import ROOT, draw_face
from reference import commands
from test_publish import save_finished
from tiny import tiny_bundle

from facevae.cli import main
from facevae.models.bundle import save
from facevae.networks import prior

README = (ROOT / "README.md").read_text("utf-8")
TYPES = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "object": dict,
    "null": None,
}
NAMED = {
    "model": {"model.name": "string", "model.path": "string"},
    "outputs": {"outputs": "string[]"},
}
# how each command of the table is called
CALLS = {
    "train": "faces --size 32 --epochs 1 --prior-epochs 1 --latent-dim 4 -o run",
    "train --dry-run": "faces --size 32 --epochs 1 --prior-epochs 1 --dry-run",
    "reconstruct": "faces/000.png faces/001.png",
    "sample": "-n 2",
    "morph": "seed:1 seed:2",
    "arith": "seed:1 --plus astronaut.png",
    "arith --attr": "seed:1 --attr glasses --sweep -1:1:3",
    "align": "astronaut.png -o aligned",
    "report": "tiny.safetensors",
    "export": "-o out.safetensors",
    "export --onnx": "--onnx",
    "info": "",
    "eval": "run faces --num-samples 4 --no-fid --baselines pca",
    "attributes list": "",
    "attributes learn": "run --labels labels.csv",
    "cache": "",
    "cache --clear": "--clear all",
    "push --dry-run": "run someone/faces --dry-run",
    "push": "run someone/faces",
    "pull": "someone/faces",
}
# of a run that has been trained, or of what that leaves in the cache
OF_A_RUN = ("eval", "attributes learn", "push --dry-run", "cache", "cache --clear")
EXTRAS = {
    "report": ("jinja2", "matplotlib"),
    "export --onnx": ("onnx", "onnxruntime", "onnxscript"),
}


@cache
def schemas() -> dict[str, dict[str, str]]:
    """The README's table: for each command the type of each key, as `figures.psnr`."""
    table = README.split("| command | key | type | |\n|---|---|---|---|\n", 1)[1].split("\n\n", 1)[
        0
    ]
    found: dict[str, dict[str, str]] = {}
    for line in table.splitlines():
        command, key, kind, _ = (cell.strip() for cell in line.strip("|").split(" |", 3))
        if command:
            keys = found.setdefault(command.strip("`"), {})
        for name in re.findall(r"`([^`]+)`", key):
            if key.startswith("as "):
                keys |= found[name]
            else:
                keys |= {name: kind} if kind else NAMED[name]
    return found


def is_of(value: object, kind: str) -> bool:
    """Whether a JSON value is of a type as the README writes it."""
    if " or " in kind:
        return any(is_of(value, one) for one in kind.split(" or "))
    if kind.endswith("[]"):
        return isinstance(value, list) and all(is_of(item, kind[:-2]) for item in value)
    if kind.startswith("{"):
        return isinstance(value, dict) and all(is_of(v, kind[1:-1]) for v in value.values())
    if kind == "null":
        return value is None
    # Python's True is an integer, JSON's is none
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def leaves(value: Any, schema: dict[str, str], path: str = "") -> dict[str, list[Any]]:
    """The values by dotted name, as deep as the schema has names."""
    if path in schema:
        return {path: [value]}
    found: dict[str, list[Any]] = {}
    if isinstance(value, dict):
        parts = [(f"{path}.{name}".lstrip("."), inner) for name, inner in value.items()]
    elif isinstance(value, list) and any(name.startswith(f"{path}[]") for name in schema):
        parts = [(f"{path}[]", inner) for inner in value]
    else:
        return {path: [value]}
    for name, inner in parts:
        for leaf, values in leaves(inner, schema, name).items():
            found.setdefault(leaf, []).extend(values)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that `CALLS` name."""
    root = tmp_path_factory.mktemp("json")
    (root / "faces").mkdir()
    for i in range(16):
        draw_face(i, 40, glasses=i % 2 == 0).save(root / "faces" / f"{i:03}.png")
    rows = "".join(f"{i:03}.png,{int(i % 2 == 0)}\n" for i in range(16))
    (root / "labels.csv").write_text("name,Eyeglasses\n" + rows)
    portrait = (ROOT / ".github" / "pictures" / "astronaut.png").read_bytes()
    (root / "astronaut.png").write_bytes(portrait)
    save(tiny_bundle(), root / "tiny.safetensors")
    return root


def printed(place, command: str) -> dict[str, Any]:
    """What `facevae COMMAND --json` prints; in this process, since another takes seconds to begin."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        name = command.split(" --", maxsplit=1)[0]
        arguments = shlex.split(f"facevae {name} {CALLS[command]} --json")
        patch.setattr(sys, "argv", arguments)
        patch.setattr(prior, "SAMPLING_STEPS", 2)  # of 25, which take ONNX's exporter their time
        patch.setenv("FACEVAE_CACHE", str(place / "cache"))
        patch.setenv("FACEVAE_MODEL", "tiny.safetensors")
        if command != "report":  # matplotlib takes longer than all the rest
            patch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code, err.getvalue()
    return dict(json.loads(out.getvalue()))


@pytest.fixture(scope="module")
def trained(place):
    """What `train` prints, whose run and whose cache others use."""
    return printed(place, "train")


@pytest.fixture(scope="module")
def shared(place):
    """What `push` and `pull` print, at a stand-in for the Hub."""
    save_finished(tiny_bundle(), place / "finished")
    with stand_in.running() as server:
        environment = stand_in.environment(server.address, place / "hf")
        with stand_in.Shell({**environment, "HF_TOKEN": stand_in.TOKEN}) as shell:
            done = {
                name: shell(f"{name} {CALLS[name]} --json", place / "finished")
                for name in ("push", "pull")
            }
    assert all(d.code == 0 for d in done.values()), done
    return {name: json.loads(d.out) for name, d in done.items()}


@pytest.mark.parametrize("command", CALLS)
def test_what_a_command_prints_is_what_the_readme_says(command, place, request):
    for module in EXTRAS.get(command, ()):
        pytest.importorskip(module)
    if command in ("push", "pull"):
        values = request.getfixturevalue("shared")[command]
    elif command == "train":
        values = request.getfixturevalue("trained")
    else:
        if command in OF_A_RUN:
            request.getfixturevalue("trained")
        values = printed(place, command)
    schema = schemas()[command]
    found = leaves(values, schema)
    assert found.keys() == schema.keys()
    wrong = {k: v for k, vs in found.items() for v in vs if not is_of(v, schema[k])}
    assert wrong == {}


def test_the_table_has_every_command_and_no_other():
    assert schemas().keys() == CALLS.keys()
    assert {name.split(" --")[0] for name in CALLS} == {name for name, _ in commands()}


@pytest.mark.parametrize(
    ("value", "kind", "holds"),
    [
        (1, "integer", True),
        (True, "integer", False),
        (1.5, "integer", False),
        (None, "number or null", True),
        ([[1, 2.5], []], "number[][]", True),
        ([1], "number[][]", False),
        ({"a": 1}, "{number}", True),
        ([{"a": "b"}], "{number}[]", False),
    ],
)
def test_types_are_told_apart(value, kind, holds):
    assert is_of(value, kind) is holds
