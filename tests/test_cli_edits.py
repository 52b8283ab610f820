"""What `arith` and `morph` do with attributes, and faces that go back into their photos."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from PIL import Image
from tiny import CONFIG, tiny_bundle, with_texture

from facevae.cli.options import parse_ramp
from facevae.data.image_tensors import from_pixels, to_pixels
from facevae.errors import UsageError
from facevae.faces.alignment import load_face, place_photo
from facevae.faces.detail import with_detail, with_details
from facevae.latent_space import tuning
from facevae.latent_space.edits import edit_faces, measure_edit, plan_edit
from facevae.latent_space.latents import decode, encode_pixels, latents_of_seeds, morph
from facevae.latent_space.tuning import draw_edits, tune
from facevae.models.bundle import save
from facevae.models.loading import load_model

SIDE = CONFIG.size
PORTRAIT = ROOT / ".github" / "pictures" / "astronaut.png"


@pytest.fixture
def run(here, monkeypatch, tmp_path):
    """Run a command on the tiny model."""
    save(tiny_bundle(), tmp_path / "tiny.safetensors")
    monkeypatch.setenv("FACEVAE_MODEL", "tiny.safetensors")
    draw_face(0, 50).save("a.png")
    draw_face(1, 50).save("b.png")
    return here


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def edited(attrs, alphas, keep=None, seed=3):
    """The pictures (N, SIDE, SIDE, 3) that `arith seed:N` should make, by the library."""
    bundle = tiny_bundle()
    edit = plan_edit(bundle, attrs, keep)
    latents = latents_of_seeds(bundle, [seed]).repeat(len(alphas), 1)
    rows = torch.tensor(alphas)
    return to_pixels(decode(bundle.vae, edit_faces(bundle, edit, latents, rows, drawn_by(bundle))))


def drawn_by(bundle):
    """Latents → images of whole levels, as they are written."""
    return lambda latents: from_pixels(to_pixels(decode(bundle.vae, latents)))


def signed(value):
    return f"{value:+.2f}".replace("-0.00", "+0.00")


def alike(a, b):
    return a.shape == b.shape and abs(a.astype(int) - b.astype(int)).max() <= 1


# ---------------------------------------------------------------- sweeps


def test_two_sweeps_are_a_grid_the_first_across_and_the_second_down(run):
    command = ("arith", "seed:3", "-a", "smile", "-a", "beard", "-a", "male", "--alpha", 0.5)
    done = run(*command, "--sweep=-2:2:3", "--sweep", "0:3:2", "-o", "grid.png", "--json")
    alphas = [[x, y, 0.5] for y in (0.0, 3.0) for x in (-2.0, 0.0, 2.0)]
    assert json.loads(done.stdout)["alphas"] == alphas
    found = pixels_of("grid.png")
    expected = edited(["smile", "beard", "male"], alphas)
    rows = [np.concatenate(list(expected[i : i + 3]), axis=1) for i in (0, 3)]
    assert alike(found, np.concatenate(rows))


def test_a_grid_in_a_folder_is_a_file_each_row_by_row(run):
    command = ("arith", "seed:3", "-a", "smile", "-a", "male")
    done = run(*command, "--sweep", "0:1:2", "--sweep", "0:2:2", "-o", "out/")
    paths = done.stdout.split()
    expected = edited(["smile", "male"], [[0.0, 0], [1, 0], [0, 2], [1, 2]])
    assert len(paths) == 4
    assert all(alike(pixels_of(p), e) for p, e in zip(paths, expected, strict=True))


def test_a_sweep_of_the_first_of_two_leaves_the_other_as_it_is_asked(run):
    command = ("arith", "seed:3", "-a", "smile", "-a", "male", "--alpha", 2)
    run(*command, "--sweep", "0:2:3", "-o", "strip.png")
    expected = edited(["smile", "male"], [[0.0, 2], [1, 2], [2, 2]])
    assert alike(pixels_of("strip.png"), np.concatenate(list(expected), axis=1))


# ---------------------------------------------------------------- what is held still, and reported


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (None, ["Male", "Eyeglasses"]),
        ("none", []),
        ("", []),
        ("all", ["Male", "Eyeglasses", "No_Beard"]),
        ("beard", ["No_Beard"]),
        (" woman , glasses,", ["Male", "Eyeglasses"]),
    ],
)
def test_what_is_kept_is_as_asked_and_said(run, keep, kept):
    options = () if keep is None else ("--keep", keep)
    done = run("arith", "seed:3", "-a", "smile", *options, "-o", "x.png", "--json")
    values = json.loads(done.stdout)
    assert values["kept"] == kept
    names = None if keep is None else kept or ["none"]
    assert alike(pixels_of("x.png"), edited(["smile"], [[1.0]], names)[0])
    (moved,) = values["moved"]
    assert list(moved) == ["Smiling", *kept]
    line = next(line for line in done.stderr.splitlines() if line.startswith("moved "))
    assert f"moved Smiling {signed(moved['Smiling'])}" in line
    still = [name for name in kept if abs(moved[name]) <= 0.3]
    not_still = [name for name in kept if name not in still]
    for title, names in (("held still", still), ("but also moved", not_still)):
        said = re.search(rf"; {title}: ([^;]*);", line)
        assert (said[1] if said else "") == ", ".join(f"{n} {signed(moved[n])}" for n in names)
    assert f"{values['distance'][0]:.0%} of the way to someone else" in line


def test_what_is_reported_is_measured_on_each_picture(run):
    done = run("arith", "seed:3", "-a", "smile", "--sweep", "0:2:3", "-o", "x.png", "--json")
    values = json.loads(done.stdout)
    bundle = tiny_bundle()
    edit = plan_edit(bundle, ["smile"])
    latents = latents_of_seeds(bundle, [3])
    alphas = torch.tensor([[0.0], [1], [2]])
    after = edit_faces(bundle, edit, latents.repeat(3, 1), alphas, drawn_by(bundle))
    pixels = to_pixels(decode(bundle.vae, torch.cat([latents, after])))
    expected = measure_edit(bundle, edit, from_pixels(pixels))
    assert values["distance"] == pytest.approx(expected.distance.tolist(), abs=1e-3)
    for row, found in zip(expected.moved.tolist(), values["moved"], strict=True):
        assert list(found.values()) == pytest.approx(row, abs=1e-3)
    # in words it is of the picture that went farthest
    farthest = int(np.argmax(values["distance"]))
    assert (
        f"the farthest of 3: moved Smiling {signed(values['moved'][farthest]['Smiling'])}"
        in done.stderr
    )


def test_of_an_edit_that_leaves_faces_behind_there_is_a_warning(run, monkeypatch):
    # this network's own faces are all alike: nothing leads far from them
    monkeypatch.setattr("facevae.cli.edits._FAR", 0.1)
    for alpha, is_warned in (("0", False), ("100", True)):
        done = run("arith", "seed:3", "-a", "smile", "--alpha", alpha, "-o", "x.png", "--json")
        (distance,) = json.loads(done.stdout)["distance"]
        assert (distance > 0.1) == is_warned
        assert ("may fall apart" in done.stderr) == is_warned
        done = run(
            "morph", "seed:3", "seed:4", "-a", "smile", "--alpha", f"0:{alpha}", "-o", "m.png"
        )
        assert ("may fall apart" in done.stderr) == is_warned


def test_a_photo_shows_what_was_asked(here):
    """As the packaged model sees what is written: the tuned decoder's edit, with the photo's detail."""
    command = ("arith", PORTRAIT, "-a", "glasses", "--alpha", 1.5, "-o", "x.png", "--json")
    (moved,) = json.loads(here(*command, "-m", "default").stdout)["moved"]
    assert moved.pop("Eyeglasses") == pytest.approx(1.5, abs=0.12)
    assert moved.keys() == {"Male", "Young", "Smiling"}
    assert max(map(abs, moved.values())) < 0.12


def test_without_attributes_nothing_is_reported(run):
    done = run("arith", "a.png", "--plus", "b.png", "-o", "x.png", "--json")
    assert set(json.loads(done.stdout)) == {"model", "outputs", "attributes", "alphas", "tuned"}
    assert "moved" not in done.stderr
    assert "moved" not in run("arith", "a.png", "-a", "smile", "-o", "x.png", "-q").stderr


# ---------------------------------------------------------------- morphs


def test_a_morph_holds_an_attribute_all_the_way(run):
    base = ("morph", "seed:3", "seed:4", "--steps", 4, "-o")
    run(*base, "plain.png")
    run(*base, "smile.png", "-a", "smile", "--alpha", "2")
    run(*base, "same.png", "-a", "smile", "--alpha", "2:2")
    assert Path("same.png").read_bytes() == Path("smile.png").read_bytes()
    bundle = tiny_bundle()
    edit = plan_edit(bundle, ["smile"])
    way = morph(bundle, latents_of_seeds(bundle, [3, 4]), 4)
    expected = decode(
        bundle.vae, edit_faces(bundle, edit, way, torch.full((4, 1), 2.0), drawn_by(bundle))
    )
    assert alike(pixels_of("smile.png"), np.concatenate(list(to_pixels(expected)), axis=1))
    assert not alike(pixels_of("smile.png"), pixels_of("plain.png"))


def test_a_morph_may_change_attributes_on_its_way(run):
    """Each from its own start to its own end; at α = 0 there is the face as it is."""
    command = ("morph", "seed:3", "seed:3", "--steps", 5, "-o", "out/")
    run(*command, "-a", "smile", "-a", "woman", "--alpha=-2:2", "--alpha", "1.5:0")
    alphas = [[a, b] for a, b in zip(np.linspace(-2, 2, 5), np.linspace(1.5, 0, 5), strict=True)]
    expected = edited(["smile", "woman"], [list(map(float, row)) for row in alphas])
    found = [pixels_of(path) for path in sorted(Path("out").iterdir())]
    assert all(alike(a, b) for a, b in zip(found, expected, strict=True))


def test_a_loop_takes_an_attribute_there_and_back(run):
    command = ("morph", "seed:3", "seed:3", "--steps", 4, "--loop")
    run(*command, "-a", "smile", "--alpha", "0:3", "-o", "out/")
    expected = edited(["smile"], [[0.0], [1.0], [2.0], [3.0], [2.0], [1.0]])
    found = [pixels_of(path) for path in sorted(Path("out").iterdir())]
    assert len(found) == 6
    assert all(alike(a, b) for a, b in zip(found, expected, strict=True))


def test_what_a_morph_keeps_is_as_asked(run):
    base = ("morph", "seed:3", "seed:3", "--steps", 2, "-a", "smile", "--alpha", "0:2")
    run(*base, "--keep", "none", "-o", "none/")
    run(*base, "-o", "default/")
    assert alike(pixels_of("none/1.png"), edited(["smile"], [[2.0]], ["none"])[0])
    assert not alike(pixels_of("none/1.png"), pixels_of("default/1.png"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--alpha", "1"),
        ("--keep", "male"),
        ("-a", "smile", "--alpha", "x"),
        ("-a", "smile", "--alpha", "1:x"),
        ("-a", "smile", "--alpha", ":1"),
        ("-a", "smile", "--alpha", "1:"),
        ("-a", "smile", "--alpha", "1:2:3"),
        ("-a", "smile", "--alpha", "nan"),
        ("-a", "smile", "--alpha", "0:inf"),
        ("-a", "smile", "--alpha", "1", "--alpha", "2"),
        ("-a", "smile", "-a", "male", *("--alpha", "1") * 3),
        ("-a", "smile", "-a", "smiling"),
        ("-a", "smile", "--keep", "smile"),
        ("-a", "hair"),
    ],
)
def test_edits_of_a_morph_that_cannot_be_meant_are_refused(run, arguments):
    before = {path.as_posix() for path in Path().rglob("*")}
    done = run("morph", "seed:3", "b.png", *arguments, code=2)
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert {path.as_posix() for path in Path().rglob("*")} == before


def test_a_ramp_is_a_number_or_two():
    assert parse_ramp("1.5") == (1.5, 1.5)
    assert parse_ramp("-2:2") == (-2, 2)
    assert parse_ramp(" -1e0 : .5 ") == (-1, 0.5)
    for text in ("", ":", "a", "1:b", "1::2", "1:"):
        with pytest.raises(UsageError, match=f"^--alpha {re.escape(text)}: write it as"):
            parse_ramp(text)


# ---------------------------------------------------------------- likeness


def tuned_to(*names, texture=0.0):
    """The finished tiny model, tuned to photos, and the latents of these."""
    bundle = with_texture(tiny_bundle())
    pixels = np.stack([load_face(Path(name), SIDE, None) for name in names])
    latents = encode_pixels(bundle, pixels)
    return tune(bundle, from_pixels(pixels), latents, texture).bundle, latents


def nearly(a, b):
    """Whether pictures agree as far as rounding lets two tunings in bfloat16."""
    return a.shape == b.shape and abs(a.astype(int) - b.astype(int)).mean() < 1


@pytest.fixture
def finished(run):
    """Run a command on the tiny model as if it had been through a finish."""
    save(with_texture(tiny_bundle()), Path("tiny.safetensors"))
    return run


def test_an_edit_is_of_the_photo_and_not_of_its_reconstruction(run):
    """An edit by nothing changes nothing; without tuning, it is what the model drew."""
    command = ("arith", "a.png", "-a", "smile", "--alpha", 0)
    done = run(*command, "-o", "x.png", "--json")
    assert np.array_equal(pixels_of("x.png"), load_face(Path("a.png"), SIDE, None))
    assert re.search(
        r"^tuned to a\.png: [\d.]+ dB before, [\d.]+ dB after$", done.stderr, re.MULTILINE
    )
    assert "Tuning" in done.stderr
    (moved,) = json.loads(done.stdout)["moved"]
    assert set(moved.values()) == {0}
    done = run(*command, "--no-tune", "-o", "plain.png", "--json")
    run("reconstruct", "a.png", "-o", "out/")
    assert alike(pixels_of("plain.png"), pixels_of("out/a.png"))
    assert "uning" not in done.stderr
    assert "uned" not in done.stderr
    assert json.loads(done.stdout)["tuned"] is None


def test_an_edit_of_a_photo_keeps_its_detail(run):
    """As far as it does not change it; `--compare` shows both."""
    command = ("arith", "a.png", "-a", "smile", "--alpha", 0.5, "--compare")
    distances = []
    for more in ((), ("--no-tune",)):
        run(*command, *more, "-o", "x.png")
        original, after = np.split(pixels_of("x.png").astype(int), 2, axis=1)
        assert np.array_equal(original, load_face(Path("a.png"), SIDE, None))
        distances.append(abs(after - original).mean())
    assert 0 < distances[0] < 0.7 * distances[1]


@pytest.mark.parametrize("texture", [0.0, 1.0])
def test_all_photos_of_a_morph_keep_their_likeness(finished, texture):
    """Each is tuned to once, with the texture that is asked for, and is there as it was."""
    faces = ("a.png", "seed:3", "b.png", "a.png")
    command = ("morph", *faces, "--steps", 3, "--texture", texture, "-o")
    done = finished(*command, "tuned/", "--json")
    found = [pixels_of(f"tuned/{i}.png") for i in range(7)]
    bundle, (a, b) = tuned_to("a.png", "b.png", texture=texture)
    ends = torch.stack([a, *latents_of_seeds(bundle, [3]), b, a])
    way = morph(bundle, ends, 3)
    drawn = to_pixels(decode(bundle.vae, way, texture))
    assert nearly(found[2], drawn[2])
    for i, name in ((0, "a.png"), (4, "b.png"), (6, "a.png")):
        assert alike(found[i], load_face(Path(name), SIDE, None)), name
    photo = load_face(Path("a.png"), SIDE, None)
    assert nearly(found[1], with_details(drawn[1], [(0.5, drawn[0], photo)]))

    assert "tuned to 2 photos: " in done.stderr
    values = json.loads(done.stdout)["tuned"]
    assert (
        f"{values['psnr_before']:.1f} dB before, {values['psnr_after']:.1f} dB after" in done.stderr
    )
    finished(*command, "plain/", "--no-tune")
    plain = with_texture(tiny_bundle())
    first = to_pixels(decode(plain.vae, encode_pixels(plain, photo[None]), texture))
    assert nearly(pixels_of("plain/0.png"), first[0])


def test_edits_on_a_morph_are_drawn_as_those_of_a_photo(finished):
    """One that goes from a photo to itself is the sweep that `arith` makes of it."""
    attribute = ("--attr", "smile", "--texture", 1, "-o")
    finished("morph", "a.png", "a.png", "--steps", 4, "--alpha", "-1:2", *attribute, "way/")
    finished("arith", "a.png", "--sweep=-1:2:4", *attribute, "sweep/")
    frames, edits = (
        [pixels_of(path) for path in sorted(Path(folder).glob("*.png"))]
        for folder in ("way", "sweep")
    )
    assert len(frames) == len(edits) == 4
    assert all(nearly(x, y) for x, y in zip(frames, edits, strict=True))
    assert not nearly(frames[0], frames[3])


def test_all_photos_of_a_sum_keep_their_likeness(finished):
    """A face less itself and another one is the other one, and so is its likeness."""
    command = ("arith", "a.png", "--minus", "a.png", "--plus", "b.png", "--texture", 1)
    done = finished(*command, "-o", "b-again.png")
    assert "tuned to 2 photos: " in done.stderr
    bundle, latents = tuned_to("b.png", "a.png", texture=1.0)
    a, b = reversed(to_pixels(decode(bundle.vae, latents, 1.0)))
    photo = load_face(Path("a.png"), SIDE, None)
    assert nearly(pixels_of("b-again.png"), with_detail(b, a, photo))


def test_a_photo_gets_its_face_back_from_the_tuned_decoder(finished):
    """In a photo of the face's own size, where edges are blended."""
    draw_face(0, SIDE).save("small.png")
    finished("arith", "small.png", "-a", "smile", "--alpha", 1, "--paste", "-o", "whole.png")
    bundle, latents = tuned_to("small.png")
    plain, photo = with_texture(tiny_bundle()).vae, load_face(Path("small.png"), SIDE, None)

    def drawn(edited):
        return draw_edits(plain, bundle.vae, latents, edited, 0.0)

    def seen(edited):
        (unedited,), pictures = drawn(edited)
        return from_pixels(np.stack([with_detail(one, unedited, photo) for one in pictures]))

    edit = plan_edit(bundle, ["smile"])
    (unedited,), (edited,) = drawn(edit_faces(bundle, edit, latents, torch.ones(1, 1), seen))
    placed = place_photo(Path("small.png"), None)
    assert nearly(pixels_of("whole.png"), placed.paste(edited, unedited))


