"""Every kind of picture is read upright and in sRGB, and written whole or not at all."""

import errno
import gc
import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms

from facevae.data import images
from facevae.errors import FacevaeError, ImageError, UsageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
STILLS = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".PNG", ".JPG"]


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_pixels(height, width):
    """A picture that survives lossy formats: a smooth gradient between two colours."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, 128 + 0 * x], axis=2).astype(np.uint8)


def middle(path, size=16):
    """The colour at the middle of a picture after loading."""
    return images.load_square(path, size)[size // 2, size // 2].astype(int)


# ---------------------------------------------------------------- reading

# how a picture is stored for each tag: where the standard has row 0 and column 0
STORED_AS = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_every_orientation_is_shown_upright(tmp_path, orientation, suffix):
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16, :16], upright[:16, 16:], upright[16:, :16] = RED, GREEN, BLUE
    # with tag 6, row 0 of the stored picture is the right side: stored[0, j] is upright[j, -1]
    stored = np.ascontiguousarray(STORED_AS[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    got = images.load_square(path, 32).astype(int)
    corners = got[8, 8], got[8, 24], got[24, 8], got[24, 24]
    for corner, colour in zip(corners, (RED, GREEN, BLUE, (0, 0, 0)), strict=True):
        assert np.abs(corner - colour).max() < 8


def test_orientation_6_means_that_the_first_row_is_the_right_side():
    stored = STORED_AS[6](np.array([["top left", "top right"], ["bottom left", "bottom right"]]))
    assert stored[0].tolist() == ["top right", "bottom right"]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 255, WHITE),
        ("L", 77, (77, 77, 77)),
        ("LA", (0, 0), WHITE),
        ("LA", (0, 128), (127, 127, 127)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("P", 0, (0, 0, 0)),
        ("I;16", 0, (0, 0, 0)),
        ("I;16", 65535, WHITE),
        ("I;16", 32768, (128, 128, 128)),
        ("I;16", 255, (1, 1, 1)),
    ],
)
def test_every_mode_of_png_is_shown_as_on_a_white_page(tmp_path, mode, colour, expected):
    Image.new(mode, (20, 20), colour).save(tmp_path / "a.png")
    assert np.abs(middle(tmp_path / "a.png") - expected).max() <= 1


def test_16_bit_grey_keeps_its_gradient(tmp_path):
    ramp = np.linspace(0, 65535, 32).astype(np.uint16)[None].repeat(32, axis=0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    got = images.load_square(tmp_path / "a.png", 32)
    assert np.abs(got[..., 0].astype(int) - ramp / 257).max() <= 1
    assert (got == got[..., :1]).all()


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_tiffs_are_read_by_the_scale_that_holds_them(tmp_path, top):
    ramp = np.linspace(0, top, 32, dtype=np.float32)[None].repeat(32, axis=0)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    got = images.load_square(tmp_path / "a.tif", 32)[..., 1]
    assert np.abs(got.astype(int) - ramp / top * 255).max() <= 1


def test_a_float_tiff_with_holes_is_read(tmp_path):
    values = np.full((16, 16), 0.5, np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.abs(middle(tmp_path / "a.tif") - 127.5).max() <= 1


def palette_picture():
    picture = Image.new("P", (20, 20), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    return picture


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_a_palette_is_looked_up(tmp_path, suffix):
    palette_picture().save(tmp_path / f"a{suffix}")
    assert middle(tmp_path / f"a{suffix}").tolist() == [200, 100, 50]


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_a_transparent_palette_entry_is_white(tmp_path, suffix):
    picture = palette_picture()
    picture.paste(0, (0, 0, 20, 10))
    picture.save(tmp_path / f"a{suffix}", transparency=0)
    got = images.load_square(tmp_path / f"a{suffix}", 20)
    assert got[3, 10].tolist() == [255, 255, 255]
    assert got[16, 10].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("ink", "expected"),
    [((0, 255, 255, 0), RED), ((255, 0, 255, 0), GREEN), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_a_cmyk_jpeg_is_shown_in_its_colours(tmp_path, ink, expected):
    Image.new("CMYK", (32, 32), ink).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(middle(tmp_path / "a.jpg") - expected).max() < 12


def swapped_profile():
    """A colour profile in which red and blue are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    count = struct.unpack(">I", profile[128:132])[0]
    table, rest = profile[132 : 132 + 12 * count], profile[132 + 12 * count :]
    table = table.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    rest = rest.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    return profile[:132] + table + rest


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_colour_profile_is_honoured(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (32, 32), RED).save(path, icc_profile=swapped_profile())
    assert np.abs(middle(path) - BLUE).max() < 12


