"""`reconstruct`, `sample`, `morph` and `arith`: each in a separate process, then every option.

The options are tested through the same entry point in this process, which saves importing torch
for each test.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_face
from PIL import Image
from tiny import ATTRIBUTES, CONFIG, tiny_bundle, with_texture

from facevae.data import images
from facevae.latent_space import latents
from facevae.models.bundle import save

SIDE = CONFIG.size


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(tiny_bundle(), path)
    return path


@pytest.fixture(scope="module")
def finished(model):
    path = model.with_name("finished.safetensors")
    save(with_texture(tiny_bundle()), path)
    return path


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """Four photos in the working directory, `a.png` … `d.png`."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("abcd"):
        draw_face(i, 50).save(f"{name}.png")
    return [f"{name}.png" for name in "abcd"]


@pytest.fixture
def run(model, monkeypatch, here):
    """Run a command on the tiny model through `main`; returns stdout and stderr."""
    monkeypatch.setenv("FACEVAE_MODEL", str(model))
    return here


def pixels_of(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def cells(path, side: int = SIDE) -> list[np.ndarray]:
    """The pictures on a sheet, row by row."""
    sheet = pixels_of(path)
    rows, columns = sheet.shape[0] // side, sheet.shape[1] // side
    assert sheet.shape == (rows * side, columns * side, 3)
    return [
        sheet[r * side : (r + 1) * side, c * side : (c + 1) * side]
        for r in range(rows)
        for c in range(columns)
    ]


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and abs(a - b).max() <= 1


def entries() -> set[str]:
    return {path.as_posix() for path in Path().rglob("*")}


# ---------------------------------------------------------------- in processes of their own


def test_sample_makes_a_grid_with_the_embedded_model(facevae):
    done = facevae("sample", "-n", 4, "--seed", 3, FACEVAE_MODEL="")
    assert done.stdout == "grid.png\n"
    assert "model: default" in done.stderr
    side = json.loads(facevae("info", "--json", FACEVAE_MODEL="").stdout)["config"]["size"]
    found = cells("grid.png", side)
    assert len(found) == 4
    assert all(not alike(found[0], other) for other in found[1:])


def test_reconstruct_shows_originals_above_reconstructions(facevae, model, photos):
    done = facevae("reconstruct", *photos, "--model", model)
    assert done.stdout == "reconstructions.png\n"
    assert f"model: {model}" in done.stderr
    found = cells("reconstructions.png")
    assert len(found) == 8
    for name, cell in zip(photos, found, strict=False):
        with Image.open(name) as photo:
            expected = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        assert abs(cell - expected.astype(int)).mean() < 3


def test_morph_makes_a_strip_from_one_face_to_another(facevae, model):
    done = facevae("morph", "a.png", "seed:4", "--steps", 5, "-m", model, "--quiet")
    assert (done.stdout, done.stderr) == ("morph.png\n", "")
    assert len(cells("morph.png")) == 5


def test_arith_edits_a_face(facevae, model):
    done = facevae("arith", "a.png", "--attr", "glasses", "--alpha", 2, "--json", "-m", model)
    values = json.loads(done.stdout)
    assert values["outputs"] == ["a-glasses.png"]
    assert len(cells("a-glasses.png")) == 1
    assert "model:" in done.stderr


def test_a_failure_is_one_line_and_leaves_nothing(facevae, model):
    before = entries()
    done = facevae("reconstruct", "a.png", "nowhere.png", "-m", model, code=1)
    assert done.stdout == ""
    assert done.stderr.startswith("error: nowhere.png: ")
    assert done.stderr.count("\n") == 1
    assert entries() - {"cache"} == before


# ---------------------------------------------------------------- what all have in common

EACH = {
    "reconstruct": ("reconstruct", "a.png", "b.png"),
    "sample": ("sample", "-n", "2"),
    "morph": ("morph", "a.png", "b.png", "--steps", "3"),
    "arith": ("arith", "a.png", "--attr", "Smiling"),
}
DEFAULTS = {
    "reconstruct": "reconstructions",
    "sample": "grid",
    "morph": "morph",
    "arith": "a-Smiling",
}


@pytest.mark.parametrize("command", EACH)
def test_a_default_name_never_replaces_a_file(run, command):
    name = DEFAULTS[command]
    Path(f"{name}.png").write_bytes(b"mine")
    assert run(*EACH[command]).stdout == f"{name}-1.png\n"
    assert run(*EACH[command]).stdout == f"{name}-2.png\n"
    assert Path(f"{name}.png").read_bytes() == b"mine"
    # the same command makes the same picture
    assert Path(f"{name}-1.png").read_bytes() == Path(f"{name}-2.png").read_bytes()


@pytest.mark.parametrize("command", EACH)
def test_a_file_that_is_named_is_replaced_in_the_format_of_its_suffix(run, command):
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP"), (".bmp", "BMP")):
        path = Path(f"deep/er/out{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")
        assert run(*EACH[command], "-o", path).stdout == f"{path}\n"
        with Image.open(path) as picture:
            assert picture.format == kind
    assert {p.name for p in Path("deep/er").iterdir()} == {
        f"out{s}" for s in (".png", ".jpg", ".webp", ".bmp")
    }


@pytest.mark.parametrize("command", EACH)
@pytest.mark.parametrize("named", ["out", "new.d/", "old.d"])
def test_a_folder_takes_a_file_for_each_picture(run, command, named):
    Path("old.d").mkdir()
    written = run(*EACH[command], "-o", named).stdout.splitlines()
    expected = {"reconstruct": 2, "sample": 2, "morph": 3, "arith": 1}[command]
    assert len(written) == expected
    assert {Path(p) for p in written} == set(Path(named).iterdir())
    for path in written:
        assert pixels_of(path).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("command", EACH)
def test_results_are_on_stdout_and_talk_on_stderr(run, command, model):
    done = run(*EACH[command], "--json")
    values = json.loads(done.stdout)
    assert values["model"] == {"name": str(model), "path": str(model)}
    assert [Path(p).exists() for p in values["outputs"]] == [True]
    assert f"model: {model}" in done.stderr
    quiet = run(*EACH[command], "--quiet")
    assert quiet.stderr == ""
    assert Path(quiet.stdout.strip()).exists()


@pytest.mark.parametrize("command", EACH)
@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("-o", "out.txt"), 2, "out.txt"),
        (("-o", "taken"), 2, "is a file"),
        (("--device", "abacus"), 2, "abacus"),
        (("--device", "cuda:99"), 2, "cuda:99"),
        (("--model", "nowhere"), 1, "nowhere"),
        (("--model", "a.png"), 1, "a.png"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(run, command, more, code, said):
    Path("taken").write_bytes(b"mine")
    before = entries()
    done = run(*EACH[command], *more, code=code)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert entries() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "-n", "4", "--columns", "4"),
        ("reconstruct", "a.png", "b.png", "c.png", "d.png"),
        ("reconstruct", "l.npz"),
        ("morph", "a.png", "b.png", "--steps", "4"),
        ("arith", "a.png", "-a", "smile", "--sweep", "0:1:4"),
        ("arith", "a.png", "-a", "smile", "--sweep", "0:1:3", "--compare"),
    ],
)
def test_what_its_format_cannot_hold_is_refused_before_it_is_made(run, monkeypatch, arguments):
    run("sample", "-n", 9, "--latents", "l.npz", "-o", "before.png")
    monkeypatch.setattr(images, "_LONGEST_SIDES", {".jpg": 3 * SIDE - 1})
    before = entries()
    with monkeypatch.context() as patch:
        patch.setattr(latents, "decode", None)
        done = run(*arguments, "-o", "out.jpg", code=2)
    assert "px are more than the 95 this format holds; use .png" in done.stderr
    assert entries() == before
    run(*arguments, "-o", "out.png")


