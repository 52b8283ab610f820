import importlib.util
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the tree as it stands."""
    folder = tmp_path_factory.mktemp("wheel")
    if importlib.util.find_spec("hatchling"):
        how = ["build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    else:
        how = ["pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", *how], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_and_the_weights_with_their_papers(names):
    package = ROOT / "facevae"
    modules = {p.relative_to(ROOT).as_posix() for p in package.rglob("*.py")}
    weights = {p.relative_to(ROOT).as_posix() for p in (package / "weights").iterdir()}
    assert "facevae/weights/default.safetensors" in weights
    assert modules | weights | {"facevae/reports/page.html"} <= names


def test_the_wheel_holds_nothing_else(names):
    kinds = {".py", ".safetensors", ".md", ".typed", ".json", ".html", ""}
    for name in names:
        top = name.split("/")[0]
        assert top == "facevae" or top.endswith(".dist-info"), name
        if top == "facevae":
            assert Path(name).suffix in kinds, name
            assert (ROOT / name).is_file(), name
        assert "test" not in name, name
        assert "__pycache__" not in name, name
        assert not any(part.startswith(".") for part in name.split("/")), name


def test_the_wheel_installs_the_command_and_the_licences(wheel, names):
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (n for n in names if n.endswith(".dist-info/entry_points.txt"))
        assert "facevae = facevae.cli:main" in archive.read(entry).decode()
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"Version: {project['version']}" in text
    for extra in ("plot", "tensorboard", "video", "onnx", "parquet", "test"):
        assert f"Provides-Extra: {extra}" in text
    for licence in project["license-files"]:
        assert any(n.endswith(f".dist-info/licenses/{licence}") for n in names), licence


def test_the_package_carries_its_types(names):
    assert "facevae/py.typed" in names


def test_the_wheel_works_without_the_sources(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "facevae", "info", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    values = json.loads(done.stdout)
    weights = Path(values["model"]["path"])
    assert weights.resolve().is_relative_to(tmp_path.resolve())
    assert values["num_bytes"] == weights.stat().st_size