def test_a_colour_profile_is_honoured_beside_an_alpha_channel(tmp_path):
    picture = Image.new("RGBA", (32, 32), (*RED, 255))
    picture.save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert np.abs(middle(tmp_path / "a.png") - BLUE).max() < 12


def test_a_colour_profile_is_honoured_with_a_palette(tmp_path):
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette(RED)
    picture.save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert np.abs(middle(tmp_path / "a.png") - BLUE).max() < 12


@pytest.mark.parametrize(
    "profile",
    [b"", b"no profile at all", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
    ids=["empty", "broken", "sRGB"],
)
def test_a_profile_that_says_nothing_new_changes_nothing(tmp_path, profile):
    pixels = random_pixels(16, 16, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(images.load_square(tmp_path / "a.png", 16), pixels)


@pytest.mark.parametrize("upright", [False, True])
def test_the_largest_centred_square_is_taken(tmp_path, upright):
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, :30], pixels[:, 30:60], pixels[:, 60:] = RED, GREEN, BLUE
    if upright:
        pixels = pixels.swapaxes(0, 1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (images.load_square(tmp_path / "a.png", 30) == GREEN).all()


def test_a_picture_of_the_right_size_is_taken_as_it_is(tmp_path):
    pixels = random_pixels(24, 24, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.load_square(tmp_path / "a.png", 24), pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(("height", "width"), [(300, 200), (1, 1), (7, 1000), (2000, 1500)])
def test_any_proportions_become_a_square(tmp_path, height, width, suffix):
    Image.new("RGB", (width, height), (90, 60, 30)).save(tmp_path / f"a{suffix}")
    got = images.load_square(tmp_path / f"a{suffix}", 32)
    assert got.shape == (32, 32, 3)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - (90, 60, 30)).max() <= 3


def test_scaling_down_averages_instead_of_picking(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    got = images.load_square(tmp_path / "a.png", 32)[2:-2, 2:-2]
    assert np.abs(got.astype(int) - 127.5).max() < 10


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(middle(tmp_path / f"a{suffix}") - RED).max() < 8


def test_an_open_file_is_read_as_a_path_is(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(random_pixels(20, 30, 3)).save(path)
    with path.open("rb") as file:
        from_file = images.load_square(file, 16, "a.png")
    np.testing.assert_array_equal(from_file, images.load_square(path, 16))


def header_only(width, height):
    """The beginning of a PNG whose header declares this size."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def encoded(kind, pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


DAMAGED = {
    "empty.png": b"",
    "text.jpg": b"this is no picture\nbut two lines of text\n",
    "zeros.png": bytes(1000),
    "truncated.png": encoded("PNG", random_pixels(64, 64, 3))[:3000],
    "truncated.jpg": encoded("JPEG", random_pixels(64, 64, 3))[:1500],
    "truncated.webp": encoded("WEBP", random_pixels(64, 64, 3))[:1000],
    "truncated.gif": encoded("GIF", random_pixels(64, 64, 3))[:900],
    "truncated.bmp": encoded("BMP", random_pixels(64, 64, 3))[:1000],
    "truncated.tif": encoded("TIFF", random_pixels(64, 64, 3))[:1000],
    "signature.png": b"\x89PNG\r\n\x1a\n",
    "header.png": header_only(64, 64),
    "bomb.png": header_only(20_000, 20_000),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_no_sound_picture_is_one_line_that_names_it(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ImageError) as caught:
        images.load_square(path, 32)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_bomb_is_known_by_its_size_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(DAMAGED["bomb.png"])
    with pytest.raises(ImageError, match="too many pixels"):
        images.load_square(tmp_path / "a.png", 32)


def test_pictures_that_are_programs_are_not_run(tmp_path, monkeypatch):
    """Pillow passes PostScript to Ghostscript whatever the name of the file."""

    def run(*_args, **_kwargs):
        pytest.fail("it was run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: .*EPS is a vector format"):
        images.load_square(tmp_path / "a.png", 32)


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    monkeypatch.setattr(images, "_LARGE", 1000)
    monkeypatch.setattr(images, "upright", lambda _image: images._large_picture_lock.locked())
    assert images.open_picture(tmp_path / "a.png")
    assert not images.open_picture(tmp_path / "small.png")


def test_a_missing_picture_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file$"):
        images.load_square(tmp_path / "nowhere.png", 32)
    with pytest.raises(ImageError, match=f"^{tmp_path}: is a folder, not a picture$"):
        images.load_square(tmp_path, 32)


def test_a_damaged_picture_goes_by_the_name_it_is_given():
    with pytest.raises(ImageError, match=r"^shard\.tar:a\.png: not a picture that can be read$"):
        images.load_square(io.BytesIO(b"text"), 32, "shard.tar:a.png")


# ---------------------------------------------------------------- arranging


def test_a_grid_fills_rows_from_the_top_left():
    pixels = random_pixels(5, 4, 6, 3)
    sheet = images.grid(pixels, columns=3)
    assert sheet.shape == (8, 18, 3)
    for i, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        cell = sheet[4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
        np.testing.assert_array_equal(cell, pixels[i])
    assert (sheet[4:, 12:] == 255).all()


def test_a_gap_stands_white_between_pictures_and_not_around_them():
    pixels = np.zeros((4, 3, 3, 3), np.uint8)
    sheet = images.grid(pixels, columns=2, gap=2)
    assert sheet.shape == (8, 8, 3)
    white = (sheet == 255).all(2)
    assert white[3:5].all()
    assert white[:, 3:5].all()
    assert white.sum() == 8 * 8 - 4 * 3 * 3


@pytest.mark.parametrize(
    ("count", "rows", "columns"),
    [(1, 1, 1), (2, 1, 2), (4, 2, 2), (5, 2, 3), (9, 3, 3), (10, 3, 4)],
)
def test_a_grid_is_as_near_a_square_as_its_number_allows(count, rows, columns):
    assert images.grid(random_pixels(count, 2, 2, 3)).shape == (2 * rows, 2 * columns, 3)


def test_a_paired_grid_has_each_row_above_its_partner():
    upper, lower = random_pixels(5, 2, 2, 3), random_pixels(5, 2, 2, 3, seed=1)
    sheet = images.paired_grid(upper, lower, columns=3)
    assert sheet.shape == (8, 6, 3)
    for i in range(5):
        top, left = i // 3 * 4, i % 3 * 2
        np.testing.assert_array_equal(sheet[top : top + 2, left : left + 2], upper[i])
        np.testing.assert_array_equal(sheet[top + 2 : top + 4, left : left + 2], lower[i])
    assert (sheet[4:, 4:] == 255).all()


def test_a_paired_grid_is_no_wider_than_its_pictures():
    assert images.paired_grid(*random_pixels(2, 3, 2, 2, 3), columns=8).shape == (4, 6, 3)


# ---------------------------------------------------------------- writing


@pytest.mark.skipif(sys.version_info < (3, 13), reason="earlier Pythons say nothing")
def test_a_picture_that_finds_no_room_leaves_nothing_to_be_reported_later(tmp_path, monkeypatch):
    """Its bytes are freed quietly, even in a cycle with the traceback of the error."""
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", fail)
    with pytest.raises(FacevaeError, match="No space") as caught:
        images.save_picture(tmp_path / "a.png", smooth_pixels(8, 8))
    caught.value.cycle = caught.value
    del caught
    gc.collect()
    assert reports == []


@pytest.mark.parametrize("suffix", STILLS)
def test_a_picture_is_written_as_its_suffix_says(tmp_path, suffix):
    pixels = smooth_pixels(17, 23)
    path = tmp_path / "deep" / f"a{suffix}"
    images.save_picture(path, pixels)
    with Image.open(path) as image:
        assert image.format == Image.registered_extensions()[suffix.lower()]
        got = np.asarray(image.convert("RGB")).astype(int)
    tolerance = 4 if image.format == "JPEG" else 0  # the only lossy one
    assert np.abs(got - pixels).mean() <= tolerance
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.gif", "a.mp4", ".png"])
def test_a_picture_of_another_suffix_is_refused_before_any_work(tmp_path, name):
    with pytest.raises(UsageError, match=r"use one of \.png, \.jpg"):
        images.save_picture(tmp_path / name, smooth_pixels(4, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises((TypeError, ValueError, OSError)):
        images.save_picture(path, random_pixels(4, 4, 7))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def distinct_frames(height=24, width=24):
    colours = (RED, GREEN, BLUE, (200, 200, 0), (20, 20, 20))
    return np.stack([np.full((height, width, 3), colour, np.uint8) for colour in colours])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".GIF"])
def test_an_animation_has_its_frames_in_time_and_goes_on_for_ever(tmp_path, suffix):
    frames = distinct_frames()
    path = tmp_path / f"a{suffix}"
    images.save_animation(path, frames, frames_per_second=10)
    with Image.open(path) as image:
        assert image.format == Image.registered_extensions()[suffix.lower()]
        assert image.is_animated
        assert image.n_frames == len(frames)
        assert image.info["loop"] == 0
        for i, frame in enumerate(frames):
            image.seek(i)
            image.load()
            assert image.info["duration"] == 100
            got = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(got - frame).max() <= 12
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_frames_that_stand_still_still_take_their_time(tmp_path, suffix):
    frames = distinct_frames()[[0, 0, 0, 1, 1, 2]]
    path = tmp_path / f"a{suffix}"
    images.save_animation(path, frames, frames_per_second=10)
    total_ms = 0
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            total_ms += image.info["duration"]
    assert total_ms == 600


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 35)])
def test_a_video_has_every_frame_at_an_even_size(tmp_path, height, width):
    av = pytest.importorskip("av")
    frames = distinct_frames(height, width)
    path = tmp_path / "a.mp4"
    images.save_animation(path, frames, frames_per_second=12.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == 12.5
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == len(frames)
    for got, frame in zip(decoded, frames, strict=True):
        assert got.shape == (32, width // 2 * 2, 3)
        assert np.abs(got.astype(int) - frame[:32, : width // 2 * 2]).mean() < 12
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.jpg", "a.mov", "a"])
def test_an_animation_of_another_suffix_is_refused_before_any_work(tmp_path, name):
    with pytest.raises(UsageError, match=r"use one of \.gif, \.webp, \.png, \.mp4"):
        images.save_animation(tmp_path / name, distinct_frames(), 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.mp4"])
def test_an_animation_that_cannot_be_written_leaves_the_old_one(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises((TypeError, ValueError, OSError)):
        images.save_animation(path, random_pixels(3, 8, 8, 7), 10)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("suffix", "limit"), [(".webp", 16_383), (".jpg", 65_500)])
def test_a_sheet_too_large_for_its_format_is_refused_by_name(tmp_path, suffix, limit):
    pixels = np.zeros((1, limit + 1, 3), np.uint8)
    path = tmp_path / f"sheet{suffix}"
    with pytest.raises(UsageError, match=rf"sheet\{suffix}: {limit + 1} × 1 px"):
        images.save_picture(path, pixels)
    assert list(tmp_path.iterdir()) == []


def test_more_columns_than_pictures_take_no_more_room():
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    assert images.grid(pixels, columns=1_000_000).shape == (4, 12, 3)


def test_a_folder_that_may_not_be_read_is_no_damaged_picture(tmp_path, monkeypatch):
    def refuse(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images.Image, "open", refuse)
    with pytest.raises(ImageError, match=r"a\.png: Permission denied"):
        images.load_square(tmp_path / "a.png", 8)


def test_tiles_are_the_inverse_of_a_grid():
    pictures = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), np.uint8)
    assert np.array_equal(images.tiles(images.grid(pictures, 3), 5), pictures)
    # pixels left over at the edges belong to no tile
    assert np.array_equal(images.tiles(images.grid(pictures, 3)[:9], 5), pictures[:3])


def test_a_picture_says_its_size_without_being_read(tmp_path):
    path = tmp_path / "cut.png"
    Image.new("RGB", (70, 30)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    assert images.picture_size(path) == (70, 30)


def test_a_jpeg_for_a_page_is_near_the_picture_whatever_it_shows():
    for pixels in (
        np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8),
        np.full((7, 9, 3), 200, np.uint8),
    ):
        with Image.open(io.BytesIO(images.encode_jpeg(pixels))) as picture:
            difference = np.asarray(picture).astype(int) - pixels
        assert abs(difference).mean() < 6
