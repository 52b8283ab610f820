"""Faces to test with: drawn ones, which need nothing, and real ones where they are at hand."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
# small tensors gain nothing from more threads, and other processes lose by them
os.environ.setdefault("OMP_NUM_THREADS", "1")


def draw_face(seed: int, size: int = 48, *, glasses: bool = False) -> Image.Image:
    """A face as a child draws one; the seed chooses skin, background, place and mouth."""
    rng = np.random.default_rng(seed)
    background, skin = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
    picture = Image.new("RGB", (size, size), background)
    pen = ImageDraw.Draw(picture)
    unit = size / 48
    x, y = (24 + rng.uniform(-3, 3)) * unit, (24 + rng.uniform(-3, 3)) * unit
    pen.ellipse((x - 14 * unit, y - 18 * unit, x + 14 * unit, y + 18 * unit), fill=skin)
    for side in (-1, 1):
        eye = x + side * 6 * unit
        pen.ellipse((eye - 2 * unit, y - 6 * unit, eye + 2 * unit, y - 2 * unit), fill="black")
        if glasses:
            box = (eye - 5 * unit, y - 9 * unit, eye + 5 * unit, y + unit)
            pen.ellipse(box, outline="white", width=max(1, round(2 * unit)))
    width = rng.uniform(3, 8) * unit
    pen.rectangle((x - width, y + 8 * unit, x + width, y + 10 * unit), fill="darkred")
    return picture


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's commands take minutes and go first, so that no process waits for them at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture
def faces_folder(tmp_path: Path) -> Path:
    """48 drawn faces, `000.png` …, the even ones with glasses."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for i in range(48):
        draw_face(i, glasses=i % 2 == 0).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture
def labels_file(faces_folder: Path) -> Path:
    """Labels of `faces_folder` as a CSV: who wears glasses."""
    path = faces_folder.parent / "labels.csv"
    rows = "".join(f"{i:03}.png,{int(i % 2 == 0)}\n" for i in range(48))
    path.write_text("name,Eyeglasses\n" + rows)
    return path


@pytest.fixture(scope="session")
def real_faces() -> Path:
    """The project's real faces, unpacked; skips where they are not at hand."""
    unpack = ROOT.parent / "shared" / "faces" / "unpack"
    if not unpack.exists():
        pytest.skip("no real faces at hand")
    done = subprocess.run([unpack], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def facevae(tmp_path: Path) -> Command:
    """Run the command line as a user does, in a process of its own, in `tmp_path`."""

    def run(
        *arguments: object, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "facevae", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            timeout=300,
            env={
                **os.environ,
                "FACEVAE_CACHE": str(tmp_path / "cache"),
                "HF_HUB_OFFLINE": "1",
                "COLUMNS": "100",
                "PYTHONWARNINGS": "error::UserWarning",
                **environment,
            },
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., SimpleNamespace]:
    """Run the command line in this process, in `tmp_path`; returns its stdout and stderr."""
    from facevae.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACEVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object, code: int = 0) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["facevae", *map(str, arguments)])
        found = 0
        try:
            main()
        except SystemExit as stop:
            found = stop.code or 0
        captured = capsys.readouterr()
        assert found == code, captured.err
        return SimpleNamespace(stdout=captured.out, stderr=captured.err)

    return call


@pytest.fixture(scope="module")
def quick_features() -> Iterator[None]:
    """A finish has features, and discriminators that see them, which take next to no time.

    Of the real ones test_projected and the README's commands make sure.
    """
    from tiny import make_features_tiny

    with pytest.MonkeyPatch.context() as patch:
        make_features_tiny(patch.setattr)
        yield


@pytest.fixture(scope="module")
def shell(server, tmp_path_factory):
    """Runs commands against the stand-in for the Hub that the test's module calls `server`."""
    import stand_in

    home = tmp_path_factory.mktemp("hf")
    with stand_in.Shell(stand_in.environment(server.address, home)) as shell:
        yield shell
