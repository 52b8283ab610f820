"""Faces are found in photographs and brought into a framing."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Command, draw_face
from PIL import Image
from tiny import CONFIG, Ear, tiny_run

from facevae.bundle import load
from facevae.data import load_faces
from facevae.errors import ImageError
from facevae.faces import (
    FFHQ,
    POINTS,
    Framing,
    choose_face,
    find_faces,
    frame,
    load_face,
    measure_framing,
)
from facevae.hub import load_model
from facevae.images import save_picture, to_pixels
from facevae.latents import decode, latents_of_seeds
from facevae.training import train

PORTRAIT = ROOT / ".github" / "pictures" / "astronaut.png"
# where the eyes of that portrait were put when it was cut out
EYES = np.array([[0.32, 0.33], [0.68, 0.33]])


def portrait() -> Image.Image:
    return Image.open(PORTRAIT).convert("RGB")


def placed(turn: float, scale: float, corner: complex, size: tuple[int, int]) -> Image.Image:
    """The portrait turned by `turn` degrees and scaled, its upper left corner at `corner`."""
    step = 1 / (scale * np.exp(1j * math.radians(turn)))
    start = -corner * step
    affine = (step.real, -step.imag, start.real, step.imag, step.real, start.imag)
    method, smooth = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return portrait().transform(size, method, affine, smooth, fillcolor=(90, 110, 90))


def test_the_eyes_of_a_portrait_are_where_they_are() -> None:
    (face,) = find_faces(portrait())
    assert np.abs(face.points[:2] / 256 - EYES).max() < 0.03
    nose, left, right = face.points[2:]
    assert left[0] < nose[0] < right[0]
    assert nose[1] < min(left[1], right[1])


@pytest.mark.parametrize(
    ("turn", "scale"), [(0.0, 1.0), (20.0, 1.5), (-25.0, 0.6), (10.0, 3.0), (-15.0, 0.3)]
)
def test_a_turned_scaled_and_shifted_face_is_framed_as_before(turn: float, scale: float) -> None:
    side = round(256 * scale * 2)
    corner = complex(side * 0.35, side * 0.3)
    moved = placed(turn, scale, corner, (side, side))
    framing = Framing(
        tuple(map(tuple, (find_faces(portrait())[0].points / 256).tolist())), (0.02,) * 5
    )
    (face,) = find_faces(moved)
    again = frame(moved, face, framing, 256).astype(float)
    there = np.asarray(portrait(), dtype=float)
    middle = slice(32, 224)
    difference = np.abs(again - there)[middle, middle].mean()
    unframed = np.asarray(moved.resize((256, 256)), dtype=float)
    assert difference < 18
    assert difference < 0.5 * np.abs(unframed - there)[middle, middle].mean()


def test_a_picture_framed_so_already_is_not_resampled() -> None:
    picture = portrait()
    (face,) = find_faces(picture)
    framing = Framing(tuple(map(tuple, (face.points / 256).tolist())), (0.02,) * 5)
    assert np.array_equal(frame(picture, face, framing, 256), np.asarray(picture))


def test_the_largest_face_comes_first_and_the_others_by_number() -> None:
    picture = Image.new("RGB", (700, 400), (90, 110, 90))
    picture.paste(portrait().resize((120, 120)), (40, 60))
    picture.paste(portrait(), (300, 80))
    faces = find_faces(picture)
    assert len(faces) == 2
    assert faces[0].area > 2 * faces[1].area
    assert choose_face(faces, "x", 2).points[:, 0].max() < 200
    with pytest.raises(ImageError, match="has 2 faces"):
        choose_face(faces, "x", 3)


def test_a_face_at_the_edge_is_framed_with_what_there_is() -> None:
    picture = portrait().crop((0, 40, 256, 256))
    assert frame(picture, find_faces(picture)[0], FFHQ, 64).shape == (64, 64, 3)


def test_a_picture_without_a_face_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "navy").save(tmp_path / "sea.png")
    with pytest.raises(ImageError, match=r"sea\.png: no face found.*--no-align"):
        load_face(tmp_path / "sea.png", 64, FFHQ)
    assert load_face(tmp_path / "sea.png", 64, None).shape == (64, 64, 3)


def test_a_framing_is_measured_and_survives_being_stored() -> None:
    alike = np.stack([np.asarray(portrait())] * 4)
    framing = measure_framing(alike)
    assert framing is not None
    assert np.abs(np.array(framing.points[:2]) - EYES).max() < 0.03
    assert Framing.from_dict(framing.to_dict()) == framing
    assert tuple(framing.to_dict()) == POINTS


@pytest.mark.parametrize(
    "bad", [None, {}, {"left_eye": [0, 0, 1]}, {name: [0, 0] for name in POINTS}]
)
def test_what_is_no_framing_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="framing"):
        Framing.from_dict(bad)


def test_pictures_that_are_not_framed_alike_have_no_framing() -> None:
    places = [(0.4, 20, 30), (0.8, 200, 10), (0.5, 280, 300), (1.1, 10, 150), (0.6, 30, 330)]
    pictures = [placed(0, scale, complex(x, y), (512, 512)) for scale, x, y in places]
    assert measure_framing(np.stack([np.asarray(p) for p in pictures])) is None
    drawn = np.stack([np.asarray(draw_face(i)) for i in range(4)])
    assert measure_framing(drawn) is None


def test_photographs_of_the_published_framing_are_recovered(real_faces: Path) -> None:
    """Turned, scaled and shifted by known amounts, the square is found again."""
    from facevae.faces import _CORNERS, _square_of

    rng = np.random.default_rng(0)
    errors, rolls = [], []
    for path in sorted((real_faces / "ffhq256").iterdir())[::24]:
        turn, scale = np.exp(1j * np.radians(rng.uniform(-25, 25))), rng.uniform(0.6, 1.8)
        square = complex(300, 300) + 256 * scale * turn * (_CORNERS - (0.5 + 0.5j))
        step = 1 / (scale * turn)
        start = -square[0] * step
        affine = (step.real, -step.imag, start.real, step.imag, step.real, start.imag)
        moved = Image.open(path).convert("RGB")
        moved = moved.transform((600, 600), Image.Transform.AFFINE, affine)
        found = _square_of(find_faces(moved)[0].points, FFHQ)
        errors.append(np.abs(found - square).mean() / (256 * scale))
        rolls.append(abs(np.angle((found[1] - found[0]) / turn, deg=True)))
    assert np.mean(errors) < 0.035
    assert np.mean(rolls) < 1.2


def test_a_face_is_found_in_every_photograph_as_people_take_them(real_faces: Path) -> None:
    photos = sorted((real_faces / "photos").iterdir())[::4]
    assert all(find_faces(Image.open(path).convert("RGB")) for path in photos)


def test_align_makes_a_training_set_and_names_what_it_left_out(
    tmp_path: Path, facevae: Command
) -> None:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    placed(12, 1, 80 + 60j, (500, 400)).save(photos / "a.jpg")
    placed(-8, 0.7, 180 + 90j, (500, 400)).save(photos / "more" / "a.png")
    Image.new("RGB", (300, 200), "navy").save(photos / "sea.png")
    done = facevae("align", photos, "-o", "out", "--size", 96)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a-2.png", "a.png"]
    assert "sea.png: no face found" in done.stderr
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as aligned:
            assert aligned.size == (96, 96)
            eyes = find_faces(aligned.convert("RGB").resize((256, 256)))[0].points[:2] / 256
        assert np.abs(eyes - np.array(FFHQ.points[:2])).max() < 0.05


def test_align_without_any_face_fails_and_leaves_nothing(tmp_path: Path, facevae: Command) -> None:
    Image.new("RGB", (300, 200), "navy").save(tmp_path / "sea.png")
    done = facevae("align", "sea.png", "-o", "out", code=1)
    assert "none of the 1 photos" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_training_records_how_its_faces_are_framed_from_the_first_epoch_on(
    tmp_path: Path,
) -> None:
    """On faces that the model in the package makes, which are framed as it was trained."""
    packaged, _ = load_model()
    for seed in range(24):
        picture = to_pixels(decode(packaged.vae, latents_of_seeds(packaged, [seed])))[0]
        save_picture(tmp_path / "faces" / f"{seed}.png", picture)
    faces = load_faces([tmp_path / "faces"], 64, cache=tmp_path / "cache")

    class Impatient(Ear):
        def epoch(self, _figures: dict) -> None:
            raise InterruptedError

    model = dataclasses.replace(CONFIG, size=64)
    with pytest.raises(InterruptedError):
        train(tiny_run(tmp_path / "run", faces, model=model), Impatient())
    framing = load(tmp_path / "run" / "model.safetensors").framing
    assert framing is not None
    assert packaged.framing is not None
    assert np.abs(np.array(framing.points) - np.array(packaged.framing.points)).max() < 0.05