@pytest.mark.parametrize("command", ["reconstruct", "morph", "arith"])
def test_an_input_is_never_replaced(run, command):
    before = Path("a.png").read_bytes()
    for named in ("a.png", "./a.png"):
        done = run(*EACH[command], "-o", named, code=2)
        assert "inputs" in done.stderr
    assert Path("a.png").read_bytes() == before


def test_of_several_photos_those_that_cannot_be_used_are_left_out_and_named(run):
    Path("a.png").write_bytes(b"no picture")
    done = run("reconstruct", "a.png", "b.png", "-o", "out/")
    assert "left out: a.png: not a picture" in done.stderr
    assert [p.name for p in Path("out").iterdir()] == ["b.png"]
    assert "a.png: not a picture" in run("reconstruct", "a.png", code=1).stderr


@pytest.mark.parametrize("command", ["morph", "arith"])
def test_an_unreadable_photo_is_an_error_that_names_it(run, command):
    Path("a.png").write_bytes(b"no picture")
    before = entries()
    done = run(*EACH[command], code=1)
    assert done.stderr.splitlines()[-1].startswith("error: a.png: ")
    assert entries() == before


# ---------------------------------------------------------------- sample


def test_cell_i_of_a_seed_is_the_face_of_seed_plus_i(run):
    run("sample", "--seed", 3, "-n", 2, "-o", "from.png", "--columns", 2)
    run("sample", "--seeds", "3,4", "-o", "list.png", "--columns", 2)
    assert Path("from.png").read_bytes() == Path("list.png").read_bytes()
    written = run("sample", "--seeds", "3-4", "-o", "faces").stdout.splitlines()
    assert ["3" in Path(p).stem or "4" in Path(p).stem for p in written] == [True, True]
    run("morph", "seed:3", "seed:4", "--steps", 2, "-o", "morph.png")
    for found in (
        [pixels_of(p) for p in written],
        cells("morph.png"),
    ):
        for a, b in zip(cells("from.png"), found, strict=True):
            assert alike(a, b)