@pytest.mark.parametrize("more", [(), ("--paste",)])
def test_a_grey_photo_stays_grey(run, more):
    draw_face(0, 50).convert("L").save("grey.png")
    run("arith", "grey.png", "-a", "smile", "--alpha", 2, *more, "-o", "x.png")
    found = pixels_of("x.png")
    assert (found == found[..., :1]).all()


def test_the_face_that_is_asked_for_is_tuned_to(run, monkeypatch):
    """An edit by nothing is that face, as it was: the second of two, or the middle of the photo."""
    monkeypatch.setattr(tuning, "_NUM_STEPS", 2)
    with Image.open(PORTRAIT) as portrait:
        face = portrait.convert("RGB").resize((128, 128))
    photo = Image.new("RGB", (320, 160), "grey")
    photo.paste(face, (10, 16))
    photo.paste(face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((100, 100)), (200, 30))
    photo.save("two.png")
    base = ("arith", "two.png", "-a", "smile", "--alpha", 0, "-m", "default", "-o", "x.png")
    framing = load_model("default")[0].framing
    for options, found in (
        (("--face", 2), load_face(Path("two.png"), 128, framing, 2)),
        (("--no-align",), load_face(Path("two.png"), 128, None)),
    ):
        run(*base, *options)
        assert alike(pixels_of("x.png"), found)


