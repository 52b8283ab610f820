from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from facevae.cli.outputs import Output, choose_folder, choose_output, folder_paths, write_sequence
from facevae.data.images import ANIMATION_SUFFIXES, STILL_SUFFIXES
from facevae.errors import FacevaeError, UsageError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def frames(count: int, size: int = 16) -> np.ndarray:
    """Flat pictures of different colours, which any codec keeps distinct."""
    sheet = np.zeros((count, size, size, 3), np.uint8)
    sheet[..., 0] = np.linspace(0, 255, count).astype(np.uint8)[:, None, None]
    sheet[..., 2] = 128
    return sheet


def test_without_a_name_the_default_takes_the_first_free_one():
    for expected in ("grid.png", "grid-1.png", "grid-2.png"):
        target = choose_output(None, "grid.png")
        assert target == Output(Path(expected), is_folder=False)
        target.path.touch()


@pytest.mark.parametrize("named", ["out", "out/", "out.d/", "a/b/c", "old.d"])
def test_a_name_without_a_suffix_a_trailing_slash_or_a_folder_is_a_folder(named):
    Path("old.d").mkdir()
    assert choose_output(named, "grid.png") == Output(Path(named), is_folder=True)


@pytest.mark.parametrize(
    ("named", "said"), [("", "empty"), (" ", "empty"), ("-", "stdout"), (".png", "before it")]
)
def test_what_can_only_be_a_slip_is_refused(named, said):
    with pytest.raises(UsageError, match=said):
        choose_output(named, "grid.png")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("named", ["taken/grid.png", "taken/deeper/grid.png", "taken/out/"])
def test_a_place_below_a_file_is_refused_before_the_work(named):
    Path("taken").touch()
    with pytest.raises(FacevaeError, match=r"cannot be written there \(Not a directory\).* -o"):
        choose_output(named, "grid.png")


def test_a_folder_that_nothing_may_be_put_into_is_refused_before_the_work(monkeypatch):
    Path("closed").mkdir()
    # the user who runs the tests may be able to write everywhere
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != Path("closed"))
    for named in ("closed/grid.png", "closed/deeper/grid.png", "closed/"):
        with pytest.raises(FacevaeError, match=r"cannot be written there \(Permission denied\)"):
            choose_output(named, "grid.png")
    assert choose_output("open/grid.png", "grid.png").path == Path("open/grid.png")


@pytest.mark.parametrize("named", ["out", "out/", "v1.2", "faces.png/"])
def test_where_a_folder_is_needed_any_name_will_do(named):
    assert choose_folder(named) == Output(Path(named), is_folder=True)


@pytest.mark.parametrize("named", ["faces.png", "model.ONNX", "film.mp4"])
def test_where_a_folder_is_needed_what_looks_like_a_file_is_refused(named):
    with pytest.raises(UsageError, match="looks like a file"):
        choose_folder(named)
    Path(named).mkdir()
    assert choose_folder(named).is_folder


@pytest.mark.parametrize("suffix", [*STILL_SUFFIXES, ".PNG"])
def test_a_suffix_that_can_be_written_is_a_file_even_where_one_is(suffix):
    path = Path(f"face{suffix}")
    path.touch()
    assert choose_output(str(path), "grid.png") == Output(path, is_folder=False)


@pytest.mark.parametrize("named", ["a.txt", "a.safetensors", "a.gif", "a.mp4", "a.p"])
def test_a_suffix_that_cannot_be_written_is_refused_with_those_that_can(named):
    with pytest.raises(UsageError, match=r"\.png") as caught:
        choose_output(named, "grid.png")
    assert str(caught.value).startswith(f"{named}: ")


@pytest.mark.parametrize("suffix", [*ANIMATION_SUFFIXES, ".mp4"])
def test_animations_may_be_named_where_there_can_be_any(suffix):
    assert choose_output(f"a{suffix}", "morph.png", animation=True).path == Path(f"a{suffix}")


@pytest.mark.parametrize("named", ["out", "out/"])
def test_a_file_is_no_folder(named):
    Path("out").write_text("mine")
    with pytest.raises(UsageError, match=r"^out: is a file"):
        choose_output(named, "grid.png")


@pytest.mark.parametrize("named", ["a.png", "./a.png", "sub/../a.png", "link.png"])
def test_an_input_is_never_an_output_however_it_is_spelt(named):
    Path("sub").mkdir()
    Path("a.png").touch()
    Path("link.png").symlink_to("a.png")
    with pytest.raises(UsageError, match="inputs"):
        choose_output(named, "grid.png", inputs=["a.png"])