def test_a_face_does_not_depend_on_how_many_are_made_with_it(run):
    run("sample", "-n", 71, "-o", "many.png")
    run("sample", "--seeds", "70", "-o", "one.png")
    assert alike(cells("many.png")[70], cells("one.png")[0])


def test_a_grid_is_near_a_square_or_as_wide_as_asked(run):
    run("sample", "-n", 5, "-o", "square.png")
    run("sample", "-n", 5, "--columns", 5, "-o", "row.png")
    assert pixels_of("square.png").shape[:2] == (2 * SIDE, 3 * SIDE)
    assert pixels_of("row.png").shape[:2] == (SIDE, 5 * SIDE)
    assert (cells("square.png")[5] == 255).all()


def test_a_temperature_at_which_faces_fall_apart_is_told(run):
    assert "fall apart" not in run("sample", "-n", 1, "--temperature", 1.2).stderr
    assert "of 1.3 faces fall apart" in run("sample", "-n", 1, "--temperature", 1.3).stderr


def test_a_guidance_at_which_faces_break_is_told(run):
    assert "break" not in run("sample", "-n", 1, "--guidance", 4).stderr
    assert "of 5 faces break" in run("sample", "-n", 1, "--guidance", 5).stderr


def test_temperature_guidance_and_prior_change_the_faces_and_temperature_nought_makes_them_one(run):
    base = ("sample", "-n", 3, "--columns", 3, "-o")
    run(*base, "plain.png")
    run(*base, "cool.png", "--temperature", 0.5)
    run(*base, "cold.png", "--temperature", 0)
    run(*base, "guided.png", "--guidance", 3)
    run(*base, "unguided.png", "--guidance", 1)
    run(*base, "normal.png", "--prior", "normal")
    run(*base, "own.png", "--prior", "flow")
    assert Path("own.png").read_bytes() == Path("plain.png").read_bytes()
    assert Path("unguided.png").read_bytes() == Path("plain.png").read_bytes()
    for other in ("cool.png", "cold.png", "guided.png", "normal.png"):
        assert not alike(pixels_of("plain.png"), pixels_of(other))
    first, *others = cells("cold.png")
    assert all(alike(first, other) for other in others)


def test_a_range_of_too_many_seeds_is_told_so(run):
    for seeds in ("0-99999999999", str(2**63)):
        assert "is too many; 1,000,000 at a time" in run("sample", "--seeds", seeds, code=2).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seeds", "4-2"),
        ("--seeds", "x"),
        ("--seeds", ""),
        ("--seeds", "-3"),
        ("-n", "0"),
        ("--seed", "-1"),
        ("--seed", str(2**70)),
        ("--seed", str(2**63 - 1), "-n", "2"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--guidance", "-1"),
        ("--guidance", "11"),
        ("--guidance", "nan"),
        ("--prior", "gaussian", "--guidance", "2"),
        ("--prior", "vamp"),
        ("-n", "100000"),
        ("--seeds", "1-5", "-n", "3"),
        ("--seeds", "1-5", "--seed", "3"),
        ("--columns", "3", "-o", "folder/"),
        ("-o", ""),
        ("-o", "-"),
    ],
)
def test_samples_that_cannot_be_meant_are_refused(run, arguments):
    before = entries()
    done = run("sample", *arguments, code=2)
    assert done.stdout == ""
    assert entries() == before


