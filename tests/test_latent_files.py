"""A file of latents gives back what was put in, to the model it belongs to, and runs nothing."""

import io
import json
import os
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout, suppress

import numpy as np
import pytest
import torch
from conftest import draw_face
from PIL import Image
from safetensors.torch import save_file
from tiny import CONFIG, tiny_bundle

from facevae.cli import main
from facevae.data.image_tensors import to_pixels
from facevae.errors import LatentsError
from facevae.latent_space.latent_files import (
    LatentsOrigin,
    digest_of,
    open_latents,
    save_latents,
)
from facevae.latent_space.latents import decode, latents_of_seeds, read_face
from facevae.models.bundle import load, save

D = CONFIG.latent_dim
BUNDLE = tiny_bundle()
WEIGHTS = digest_of(BUNDLE.vae)
ORIGIN = LatentsOrigin("runs/a", WEIGHTS)
LATENTS = latents_of_seeds(BUNDLE, list(range(150)))
NAMES = [f"seed:{i}" for i in range(150)]


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path):
    """150 latents in a file of either format."""
    place = tmp_path / "deep" / f"faces{request.param}"
    save_latents(place, NAMES, LATENTS, ORIGIN)
    return place


def rows(file, start, stop, size=64):
    return torch.cat(list(file.read(start, stop, size)))


def test_what_was_put_in_comes_out_whole_or_in_part(path):
    file = open_latents(path, D, WEIGHTS)
    assert (file.num_faces, file.latent_dim, file.names) == (150, D, NAMES)
    assert rows(file, 0, 150).equal(LATENTS)
    assert rows(file, 70, 73).equal(LATENTS[70:73])
    assert [len(part) for part in file.read(10, 150, 64)] == [64, 64, 12]
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_others_can_read_it(tmp_path):
    save_latents(tmp_path / "a.npz", NAMES, LATENTS, ORIGIN)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["latents"].dtype == np.float32
        np.testing.assert_array_equal(arrays["latents"], LATENTS)
        assert arrays["names"].tolist() == NAMES
        assert (str(arrays["model"]), str(arrays["weights"])) == ("runs/a", WEIGHTS)


def test_names_may_be_anything(path):
    names = ["Zoë 顔", "", "a#b", os.fsdecode(b"caf\xe9"), "x" * 300]
    save_latents(path, names, LATENTS[:5], ORIGIN)
    assert open_latents(path, D, WEIGHTS).names == names
    save_latents(path, names, LATENTS[:5], LatentsOrigin(os.fsdecode(b"caf\xe9"), "0"))
    with pytest.raises(LatentsError, match="another model"):
        open_latents(path, D, WEIGHTS)


def test_a_face_is_found_by_name_then_by_number(path):
    save_latents(path, ["7", "1", "b"], LATENTS[:3], ORIGIN)
    file = open_latents(path, D, WEIGHTS)
    assert [file.row(which) for which in ("7", "1", "b", "0", "2")] == [0, 1, 2, 0, 2]
    for which in ("3", "-1", "c", "", "1.0", "9" * 5000, "0" * 20 + "9", "²"):
        with pytest.raises(LatentsError, match=r"no such face in there; rows are 0 to 2"):
            file.row(which)
    with pytest.raises(LatentsError, match=r"has 3 faces; choose one"):
        file.row(None)


def test_one_face_needs_no_name(path):
    save_latents(path, ["a"], LATENTS[:1], ORIGIN)
    picture, latent = read_face(BUNDLE, str(path))
    assert latent.equal(LATENTS[0])
    np.testing.assert_array_equal(picture, to_pixels(decode(BUNDLE.vae, LATENTS[:1]))[0])
    assert read_face(BUNDLE, f"{path}#a")[1].equal(LATENTS[0])


# ---------------------------------------------------------------- which model they belong to


def test_a_copy_at_half_precision_is_the_same_model_and_others_are_not(tmp_path):
    save(BUNDLE, tmp_path / "half.safetensors", half=True)
    assert digest_of(load(tmp_path / "half.safetensors").vae) == WEIGHTS
    other = tiny_bundle()
    with torch.no_grad():
        next(other.vae.parameters()).mul_(1.01)
    assert digest_of(other.vae) != WEIGHTS


