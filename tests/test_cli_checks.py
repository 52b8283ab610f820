"""A mistake in a command is told at once: before torch, which takes seconds to import."""

import pytest
from conftest import draw_face
from one_process import refusals

# the command, its exit code, and a part of what it says
MISTAKES = {
    "reconstruct nowhere.png": (1, "nowhere.png: no such file or folder"),
    "reconstruct nowhere.npz": (1, "nowhere.npz: no such file"),
    "reconstruct nowhere.npz#0": (1, "nowhere.npz: no such file"),
    "reconstruct seed:3": (2, "facevae sample --seeds"),
    "reconstruct face.png -o face.png": (2, "would be replaced"),
    "reconstruct face.png -o face.xyz": (2, "cannot write '.xyz'"),
    "reconstruct face.png --latents a.csv": (2, "use a name that ends in .npz"),
    "reconstruct face.png -m nowhere": (1, "nowhere: no such model"),
    "sample --device abacus": (2, "--device abacus: must be auto, cpu"),
    "train . --device cuda:x": (2, "--device cuda:x: must be auto, cpu"),
    "sample -m nowhere": (1, "nowhere: no such model"),
    "sample -o out.txt": (2, "out.txt: cannot write"),
    "sample --latents out.csv": (2, "out.csv: use a name that ends in .npz"),
    "sample -n 5000": (2, "name a folder"),
    "sample --seeds 1-x": (2, "--seeds"),
    "morph face.png": (2, "two faces or more"),
    "morph face.png nowhere.png": (1, "nowhere.png: no such file"),
    "morph face.png seed:x": (2, "a seed is a whole number"),
    "morph face.png seed:3 -o a.gif --alpha 1": (2, "name one"),
    "morph face.png seed:3 -m nowhere": (1, "nowhere: no such model"),
    "arith nowhere.png --attr smile": (1, "nowhere.png: no such file"),
    "arith face.png": (2, "nothing to do"),
    "arith face.png --plus nowhere.npz#0": (1, "nowhere.npz: no such file"),
    "arith face.png --attr smile --sweep 1:2": (2, "--sweep 1:2"),
    "arith face.png --attr smile -m nowhere": (1, "nowhere: no such model"),
    "align nowhere -o out": (1, "nowhere: no such file or folder"),
    "align face.png -o out.png": (2, "a folder is needed"),
    "align face.png -o out --framing nowhere": (1, "nowhere: no such model"),
    "eval nowhere face.png": (1, "nowhere: no such model"),
    "eval default nowhere": (1, "nowhere: no such file or folder"),
    "eval default face.png --baselines vae": (2, "'vae' is not a baseline"),
    "train nowhere": (1, "nowhere: no such file or folder"),
    "train nowhere --init default": (1, "nowhere: no such file or folder"),
    "train . --labels nowhere.csv": (1, "nowhere.csv: no such file"),
    "train . --labels nowhere.csv --init default": (1, "nowhere.csv: no such file"),
    "train . --max-time 3x": (2, "--max-time 3x"),
    "train . --stages vae,end": (2, "--stages"),
    "train . --epochs 2 --max-time 3m": (2, "two budgets"),
    "train . --init nowhere": (1, "nowhere: no such model"),
    "train . --init default --stages vae,end": (2, "--stages"),
    "train . --init default --max-time 3x": (2, "--max-time 3x"),
    "export": (2, "say what to write"),
    "export nowhere --half": (1, "nowhere: no such model"),
    "info nowhere": (1, "nowhere: no such model"),
    "attributes list nowhere": (1, "nowhere: no such model"),
    "attributes learn nowhere --labels face.png -o a.safetensors": (1, "nowhere: no such model"),
    "attributes learn default --labels nowhere.csv": (1, "nowhere.csv: no such file"),
    "attributes learn default --name X --with nowhere -o a.safetensors": (
        1,
        "nowhere: no such file",
    ),
    "report default -o page.pdf": (2, "a report is one .html file"),
    "pull nonsense": (1, "nonsense: not on the Hub"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each mistake comes to in a process that has no torch."""
    folder = tmp_path_factory.mktemp("mistakes")
    draw_face(0).save(folder / "face.png")
    commands = [command.split() for command in MISTAKES]
    return dict(zip(MISTAKES, refusals(folder, commands, missing=["torch"]), strict=True))


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_told_without_torch(results, command):
    code, said = MISTAKES[command]
    done = results[command]
    assert done.code == code
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.err.count("\n") == 1