# ---------------------------------------------------------------- reconstruct


def test_reconstructions_in_a_folder_bear_the_names_of_their_originals(run):
    for folder in ("x", "y"):
        Path(folder).mkdir()
        draw_face(ord(folder), 50).save(f"{folder}/face.png")
    written = run("reconstruct", "x/face.png", "y/face.png", "a.png", "-o", "out/").stdout.split()
    stems = [Path(p).stem for p in written]
    assert stems[0] == "face"
    assert stems[2] == "a"
    assert len(set(stems)) == 3
    run("reconstruct", "x/face.png", "y/face.png", "a.png", "-o", "sheet.png")
    for path, expected in zip(written, cells("sheet.png")[3:], strict=True):
        assert alike(pixels_of(path), expected)


def test_a_folder_is_searched_and_what_cannot_be_read_in_it_is_left_out_and_said(run):
    Path("in/deep").mkdir(parents=True)
    for i in range(3):
        draw_face(i, 40).save(f"in/deep/{i}.jpg")
    Path("in/broken.png").write_bytes(b"no picture")
    Path("in/notes.txt").write_text("no picture either")
    done = run("reconstruct", "in", "-o", "out", "--json")
    values = json.loads(done.stdout)
    assert [Path(p).name for p in values["outputs"]] == ["0.png", "1.png", "2.png"]
    assert len(values["skipped"]) == 1
    assert "broken.png" in values["skipped"][0]
    assert "broken.png" in done.stderr


def test_a_folder_of_nothing_readable_is_an_error(run):
    Path("in").mkdir()
    run("reconstruct", "in", code=1)
    Path("in/broken.png").write_bytes(b"no picture")
    done = run("reconstruct", "in", "-o", "out", code=1)
    assert "error: " in done.stderr
    assert not Path("out").exists()


def test_more_photos_than_fit_at_a_time_are_all_reconstructed_alike(run):
    Path("in").mkdir()
    for i in range(70):
        draw_face(i, SIDE).save(f"in/{i:02}.png")
    run("reconstruct", "in", "-o", "all")
    run("reconstruct", "in/68.png", "-o", "one")
    assert len(list(Path("all").iterdir())) == 70
    assert alike(pixels_of("all/68.png"), pixels_of("one/68.png"))


# ---------------------------------------------------------------- texture


def test_texture_is_whole_in_samples_and_none_in_all_else(run, finished, monkeypatch):
    monkeypatch.setenv("FACEVAE_MODEL", str(finished))
    run("sample", "-n", 2, "-o", "samples.png", "--latents", "samples.npz")
    for texture in (0, 0.5, 1):
        run("sample", "-n", 2, "-o", f"samples-{texture}.png", "--texture", texture)
        run("reconstruct", "a.png", "-o", f"rec-{texture}/", "--texture", texture)
        run("reconstruct", "samples.npz", "-o", f"again-{texture}.png", "--texture", texture)
        assert alike(pixels_of(f"samples-{texture}.png"), pixels_of(f"again-{texture}.png"))
    assert Path("samples.png").read_bytes() == Path("samples-1.png").read_bytes()
    assert not alike(pixels_of("samples-0.png"), pixels_of("samples-0.5.png"))
    assert not alike(pixels_of("samples-0.5.png"), pixels_of("samples-1.png"))
    run("reconstruct", "a.png", "-o", "rec/")
    for texture in (0, 0.5, 1):
        same = alike(pixels_of("rec/a.png"), pixels_of(f"rec-{texture}/a.png"))
        assert same == (texture == 0)
    run("morph", "a.png", "b.png", "--no-tune", "-o", "morph.png")
    run("arith", "a.png", "--attr", "smile", "--alpha", 0, "--no-tune", "-o", "edit.png")
    for picture in (cells("morph.png")[0], pixels_of("edit.png")):
        assert alike(picture, pixels_of("rec/a.png"))
    for texture in (0, 1):
        more = ("--no-tune", "--texture", texture)
        run("morph", "a.png", "b.png", "-o", f"morph-{texture}.png", *more)
        edit = ("arith", "a.png", "--attr", "smile", "--alpha", 0, *more)
        run(*edit, "-o", f"edit-{texture}.png")
        for picture in (cells(f"morph-{texture}.png")[0], pixels_of(f"edit-{texture}.png")):
            assert alike(picture, pixels_of(f"rec-{texture}/a.png"))