def test_a_morph_of_grey_photos_is_grey(run):
    for number, name in enumerate(("grey.png", "gray.png")):
        draw_face(number, 50).convert("L").save(name)
    run("morph", "grey.png", "gray.png", "--steps", 3, "-o", "x.png")
    found = pixels_of("x.png")
    assert (found == found[..., :1]).all()
    run("morph", "grey.png", "a.png", "--steps", 3, "-o", "x.png")
    found = pixels_of("x.png")
    assert np.ptp(found[:, :SIDE].astype(int), axis=2).max() <= 2
    assert np.ptp(found[:, SIDE:].astype(int), axis=2).max() > 20


def test_tuning_that_does_not_help_is_said(run, monkeypatch):
    monkeypatch.setattr("facevae.latent_space.tuning._LEARNING_RATE", 1e6)
    done = run("morph", "a.png", "seed:3", "-o", "x.png", "--json")
    values = json.loads(done.stdout)["tuned"]
    assert values["psnr_before"] == values["psnr_after"]
    assert "tuning to a.png did not help: " in done.stderr


@pytest.mark.parametrize(
    "command", [("arith", "seed:3", "-a", "smile"), ("morph", "seed:3", "seed:4")]
)
def test_faces_that_are_not_photos_need_no_tuning(run, command):
    assert "uned to" not in run(*command, "-o", "x.png").stderr
    done = run(*command, "--no-tune", code=2)
    assert "--no-tune: is for photos, and seed:3 is not a photo; leave it out" in done.stderr


