"""A mistake in a command is told at once: before torch, which takes seconds to import."""

import json
import subprocess
import sys

import pytest
from conftest import draw_face

# runs commands, each a list of words, in a process that has no torch; prints exit codes and messages
WITHOUT_TORCH = """
import contextlib, io, json, sys
sys.modules["torch"] = None
from facevae.cli import main
results = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["facevae", *command]
    said, code = io.StringIO(), None
    with contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as error:
            code = error.code
        except ImportError as error:
            said.write(str(error))
    results.append((code, said.getvalue()))
print(json.dumps(results))
"""
MISTAKES = {
    "reconstruct nowhere.png": "nowhere.png: no such file or folder",
    "reconstruct nowhere.npz": "nowhere.npz: no such file",
    "reconstruct nowhere.npz#0": "nowhere.npz: no such file",
    "reconstruct seed:3": "facevae sample --seeds",
    "reconstruct face.png -o face.png": "would be replaced",
    "reconstruct face.png -o face.xyz": "cannot write '.xyz'",
    "reconstruct face.png --latents a.csv": "use a name that ends in .npz",
    "reconstruct face.png -m nowhere": "nowhere: no such model",
    "sample -m nowhere": "nowhere: no such model",
    "sample -o out.txt": "out.txt: cannot write",
    "sample --latents out.csv": "out.csv: use a name that ends in .npz",
    "sample -n 5000": "name a folder",
    "sample --seeds 1-x": "--seeds",
    "morph face.png": "two faces or more",
    "morph face.png nowhere.png": "nowhere.png: no such file",
    "morph face.png seed:x": "a seed is a whole number",
    "morph face.png seed:3 -o a.gif --alpha 1": "name one",
    "morph face.png seed:3 -m nowhere": "nowhere: no such model",
    "arith nowhere.png --attr smile": "nowhere.png: no such file",
    "arith face.png": "nothing to do",
    "arith face.png --plus nowhere.npz#0": "nowhere.npz: no such file",
    "arith face.png --attr smile --sweep 1:2": "--sweep 1:2",
    "arith face.png --attr smile -m nowhere": "nowhere: no such model",
    "align nowhere -o out": "nowhere: no such file or folder",
    "align face.png -o out.png": "a folder is needed",
    "align face.png -o out --framing nowhere": "nowhere: no such model",
    "eval nowhere face.png": "nowhere: no such model",
    "eval default nowhere": "nowhere: no such file or folder",
    "eval default face.png --baselines vae": "'vae' is not a baseline",
    "train nowhere": "nowhere: no such file or folder",
    "train nowhere --init default": "nowhere: no such file or folder",
    "train . --labels nowhere.csv": "nowhere.csv: no such file",
    "train . --labels nowhere.csv --init default": "nowhere.csv: no such file",
    "train . --max-time 3x": "--max-time 3x",
    "train . --stages vae,end": "--stages",
    "train . --epochs 2 --max-time 3m": "two budgets",
    "train . --init nowhere": "nowhere: no such model",
    "export": "say what to write",
    "export nowhere --half": "nowhere: no such model",
    "info nowhere": "nowhere: no such model",
    "attributes list nowhere": "nowhere: no such model",
    "attributes learn nowhere --labels face.png -o a.safetensors": "nowhere: no such model",
    "attributes learn default --labels nowhere.csv": "nowhere.csv: no such file",
    "attributes learn default --name X --with nowhere -o a.safetensors": "nowhere: no such file",
    "report default -o page.pdf": "a report is one .html file",
    "push nowhere someone/faces --dry-run": "nowhere: no such model",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Exit code and message of each mistake."""
    folder = tmp_path_factory.mktemp("mistakes")
    draw_face(0).save(folder / "face.png")
    commands = [command.split() for command in MISTAKES]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [path.name for path in folder.iterdir()] == ["face.png"]
    return dict(zip(MISTAKES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_told_without_torch(results, command):
    code, message = results[command]
    assert MISTAKES[command] in message
    assert message.count("\n") == 1
    assert code in (1, 2)