def test_without_a_finish_there_is_no_texture(run):
    run("sample", "-n", 2, "-o", "some.png", "--texture", 0)
    run("sample", "-n", 2, "-o", "whole.png", "--texture", 1)
    assert Path("some.png").read_bytes() == Path("whole.png").read_bytes()
    assert run("sample", "--texture", 1.5, code=2).stdout == ""


# ---------------------------------------------------------------- morph


def test_a_morph_begins_and_ends_at_the_reconstructions(run):
    run("reconstruct", "a.png", "b.png", "-o", "out")
    run("morph", "a.png", "b.png", "--steps", 4, "--no-tune", "-o", "strip.png")
    found = cells("strip.png")
    assert alike(found[0], pixels_of("out/a.png"))
    assert alike(found[-1], pixels_of("out/b.png"))
    assert not alike(found[0], found[-1])


def test_joints_of_a_morph_are_shown_once(run):
    more = ("--steps", 4, "--no-tune")
    values = json.loads(run("morph", "a.png", "b.png", "c.png", *more, "--json").stdout)
    found = cells("morph.png")
    assert values["num_pictures"] == len(found) == 7
    run("morph", "b.png", "c.png", *more, "-o", "leg.png")
    assert all(alike(a, b) for a, b in zip(found[3:], cells("leg.png"), strict=True))


def test_a_loop_comes_back(run):
    run("morph", "a.png", "b.png", "--steps", 4, "--loop", "-o", "loop.png")
    found = cells("loop.png")
    assert len(found) == 6
    assert all(alike(a, b) for a, b in zip(found[1:3], found[:3:-1], strict=True))


def test_the_straight_path_is_another_with_the_same_ends(run):
    run("morph", "a.png", "b.png", "--steps", 3, "-o", "slerp.png")
    run("morph", "a.png", "b.png", "--steps", 3, "--path", "lerp", "-o", "lerp.png")
    turned, straight = cells("slerp.png"), cells("lerp.png")
    assert alike(turned[0], straight[0])
    assert alike(turned[2], straight[2])
    assert not alike(turned[1], straight[1])


def test_the_suffix_chooses_between_strips_and_moving_pictures(run):
    base = ("morph", "a.png", "b.png", "--steps", 6, "--fps", 20, "-o")
    for name, more, count in (
        ("m.gif", (), 6),
        ("m.webp", (), 6),
        ("s.png", (), 1),
        ("m.png", ("--animate",), 6),
        ("s.webp", ("--strip",), 1),
    ):
        of_stills = [*base[:5], "-o"]
        run(*(base if count > 1 else of_stills), name, *more)
        with Image.open(name) as picture:
            assert getattr(picture, "n_frames", 1) == count, name
            assert picture.size == ((SIDE, SIDE) if count > 1 else (6 * SIDE, SIDE))
            if count > 1:
                picture.seek(1)
                picture.load()
                assert picture.info["duration"] == pytest.approx(50, abs=1)
    pytest.importorskip("av")
    run(*base, "m.mp4")
    assert b"ftyp" in Path("m.mp4").read_bytes()[:16]


@pytest.mark.parametrize(
    "arguments",
    [
        ("a.png",),
        ("a.png", "b.png", "--steps", "1"),
        ("a.png", "seed:x"),
        ("a.png", "seed:-1"),
        ("a.png", "b.png", "--path", "crooked"),
        ("a.png", "b.png", "-o", "m.jpg", "--animate"),
        ("a.png", "b.png", "--fps", "0"),
        ("a.png", "b.png", "--fps", "20"),  # the output is a strip
        ("a.png", "b.png", "--fps", "20", "-o", "m.gif", "--strip"),
    ],
)
def test_morphs_that_cannot_be_meant_are_refused(run, arguments):
    before = entries()
    run("morph", *arguments, code=2)
    assert entries() == before