def test_latents_of_another_model_are_refused_by_its_name(path):
    with pytest.raises(
        LatentsError, match=r"latents of another model \('runs/a', .*name theirs with `model`"
    ):
        open_latents(path, D, "0" * 16)


def test_latents_that_do_not_say_whose_they_are_will_do_if_they_fit(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", latents=LATENTS.double().numpy())
    save_file({"latents": LATENTS[:4].half()}, tmp_path / "b.safetensors")
    file = open_latents(tmp_path / "a.npz", D, WEIGHTS)
    assert rows(file, 3, 100).equal(LATENTS[3:100])
    assert (file.names, file.name(3)) == ([], "3")
    assert open_latents(tmp_path / "b.safetensors", D, WEIGHTS).num_faces == 4
    with pytest.raises(LatentsError, match=f"latents of {D} numbers, but the model's have 9"):
        open_latents(tmp_path / "a.npz", 9, WEIGHTS)


# ---------------------------------------------------------------- what cannot be read


def arrays(**values):
    return {"latents": LATENTS[:3].numpy(), **values}


BAD = {
    "no latents": {"faces": np.zeros(3)},
    "integers": arrays(latents=np.zeros((3, D), int)),
    "objects": arrays(latents=np.array([[{}] * D], object)),
    "one axis": arrays(latents=np.zeros(D, np.float32)),
    "no faces": arrays(latents=np.zeros((0, D), np.float32)),
    "by columns": arrays(latents=np.asfortranarray(np.zeros((3, D), np.float32))),
    "names of objects": arrays(names=np.array(["a", None, "c"], object)),
    "numbers for names": arrays(names=np.arange(3)),
    "too few names": arrays(names=np.array(["a"])),
    "a model of bytes": arrays(weights=np.array(b"abc")),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_archive_that_holds_something_else_is_one_line(tmp_path, kind):
    np.savez(tmp_path / "a.npz", **BAD[kind])
    with pytest.raises(LatentsError, match=r"a\.npz: ") as caught:
        open_latents(tmp_path / "a.npz", D, WEIGHTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tensors", [{}, {"latents": torch.zeros(3, D).int()}, {"x": LATENTS}])
def test_a_safetensors_file_that_holds_something_else_is_one_line(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(LatentsError, match=r"a\.safetensors: cannot be read as latents"):
        open_latents(tmp_path / "a.safetensors", D, WEIGHTS)


@pytest.mark.parametrize("names", ["{", "[1]", "{}", "[" * 9999])
def test_names_that_are_not_texts_are_one_line(tmp_path, names):
    save_file({"latents": LATENTS[:1].clone()}, tmp_path / "a.safetensors", {"names": names})
    with pytest.raises(LatentsError, match=r"a\.safetensors: cannot be read as latents"):
        open_latents(tmp_path / "a.safetensors", D, WEIGHTS)


def test_a_model_is_not_latents(tmp_path):
    save(BUNDLE, tmp_path / "model.safetensors")
    with pytest.raises(LatentsError, match="a model, not latents"):
        open_latents(tmp_path / "model.safetensors", D, WEIGHTS)


def test_damage_anywhere_is_one_line_or_does_no_harm(path):
    whole = path.read_bytes()
    for cut in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(LatentsError, match=path.name):
            open_latents(path, D, WEIGHTS)
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with suppress(LatentsError):
            rows(open_latents(path, D, WEIGHTS), 0, 150)


def test_what_is_missing_or_a_folder_says_so(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    for name in ("nowhere.npz", "nowhere.safetensors", "folder.npz"):
        with pytest.raises(LatentsError, match=f"{name}: (No such file|Is a dir)"):
            open_latents(tmp_path / name, D, WEIGHTS)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_not_finite_are_named_by_their_row(tmp_path, value):
    values = LATENTS.double().numpy().copy()
    values[70, 1] = value
    np.savez(tmp_path / "a.npz", latents=values)
    file = open_latents(tmp_path / "a.npz", D, WEIGHTS)
    assert len(rows(file, 0, 70)) == 70
    with pytest.raises(LatentsError, match=r"a\.npz#70: holds numbers that are not finite"):
        rows(file, 0, 150)


def test_a_header_that_claims_too_much_takes_no_memory(tmp_path):
    header = io.BytesIO()
    claims = {"descr": "<U499999999", "fortran_order": False, "shape": (3,)}
    np.lib.format.write_array_header_1_0(header, claims)
    np.savez(tmp_path / "a.npz", latents=LATENTS[:3].numpy())
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("names.npy", header.getvalue())
    with pytest.raises(LatentsError, match="too many for this file"):
        open_latents(tmp_path / "a.npz", D, WEIGHTS)


def test_names_that_unpack_to_far_more_than_their_file_are_not_unpacked(tmp_path):
    names = np.array(["x" * 3_999_999] * 3)
    np.savez_compressed(tmp_path / "a.npz", latents=LATENTS[:3].numpy(), names=names)
    with pytest.raises(LatentsError, match="names unpack to 47,999,988 bytes, too many for this"):
        open_latents(tmp_path / "a.npz", D, WEIGHTS)


# ---------------------------------------------------------------- commands


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command on the tiny model in a folder with a photo; returns code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    save(BUNDLE, tmp_path / "tiny.safetensors")
    draw_face(0).save("a.png")
    draw_face(1).save("b.png")
    monkeypatch.setenv("FACEVAE_MODEL", "tiny.safetensors")

    def call(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["facevae", *map(str, arguments)])
        out, err, found = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                found = stop.code or 0
        assert found == code, err.getvalue()
        return out.getvalue(), err.getvalue()

    return call


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_sampled_latents_decode_to_the_sampled_faces(run, tmp_path, suffix):
    out, _ = run("sample", "-n", 6, "--latents", f"s{suffix}", "-o", "grid.png", "--json")
    assert json.loads(out)["outputs"] == ["grid.png", f"s{suffix}"]
    assert run("reconstruct", f"s{suffix}", "-o", "again.png")[0] == "again.png\n"
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "grid.png").read_bytes()
    run("sample", "--seeds", 4, "-o", "four.png")
    run("reconstruct", f"s{suffix}#seed:4", "-o", "four-again.png")
    assert (tmp_path / "four-again.png").read_bytes() == (tmp_path / "four.png").read_bytes()


def test_a_photos_latents_are_a_face_wherever_one_is_taken(run, tmp_path):
    run("reconstruct", "a.png", "b.png", "--latents", "ab.npz", "-o", "out/")
    for command, more in (("morph", ("seed:3", "--steps", 3)), ("arith", ("-a", "smile"))):
        run(command, "a.png", *more, "--no-tune", "-o", "photo.png")
        run(command, "ab.npz#a", *more, "-o", "stored.png")
        assert (tmp_path / "photo.png").read_bytes() == (tmp_path / "stored.png").read_bytes()
    run("reconstruct", "ab.npz", "-o", "again/")
    for name in ("a.png", "b.png"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_names_in_a_file_lead_nowhere_but_into_the_folder(run, tmp_path):
    names = ["../../up", "/etc/x", "a:b", "", "..", "nul\0byte", "x" * 999, "two", "two"]
    save_latents(tmp_path / "n.npz", names, LATENTS[:9], ORIGIN)
    before = set(tmp_path.rglob("*"))
    out, _ = run("reconstruct", "n.npz", "-o", "out")
    assert len(set(out.splitlines())) == 9
    after = set(tmp_path.rglob("*")) - before
    assert after == {tmp_path / "out", *(tmp_path / line for line in out.splitlines())}
    with Image.open(tmp_path / "out" / "two-2.png") as picture:
        assert picture.size == (CONFIG.size, CONFIG.size)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("sample", "--latents", "s.csv"), 2, "s.csv"),
        (("sample", "--latents", "./tiny.safetensors"), 2, "the model itself"),
        (("reconstruct", "a.png", "--latents", "tiny.safetensors"), 2, "the model itself"),
        (("reconstruct", "s.npz", "a.png"), 2, "not both"),
        (("reconstruct", "s.npz", "--latents", "t.npz"), 2, "already"),
        (("reconstruct", "s.npz#9"), 1, "s.npz#9"),
        (("reconstruct", "s.npz", "-m", "default"), 1, "another model"),
        (("morph", "s.npz", "a.png"), 1, "has 2 faces"),
        (("arith", "nowhere.npz#0", "-a", "smile"), 1, "nowhere.npz"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(run, tmp_path, arguments, code, said):
    save_latents(tmp_path / "s.npz", ["a", "b"], LATENTS[:2], ORIGIN)
    before = set(tmp_path.iterdir())
    out, err = run(*arguments, code=code)
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert set(tmp_path.iterdir()) == before