def test_an_input_in_the_output_folder_is_never_replaced():
    target = Output(Path("photos"), is_folder=True)
    with pytest.raises(UsageError, match="inputs"):
        folder_paths(target, ["x/b.jpg", "photos/a.png"], ["x/b.jpg", "photos/a.png"])
    assert folder_paths(target, ["photos/a.jpg"], ["photos/a.jpg"]) == [Path("photos/a.png")]


def test_equal_stems_from_different_folders_do_not_collide():
    target = Output(Path("out"), is_folder=True)
    paths = folder_paths(target, ["x/face.png", "y/face.jpg", "y/FACE.png", "z/face-2.png"])
    assert len({str(p).casefold() for p in paths}) == 4
    assert paths[0] == Path("out/face.png")


def test_frames_in_a_folder_are_numbered_in_order():
    made = write_sequence(
        Output(Path("out"), is_folder=True), frames(11), animate=False, frames_per_second=5
    )
    assert sorted(made) == made == sorted(Path("out").iterdir())
    for path, frame in zip(made, frames(11), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), frame)


def test_a_strip_is_the_frames_side_by_side():
    (path,) = write_sequence(
        Output(Path("s.png"), is_folder=False), frames(4), animate=False, frames_per_second=5
    )
    assert np.array_equal(np.asarray(Image.open(path)), np.concatenate(list(frames(4)), axis=1))


def test_with_columns_what_were_a_strip_has_rows():
    target = Output(Path("s.png"), is_folder=False)
    write_sequence(target, frames(6), animate=False, frames_per_second=5, columns=3)
    rows = [np.concatenate(list(frames(6)[i : i + 3]), axis=1) for i in (0, 3)]
    assert np.array_equal(np.asarray(Image.open(target.path)), np.concatenate(rows))


def test_columns_are_of_no_matter_where_pictures_move_or_lie_in_a_folder():
    folder = Output(Path("out"), is_folder=True)
    made = write_sequence(folder, frames(6), animate=False, frames_per_second=5, columns=3)
    assert len(made) == 6
    film = Output(Path("m.gif"), is_folder=False)
    write_sequence(film, frames(6), animate=True, frames_per_second=5, columns=3)
    with Image.open(film.path) as image:
        assert (image.n_frames, image.size) == (6, (16, 16))


@pytest.mark.parametrize("suffix", ANIMATION_SUFFIXES)
def test_an_animation_shows_each_frame_for_its_time_for_ever(suffix):
    target = Output(Path(f"m{suffix}"), is_folder=False)
    assert write_sequence(target, frames(6), animate=True, frames_per_second=5) == [target.path]
    with Image.open(target.path) as image:
        assert image.n_frames == 6
        assert image.info["loop"] == 0
        for frame, expected in zip(ImageSequence.Iterator(image), frames(6), strict=True):
            levels = np.asarray(frame.convert("RGB")).astype(int)
            assert abs(levels - expected).max() <= 8
            assert frame.info["duration"] == pytest.approx(200, abs=1)


def test_a_film_has_as_many_frames_at_the_right_pace():
    av = pytest.importorskip("av")
    target = Output(Path("m.mp4"), is_folder=False)
    write_sequence(target, frames(9, 33), animate=True, frames_per_second=12)
    with av.open("m.mp4") as film:
        stream = film.streams.video[0]
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert stream.average_rate == 12
        assert (stream.width, stream.height) == (32, 32)
    assert len(shown) == 9
    assert abs(shown[0].astype(int).mean((0, 1)) - frames(9)[0, 0, 0]).max() < 12


@pytest.mark.parametrize("animate", [True, False])
def test_nothing_is_left_behind_when_writing_fails(animate):
    Path("a.png").mkdir()  # a folder cannot be replaced by a file
    Path("a.png/mine").touch()
    with pytest.raises(FacevaeError, match=r"^a\.png: cannot be written there \(Is a directory\)"):
        write_sequence(
            Output(Path("a.png"), is_folder=False), frames(3), animate=animate, frames_per_second=5
        )
    assert [p.name for p in Path().iterdir()] == ["a.png"]


def test_one_frame_is_a_still_picture_without_loss(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    output = choose_output(str(tmp_path / "one.webp"), "x.png", animation=True)
    write_sequence(output, pixels, animate=True, frames_per_second=12)
    with Image.open(tmp_path / "one.webp") as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), pixels[0])