def test_a_certain_face_is_not_to_be_looked_for_and_found_at_once(run):
    for command in (("reconstruct", "a.png"), ("arith", "a.png", "--attr", "smile")):
        done = run(*command, "--no-align", "--face", 2, code=2)
        assert "--face 2: --no-align looks for no face" in done.stderr


@pytest.mark.parametrize("said", [("--face", 2), ("--no-align",)])
def test_what_is_said_of_photos_is_refused_where_there_is_none(run, said):
    run("sample", "-n", 2, "--latents", "two.npz", "-o", "two.png")
    before = entries()
    for arguments in (
        ("morph", "seed:1", "seed:2"),
        ("arith", "seed:1", "--attr", "smile"),
        ("arith", "two.npz#0", "--plus", "seed:2"),
        ("reconstruct", "two.npz"),
    ):
        done = run(*arguments, *said, code=2)
        assert done.stderr.splitlines()[-1].startswith(
            f"error: {' '.join(map(str, said))}: is for photos"
        )
    assert entries() == before


# ---------------------------------------------------------------- arith


def test_alpha_nought_is_the_reconstruction(run):
    run("reconstruct", "a.png", "-o", "out")
    run("arith", "a.png", "--attr", "smile", "--alpha", 0, "--no-tune", "-o", "same.png")
    assert alike(pixels_of("same.png"), pixels_of("out/a.png"))


def test_names_are_forgiving_and_opposite_words_turn_the_direction(run):
    for i, name in enumerate(("glasses", "Eyeglasses", "eye glasses", "EYEGLASSES")):
        run("arith", "a.png", "-a", name, "-o", f"{i}.png")
        assert Path(f"{i}.png").read_bytes() == Path("0.png").read_bytes()
    run("arith", "a.png", "-a", "male", "--alpha", -1, "-o", "minus.png")
    run("arith", "a.png", "-a", "woman", "-o", "woman.png")
    assert alike(pixels_of("minus.png"), pixels_of("woman.png"))


def test_attributes_repeat_each_with_its_alpha_or_one_for_all(run):
    run("arith", "a.png", "-a", "smile", "-a", "male", "--alpha", 2, "-o", "all.png")
    both = ("arith", "a.png", "-a", "smile", "-a", "male")
    run(*both, "--alpha", 2, "--alpha", 2, "-o", "each.png")
    run(*both, "--alpha", 2, "--alpha", 0, "-o", "first.png")
    run("arith", "a.png", "-a", "smile", "--alpha", 2, "-o", "one.png")
    assert alike(pixels_of("all.png"), pixels_of("each.png"))
    assert alike(pixels_of("first.png"), pixels_of("one.png"))
    assert not alike(pixels_of("first.png"), pixels_of("all.png"))


def test_a_sweep_is_a_strip_through_its_alphas(run):
    done = run("arith", "a.png", "-a", "smile", "--sweep=-3:3:7", "-o", "sweep.png", "--json")
    found = cells("sweep.png")
    assert len(found) == 7
    assert json.loads(done.stdout)["alphas"] == [[float(a)] for a in range(-3, 4)]
    for place, alpha in ((0, -3), (3, 0), (5, 2)):
        run("arith", "a.png", "-a", "smile", "--alpha", alpha, "-o", "one.png")
        assert alike(found[place], pixels_of("one.png"))
    run("arith", "a.png", "-a", "smile", "--sweep", "-3:3:7", "-o", "apart.png")
    assert Path("apart.png").read_bytes() == Path("sweep.png").read_bytes()


def test_compare_puts_the_original_beside_the_edit(run):
    run("arith", "a.png", "-a", "smile", "-o", "alone.png")
    run("arith", "a.png", "-a", "smile", "--compare", "-o", "both.png")
    run("reconstruct", "a.png", "-o", "sheet.png")
    original, edited = cells("both.png")
    assert alike(original, cells("sheet.png")[0])
    assert alike(edited, pixels_of("alone.png"))


