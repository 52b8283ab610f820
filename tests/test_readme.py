"""The README's commands are run as they stand, and what it claims is looked up."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT, Command, draw_face
from PIL import Image, ImageOps

from facevae.config import PRESETS
from facevae.models.formats import FORMAT, UNSAID

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(
    r"```python\n(import facevae\n.*?)```", README, re.DOTALL
)  # test_export runs ONNX's
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS = [line for line in LINES if line.startswith("facevae ")]
# commands and what they say
CONSOLE = re.findall(r"^\$ (facevae .*)\n((?:(?!\$|```).*\n)+)", README, re.MULTILINE)
# `someone` of the README's, whose repositories are on the real Hub, or would be
REMOTE = [line for line in COMMANDS if "someone/faces" in line and "--dry-run" not in line]
FIVE = ["train", "reconstruct", "sample", "morph", "arith"]
# what makes a training short enough for a test; a later option takes the place of an earlier one
SMALL = "--size 32 --latent-dim 4 --batch-size 8"
SHORT = {"vae": "--epochs 1", "prior": "--prior-epochs 1", "finish": "--finish-epochs 1"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with all that the README's commands name."""
    (tmp_path / "photos").mkdir()
    with Image.open(ROOT / ".github" / "pictures" / "astronaut.png") as portrait:
        portrait.save(tmp_path / "photos" / "a.png")
        ImageOps.mirror(portrait).save(tmp_path / "photos" / "b.png")
    for folder in ("ffhq", "celeba128", "mine"):
        (tmp_path / folder).mkdir()
        for i in range(16):
            draw_face(i, glasses=i % 2 == 0).save(tmp_path / folder / f"{i:05}.png")
    for name in ("face.png", "a.png", "b.png"):
        shutil.copy(ROOT / ".github" / "pictures" / "astronaut.png", tmp_path / name)
    rows = [f"{i:05}.jpg {1 if i % 2 == 0 else -1}" for i in range(16)]
    (tmp_path / "celeba128-list_attr.txt").write_text("\n".join(["16", "Eyeglasses", *rows]))
    (tmp_path / "labels.csv").write_text(
        "name,Eyeglasses\n00001.png,0\n00002.png,1\na.png,1\nb.png,0\n"
    )
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    return tmp_path


def test_the_readme_says_which_formats_are_read() -> None:
    earlier = f"{min(UNSAID)} to {FORMAT - 1}"
    assert f"| `format` | {FORMAT}; formats {earlier} can be read too |" in README
    assert f"of format {FORMAT} ({earlier} are read too)" in README


def test_every_command_of_the_readme_runs(place: Path, here, monkeypatch) -> None:
    """In one process, since to start each would take as long again; the next test starts some."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(COMMANDS) > 15
    for line in COMMANDS:
        if line in REMOTE:
            continue
        _, *arguments = shlex.split(line)
        if arguments[0] == "train":
            # another model's network is as large as it is
            small = "--batch-size 8" if "--init" in arguments else SMALL
            arguments += shlex.split(f"{small} {_short(arguments)}")
        if arguments[0] == "eval":
            arguments += ["--num-samples", "8", "--no-fid"]
            arguments += ["--baseline-epochs", "1"] * ("ae" in line.partition("--baselines")[2])
        done = here(*arguments)
        # an estimate is no path, and a table is none
        paths = [] if {"--dry-run", "eval", "list"} & set(arguments) else done.stdout.splitlines()
        for path in paths:
            assert (place / path).exists(), f"{line}: printed {path}, which is not there"


def _short(arguments: list[str]) -> str:
    """Options that make the stages short which a training goes through, and its network small."""
    given = dict(pairwise(arguments))
    stages = PRESETS[given.get("--preset", "base")].train.stages
    if "--stages" in given:
        stages = given["--stages"].split(",")
    small = f"--preset base --stages {','.join(stages)}"
    if "--max-time" in given:
        return f"{small} --max-time 1s"
    return " ".join([small, *(SHORT[stage] for stage in stages)])


@pytest.mark.usefixtures("place")
def test_commands_say_what_the_readme_shows(facevae: Command) -> None:
    assert [line.split()[1] for line, _ in CONSOLE] == FIVE
    for line, shown in CONSOLE:
        _, *arguments = shlex.split(line)
        trained = shlex.split("--size 32 --prior-epochs 1") if arguments[0] == "train" else []
        done = facevae(*arguments, *trained, FACEVAE_DEVICE="cpu")
        # progress, and what is said only of drawn faces, or of few
        left_out = r"^([\w ]+: [\d,]+ of |the faces are not framed alike|fewer than).*\n"
        said = re.sub(left_out, "", done.stderr + done.stdout, flags=re.MULTILINE)
        assert _without_figures(said) == _without_figures(shown.replace("\n\n", "\n")), line


def _without_figures(text: str) -> str:
    return re.sub(r"[-+]?\d[\d,.]*", "0", text)


def test_the_readmes_commands_about_the_hub_are_understood() -> None:
    from typer.main import get_command

    from facevae.cli import app

    assert len(REMOTE) > 2
    for line in REMOTE:
        _, name, *arguments = shlex.split(line)
        command = get_command(app).commands[name]
        command.make_context(name, arguments)


def test_the_python_of_the_readme_runs(place: Path) -> None:
    assert PYTHON
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(PYTHON)],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_the_other_commands_of_the_readme_are_about_files_that_exist() -> None:
    for line in LINES:
        if line.startswith("python tests/"):
            assert (ROOT / line.split()[1]).is_file(), line


def test_the_test_command_is_what_ci_calls() -> None:
    command = next(line for line in LINES if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_picture_and_file_that_the_readme_shows_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_readme_has_no_gaps() -> None:
    assert not re.search(r"@\w+@|TODO|\{\{", README)