# ---------------------------------------------------------------- back into the photo


def photo(size=(150, 110), name="photo.png"):
    """A photo wider than it is high, of noise, so that every pixel tells."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(name)
    return noise


def test_an_edit_goes_back_into_the_whole_photo(run):
    before = photo()
    run("arith", "photo.png", "-a", "smile", "--alpha", 0.2, "--paste", "-o", "whole.png")
    after = pixels_of("whole.png")
    assert after.shape == before.shape
    # the model has no framing, so its square is the centred one
    assert np.array_equal(after[:, :20], before[:, :20])
    assert np.array_equal(after[:, -20:], before[:, -20:])
    assert not np.array_equal(after[:, 20:-20], before[:, 20:-20])
    # the photo's own detail stays, which no model of 32 px could draw
    run("reconstruct", "photo.png", "--paste", "-o", "drawn.png")
    kept, drawn = (
        np.corrcoef(found[30:80, 50:100].ravel(), before[30:80, 50:100].ravel())[0, 1]
        for found in (after, pixels_of("drawn.png"))
    )
    assert kept > 0.7
    assert drawn < 0.2


def test_an_edit_of_nothing_leaves_the_photo_to_the_last_bit(run):
    before = photo()
    run("arith", "photo.png", "-a", "smile", "--alpha", 0, "--paste", "-o", "whole.png")
    assert np.array_equal(pixels_of("whole.png"), before)
    run("arith", "photo.png", "--minus", "b.png", "--plus", "b.png", "--paste", "-o", "sum.png")
    assert abs(pixels_of("sum.png").astype(int) - before).max() <= 1


def test_a_strip_and_a_grid_may_be_of_whole_photos(run):
    before = photo()
    base = ("arith", "photo.png", "-a", "smile", "--paste")
    run(*base, "--sweep", "0:2:3", "--compare", "-o", "strip.png")
    strip = pixels_of("strip.png")
    assert strip.shape == (110, 4 * 150, 3)
    assert np.array_equal(strip[:, :150], before)
    assert np.array_equal(strip[:, 150:300], before), "α = 0"
    run(*base, "-a", "male", "--sweep", "0:2:3", "--sweep", "0:1:2", "-o", "grid.png")
    grid = pixels_of("grid.png")
    assert grid.shape == (2 * 110, 3 * 150, 3)
    assert np.array_equal(grid[:110, :150], before)
    run(*base, "--sweep", "0:2:3", "-o", "move.gif")
    with Image.open("move.gif") as film:
        assert (film.n_frames, film.size) == (3, (150, 110))


@pytest.mark.parametrize("face", ["seed:3", "latents.npz#a"])
def test_only_a_photo_takes_a_face_back(run, face):
    run("reconstruct", "a.png", "--latents", "latents.npz", "-o", "out/")
    done = run("arith", face, "-a", "smile", "--paste", code=2)
    assert f"{face}: --paste puts an edit back into a photo, and this is not a photo" in done.stderr


def test_a_reconstruction_goes_back_into_its_photo(run):
    before = photo()
    run("reconstruct", "photo.png", "--paste", "-o", "whole.png")
    after = pixels_of("whole.png")
    assert after.shape == before.shape
    assert np.array_equal(after[:, :20], before[:, :20])
    bundle = tiny_bundle()
    placed = place_photo(Path("photo.png"), None)
    latents = encode_pixels(bundle, placed.cut(SIDE)[None])
    assert alike(after, placed.paste(to_pixels(decode(bundle.vae, latents))[0]))


def test_reconstructions_of_a_folder_go_back_each_into_its_own(run):
    Path("photos/deep").mkdir(parents=True)
    sizes = {"photos/x.png": (150, 110), "photos/deep/x.png": (60, 90), "photos/y.png": (40, 40)}
    for name, size in sizes.items():
        photo(size, name)
    Path("photos/torn.png").write_bytes(b"no picture")
    done = run("reconstruct", "photos", "--paste", "-o", "out/", "--json")
    values = json.loads(done.stdout)
    assert len(values["outputs"]) == 3
    assert len(values["skipped"]) == 1
    assert values["skipped"][0].startswith("photos/torn.png: ")
    found = sorted(pixels_of(path).shape[1::-1] for path in values["outputs"])
    assert found == sorted(sizes.values())


def test_several_whole_photos_do_not_go_on_one_sheet(run):
    before = {path.as_posix() for path in Path().rglob("*")}
    for output in ((), ("-o", "x.png")):
        done = run("reconstruct", "a.png", "b.png", "--paste", *output, code=2)
        assert "name a folder: -o out/" in done.stderr
    assert {path.as_posix() for path in Path().rglob("*")} == before


def test_a_photo_is_never_replaced_by_its_edit(run):
    before = Path("a.png").read_bytes()
    run("arith", "a.png", "-a", "smile", "--paste", "-o", "./a.png", code=2)
    run("reconstruct", "a.png", "--paste", "-o", "a.png", code=2)
    assert Path("a.png").read_bytes() == before


def test_a_face_in_a_photo_that_lies_on_its_side_is_edited_where_it_is(here):
    """With the model in the package, which frames faces."""
    with Image.open(PORTRAIT) as portrait:
        scene = Image.new("RGB", (420, 360), (90, 110, 90))
        scene.paste(portrait.convert("RGB"), (120, 60))
    scene.save("up.png")
    scene.transpose(Image.Transpose.ROTATE_90).save("lying.png")
    for name in ("up", "lying"):
        command = ("arith", f"{name}.png", "-a", "smile", "--alpha", 1.5, "--paste")
        here(*command, "-o", f"{name}-smile.png", "-m", "default")
    before, after = np.asarray(scene), pixels_of("up-smile.png")
    assert np.array_equal(np.rot90(after), pixels_of("lying-smile.png"))
    changed = (before != after).any(2)
    ys, xs = np.nonzero(changed)
    assert changed.mean() < 0.5
    # about the mouth more than anywhere
    strength = np.abs(after.astype(int) - before).sum(2)
    square = place_photo(Path("up.png"), load_model()[0].framing).square
    assert xs.min() >= square.real.min() - 1
    assert ys.max() <= square.imag.max() + 1
    mouth = strength[60 + 110 : 60 + 180, 120 + 70 : 120 + 190]
    assert mouth.mean() > 1.6 * strength[changed].mean()