def test_faces_are_added_and_taken_away(run):
    run("arith", "a.png", "--minus", "b.png", "--plus", "b.png", "--no-tune", "-o", "same.png")
    run("reconstruct", "a.png", "c.png", "-o", "out")
    assert alike(pixels_of("same.png"), pixels_of("out/a.png"))
    exchange = ("--minus", "a.png", "--plus", "c.png")
    run("arith", "a.png", *exchange, "--no-tune", "-o", "c-again.png")
    assert alike(pixels_of("c-again.png"), pixels_of("out/c.png"))
    run("arith", "seed:1", "--minus", "seed:1", "--plus", "seed:2", "-o", "seeds.png")
    run("sample", "--seeds", "2", "-o", "two.png")
    assert alike(pixels_of("seeds.png"), pixels_of("two.png"))


def test_of_an_attribute_that_is_not_known_the_nearest_are_named_or_else_all(run):
    before = entries()
    done = run("arith", "a.png", "--attr", "smilin")
    assert "error" not in done.stderr, "a unique part will do"
    Path(done.stdout.strip()).unlink()
    done = run("arith", "a.png", "--attr", "eyeglases", code=2)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: --attr eyeglases: ")
    assert "did you mean Eyeglasses" in line
    line = run("arith", "a.png", "--attr", "zebra", code=2).stderr.splitlines()[-1]
    assert all(name in line for name in ATTRIBUTES)
    assert entries() == before


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--alpha", "2"),
        ("-a", "smile", "--alpha", "nan"),
        ("-a", "smile", "--alpha", "1", "--alpha", "2"),
        ("-a", "smile", "--sweep", "1:2"),
        ("-a", "smile", "--sweep", "0:1:1"),
        ("-a", "smile", "--sweep", "0:1:3", "--alpha", "1"),
        ("-a", "smile", "-a", "male", "--sweep", "0:1:3", "--alpha", "1", "--alpha", "2"),
        ("-a", "smile", "-a", "male", "--sweep", "0:1:3", "--sweep", "0:1:3", "--alpha", "1"),
        ("-a", "smile", "--sweep", "0:1:3", "--sweep", "0:1:3"),
        ("-a", "smile", "-a", "male", "-a", "beard", *("--sweep", "0:1:2") * 3),
        ("-a", "smile", "-a", "male", "--sweep", "0:1:40", "--sweep", "0:1:40"),
        ("-a", "smile", "-a", "male", *("--sweep", "0:1:2") * 2, "--compare"),
        ("-a", "smile", "--sweep", "0:1:1001"),
        ("-a", "smile", "--sweep", "nan:1:3"),
        ("--sweep", "0:1:3"),
        ("--keep", "male"),
        ("--keep", "male", "--plus", "b.png"),
        ("-a", "smile", "--keep", "smiling"),
        ("-a", "smile", "--keep", "nothing"),
        ("-a", "smile", "--keep", "male,none"),
        ("-a", "smile", "--keep", "all,male"),
        ("-a", "smile,male"),
        ("-a", "smile", "--animate", "-o", "folder/"),
        ("-a", "smile", "-a", "SMILING"),
        ("-a", "man", "-a", "woman"),
        ("-a", "smile", "-o", "a.mp3"),
        ("-a", "smile", "-o", "b.png", "--plus", "b.png"),
    ],
)
def test_arithmetic_that_cannot_be_meant_is_refused(run, arguments):
    before = entries()
    done = run("arith", "a.png", *arguments, code=2)
    assert done.stdout == ""
    assert entries() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-a", "smile,male"), "--attr smile --attr male"),
        (("-a", "smile", "--keep", "none,male"), "'none' stands alone"),
        (("-a", "smile", "--sweep", "0:1:3", "--alpha", "1"), "smile is swept already"),
        (("--plus", "b.png", "--alpha", "1"), "says how much of an --attr; name one"),
    ],
)
def test_what_was_likely_meant_is_said(run, arguments, said):
    assert said in run("arith", "a.png", *arguments, code=2).stderr


def test_without_a_name_what_moves_is_a_gif(run):
    done = run("morph", "a.png", "b.png", "--steps", "3", "--animate")
    assert done.stdout == "morph.gif\n"
    with Image.open("morph.gif") as film:
        assert film.n_frames == 3


def test_an_attribute_may_hold_a_slash_without_leading_out_of_the_folder(run):
    before = entries()
    done = run("arith", "a.png", "-a", "eye/glasses")
    assert entries() - before == {done.stdout.strip()}
    assert os.sep not in done.stdout.strip()
