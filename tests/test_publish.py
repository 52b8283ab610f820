"""Pushing to a stand-in for the Hub, and pulling from it what was pushed."""

import dataclasses
import json
import shutil
from functools import partial

import pytest
import stand_in
from PIL import Image
from stand_in import TOKEN, Repository
from tiny import tiny_bundle

from facevae.models.bundle import save
from facevae.sharing.card import is_unchanged

FILES = {
    ".gitattributes",
    "LICENSE",
    "README.md",
    "config.json",
    "model.safetensors",
    *(f"pictures/{name}.png" for name in ("samples", "morph", "attributes")),
}


@pytest.fixture(scope="module")
def server():
    with stand_in.running() as server:
        yield server


@pytest.fixture
def someone(shell, server, tmp_path):
    """Runs commands in `tmp_path` for someone who is logged in, and has no repositories yet.

    There is a finished `run` in the folder.
    """
    server.repositories.clear()
    shutil.rmtree(shell.home, ignore_errors=True)
    save_finished(tiny_bundle(), tmp_path)
    return partial(shell, folder=tmp_path, HF_TOKEN=TOKEN)


def save_finished(bundle, folder):
    """What a finished run leaves, as far as a push is concerned."""
    bundle.provenance |= {"complete": True, "figures": {"psnr": 21.5}, "num_held_out": 7}
    save(bundle, folder / "run" / "model.safetensors")


def test_what_was_pushed_is_pulled_elsewhere_and_gives_the_same_faces(server, someone, tmp_path):
    pushed = someone("push run someone/faces --message first --json")
    held = server.repositories["someone/faces"]
    assert json.loads(pushed.out) == {
        "model": {"name": "run", "path": "run/model.safetensors"},
        "outputs": [],
        "url": f"{server.address}/someone/faces",
        "commit": held.refs["main"],
        "kept": [],
    }
    assert "nothing has changed" in someone("push run someone/faces").err
    assert held.messages == ["", "first"]  # one commit, and none for what is there already
    assert set(held.files) == FILES
    assert held.files["model.safetensors"] == (tmp_path / "run/model.safetensors").read_bytes()
    assert not held.private

    elsewhere = stand_in.environment(server.address, tmp_path / "other")
    with stand_in.Shell(elsewhere) as stranger:
        done = stranger("sample --model someone/faces -n 4 -o hub.png --json", tmp_path)
        assert json.loads(done.out)["model"]["path"].startswith(str(tmp_path / "other"))
    someone("sample --model run -n 4 -o run.png")
    assert (tmp_path / "hub.png").read_bytes() == (tmp_path / "run.png").read_bytes()


def test_a_card_is_replaced_while_it_is_ours_and_kept_once_it_was_changed(
    server, someone, tmp_path
):
    someone("push run someone/faces")
    held = server.repositories["someone/faces"]
    bundle = dataclasses.replace(tiny_bundle(), attributes=[], directions=None)
    save_finished(bundle, tmp_path)
    someone("push run someone/faces --license mit")
    # what the new model has no more goes
    assert set(held.files) == FILES - {"LICENSE", "pictures/attributes.png"}
    assert b"license: mit" in held.files["README.md"]

    changed = held.files["README.md"].replace(b"# faces", b"# My faces")
    held.commit(held.files | {"README.md": changed})
    save_finished(tiny_bundle(), tmp_path)
    kept = someone("push run someone/faces --json")
    assert json.loads(kept.out)["kept"] == ["README.md"]
    assert "--replace" in kept.err
    assert held.files["README.md"] == changed
    assert "LICENSE" not in held.files  # which belongs to the card
    assert held.files["model.safetensors"] == (tmp_path / "run/model.safetensors").read_bytes()
    assert json.loads(someone("push run someone/faces --replace --json").out)["kept"] == []
    assert is_unchanged(held.files["README.md"].decode())


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        ("push run someone/diffusion", 1, "another program's model"),
        ("push run someone/open --private", 1, "is public already"),
        ("push unfinished.safetensors someone/faces", 1, "--unfinished"),
        ("push run someone/faces --license bad", 1, '"license" is not one'),
        ("push run faces", 2, "user/repo"),
        ("push run someone/faces@v1", 2, "--revision"),
        ("push run someone/faces --license 'M I T'", 2, "--license M I T"),
        ("push run someone/faces -o run", 2, "-o"),
        ("push nowhere someone/faces", 1, "no such model"),
    ],
)
def test_what_could_do_harm_is_refused(server, someone, tmp_path, command, code, reason):
    theirs = {"model.safetensors": b"theirs", "config.json": b'{"model_type": "bert"}'}
    for name, files in (("diffusion", theirs), ("open", {})):
        server.repositories[f"someone/{name}"] = Repository()
        server.repositories[f"someone/{name}"].commit(files)
    save(tiny_bundle(), tmp_path / "unfinished.safetensors")
    (tmp_path / "run" / "config.json").write_text("{}")
    done = someone(command)
    assert (done.code, done.out) == (code, "")
    assert reason in done.err
    assert done.err.splitlines()[-1].startswith("error: ")
    assert server.repositories["someone/diffusion"].files == theirs
    assert server.repositories["someone/open"].files == {}
    if "someone/faces" in server.repositories:  # made before its metadata were refused
        assert set(server.repositories["someone/faces"].files) == {".gitattributes"}


def test_another_programs_model_and_an_unfinished_one_go_by_their_options(
    server, someone, tmp_path
):
    held = server.repositories["someone/diffusion"] = Repository()
    held.commit({"model.safetensors": b"theirs"})
    save(tiny_bundle(), tmp_path / "unfinished.safetensors")
    done = someone("push unfinished.safetensors someone/diffusion --replace --unfinished")
    assert done.code == 0
    assert held.files["model.safetensors"] == (tmp_path / "unfinished.safetensors").read_bytes()
    assert b"Unfinished" in held.files["README.md"]


def test_private_repositories_and_branches_are_made(server, someone):
    done = someone("push run someone/hidden --private --revision trial")
    assert done.out == f"{server.address}/someone/hidden/tree/trial\n"
    held = server.repositories["someone/hidden"]
    assert held.private
    assert set(held.commits[held.refs["trial"]]) == FILES
    assert set(held.files) == {".gitattributes"}
    assert someone("push run someone/hidden --private").code == 0
    assert set(held.files) == FILES


def test_a_dry_run_writes_the_same_folder_and_asks_nobody(server, someone, tmp_path):
    server.requests.clear()
    done = someone("push run someone/faces --dry-run --json", HF_TOKEN="")
    values = json.loads(done.out)
    assert values["dry_run"]
    written = {path.removeprefix("someone-faces/") for path in values["outputs"]}
    assert written == FILES - {".gitattributes"}
    for name in written:
        assert (tmp_path / "someone-faces" / name).stat().st_size
    with Image.open(tmp_path / "someone-faces" / "pictures" / "samples.png") as picture:
        assert picture.size == (8 * 32, 4 * 32)
    assert server.requests == []


def test_without_a_token_it_says_so_before_any_work(server, someone):
    server.requests.clear()
    done = someone("push nowhere someone/faces", HF_TOKEN="")
    assert (done.code, done.out) == (1, "")
    assert "`hf auth login`" in done.err
    assert done.err.count("\n") == 1
    assert server.requests == []


def test_a_wrong_token_is_the_hubs_refusal_in_one_line(someone):
    done = someone("push run someone/faces", HF_TOKEN="hf_of_nobody")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1] == (
        "error: someone/faces: the Hub refuses (Invalid credentials in Authorization header)"
    )
