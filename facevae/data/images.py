"""Read, arrange and write pictures, as `pixels`: uint8 (…, H, W, 3) in sRGB."""

import io
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from facevae.errors import ImageError, UsageError
from facevae.system.files import replacing

Pixels = npt.NDArray[np.uint8]

STILL_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ANIMATION_SUFFIXES = (".gif", ".webp", ".png")
VIDEO_SUFFIXES = (".mp4",)
# phone pictures that Pillow does not read: searched for all the same, so that they are reported
_UNREADABLE_SUFFIXES = frozenset((".heic", ".heif"))
_OTHER_SUFFIXES = (".jfif", ".avif", ".jp2", ".pgm", ".ppm")
# what folders are searched for; a file that is named outright may be of any kind that Pillow reads
SUFFIXES = _UNREADABLE_SUFFIXES.union(STILL_SUFFIXES, ANIMATION_SUFFIXES, _OTHER_SUFFIXES)
COLUMNS_OF_PAIRS = 8
_LONGEST_SIDES = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}

_VECTOR_FORMATS = ("EPS", "WMF")  # Pillow would start other programs to draw them
_LARGE = 1 << 25  # pixels; larger pictures take GB, so threads decode them one at a time
_large_picture_lock = threading.Lock()

_MATTE = (255, 255, 255)  # transparent parts become white, as on a page
_SRGB = ImageCms.createProfile("sRGB")


# ---------------------------------------------------------------- reading


def load_square(source: Path | BinaryIO, size: int, name: str | None = None) -> Pixels:
    """The largest centred square of a picture, (size, size, 3), upright, in sRGB.

    `source` is a path or an open binary file. Raises `ImageError` as `open_picture` does.
    """
    return centred_square(open_picture(source, name, enough=2 * size), size)


def centred_square(picture: Image.Image, size: int) -> Pixels:
    """The largest centred square of an RGB picture, scaled: (size, size, 3)."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.array(square.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0))


def open_picture(
    source: Path | BinaryIO, name: str | None = None, *, enough: int | None = None
) -> Image.Image:
    """Read a picture: upright, in RGB and sRGB.

    Orientation tags, colour profiles, greyscale, palettes, transparency, CMYK and 16-bit greys
    are honoured; an animation gives its first frame. With `enough`, a JPEG may be decoded at a
    smaller scale, as long as its sides are no shorter than that. Raises `ImageError` with `name`
    (by default the path) for anything unreadable.
    """
    with _readable(name or str(source)), Image.open(source) as image:
        if image.format in _VECTOR_FORMATS:
            msg = f"{name or source}: {image.format} is a vector format, not pixels; save it as PNG"
            raise ImageError(msg)
        if enough is not None:
            image.draft("RGB", (enough, enough))
        with _large_picture_lock if math.prod(image.size) > _LARGE else nullcontext():
            return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """Turn an open picture upright and convert it to RGB in sRGB, as `open_picture` does."""
    return _to_srgb(ImageOps.exif_transpose(image))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn any error of a decoder into an `ImageError` that names the picture."""
    try:
        yield
    except FileNotFoundError as error:
        msg = f"{name}: no such file"
        raise ImageError(msg) from error
    except IsADirectoryError as error:
        msg = f"{name}: is a folder, not a picture"
        raise ImageError(msg) from error
    except Image.DecompressionBombError as error:
        msg = f"{name}: too many pixels to be a photograph; scale it down first"
        raise ImageError(msg) from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # for damaged files, decoders raise nearly any exception
        reason = f"damaged picture ({error})"
        if isinstance(error, UnidentifiedImageError):
            is_known = Path(name).suffix.lower() in _UNREADABLE_SUFFIXES
            advice = "; save it as JPEG or PNG" if is_known else ""
            reason = f"not a picture that can be read{advice}"
        elif isinstance(error, OSError) and error.errno and error.strerror:
            reason = error.strerror
        msg = f"{name}: {reason}"
        raise ImageError(msg) from error


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB in sRGB."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bit_grey(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    profile = image.info.get("icc_profile")
    rgb = image if image.mode in ("RGB", "CMYK") else image.convert("RGB")
    rgb = _through_profile(rgb, profile) if profile else rgb.convert("RGB")
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, _MATTE), alpha)
    return rgb


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert RGB or CMYK in the colours of an ICC profile to RGB in sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" not in ImageCms.getProfileDescription(source):
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
            return converted if converted is not None else image.convert("RGB")
    except (ImageCms.PyCMSError, OSError):
        pass  # ignore a profile that cannot be used
    return image.convert("RGB")


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    """Convert 16-bit, 32-bit or float grey to 8 bits, from the smallest full scale that fits."""
    values = np.asarray(image, dtype=np.float64)
    top = np.nanmax(values, initial=0)
    if image.mode.startswith("I;16"):
        scale = 65535.0
    else:
        scale = next((s for s in (1.0, 255.0, 65535.0) if top <= s), float(top))
    levels = np.nan_to_num(values).clip(0, scale) * (255 / scale)
    return Image.fromarray(levels.round().astype(np.uint8))


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, read from the file's header.

    Raises `OSError`, such as `FileNotFoundError`, if it cannot be opened, and `ImageError`.
    """
    with path.open("rb") as file, _readable(str(path)), Image.open(file) as image:
        return image.size


# ---------------------------------------------------------------- arranging


def grid(pixels: Pixels, columns: int | None = None, gap: int = 0) -> Pixels:
    """Arrange pictures (N, H, W, 3) in rows from the top left, `gap` pixels apart.

    Without `columns` the grid is as nearly square as N allows.
    """
    count, height, width, _ = pixels.shape
    rows, columns = grid_cells(count, columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(shape, _MATTE, dtype=np.uint8)
    for i, picture in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def grid_cells(count: int, columns: int | None = None) -> tuple[int, int]:
    """The numbers of rows and columns that `grid` uses for `count` pictures."""
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    return math.ceil(count / columns), columns


def paired_grid(*sets: Pixels, columns: int = COLUMNS_OF_PAIRS) -> Pixels:
    """Arrange sets of N pictures (N, H, W, 3): each row of a set above the same row of the next."""
    columns = min(columns, len(sets[0]))
    rows = [
        grid(np.concatenate([_row(part, start, columns) for part in sets]), columns)
        for start in range(0, len(sets[0]), columns)
    ]
    return np.concatenate(rows)


def _row(pixels: Pixels, start: int, columns: int) -> Pixels:
    part = pixels[start : start + columns]
    missing = np.full((columns - len(part), *part.shape[1:]), 255, np.uint8)
    return np.concatenate([part, missing])


def tiles(sheet: Pixels, side: int) -> Pixels:
    """Invert `grid` without gaps: a sheet (R · side, C · side, 3) → (R · C, side, side, 3)."""
    rows, columns = sheet.shape[0] // side, sheet.shape[1] // side
    cut = sheet[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return np.ascontiguousarray(cut.swapaxes(1, 2).reshape(rows * columns, side, side, 3))


# ---------------------------------------------------------------- writing


def encode_jpeg(pixels: Pixels) -> bytes:
    """Encode (H, W, 3) as a JPEG file of high quality, for HTML pages."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def check_suffix(path: Path, suffixes: Sequence[str] = STILL_SUFFIXES) -> None:
    """Raise `UsageError` unless `path` ends in one of `suffixes`."""
    if path.suffix.lower() not in suffixes:
        msg = f"{path}: cannot write '{path.suffix}'; use one of {', '.join(suffixes)}"
        raise UsageError(msg)


def check_sides(path: Path, height: int, width: int) -> None:
    """Raise `UsageError` if a picture is too large for the format that the suffix names."""
    limit = _LONGEST_SIDES.get(path.suffix.lower(), math.inf)
    if max(height, width) > limit:
        msg = f"{path}: {width} × {height} px are more than the {limit} this format holds; use .png"
        raise UsageError(msg)


def save_picture(path: Path, pixels: Pixels) -> None:
    """Write (H, W, 3) in the format that the suffix names, atomically. Raises `UsageError`."""
    check_suffix(path)
    check_sides(path, *pixels.shape[:2])
    options: dict[str, dict[str, Any]] = {
        ".webp": {"lossless": True},
        ".jpg": {"quality": 95},
        ".jpeg": {"quality": 95},
    }
    suffix = path.suffix.lower()
    _write(path, [Image.fromarray(pixels)], options.get(suffix, {}))


def save_animation(path: Path, frames: Pixels, frames_per_second: float) -> None:
    """Write (N, H, W, 3) as an endless GIF, WebP or PNG animation or an MP4, atomically.

    Raises `UsageError` for another suffix, or for `.mp4` without the `video` extra.
    """
    check_suffix(path, (*ANIMATION_SUFFIXES, *VIDEO_SUFFIXES))
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        with replacing(path) as temporary:
            _encode_video(temporary, frames, frames_per_second)
        return
    pictures = [Image.fromarray(frame) for frame in frames]
    options: dict[str, Any] = {"quality": 90} if suffix == ".webp" else {}
    if suffix == ".gif":
        # one palette made from all frames, so that colours do not flicker
        palette = Image.fromarray(grid(frames)).quantize(256)
        pictures = [p.quantize(palette=palette) for p in pictures]
        options = {"optimize": False, "disposal": 1}
    options |= {"save_all": True, "duration": round(1000 / frames_per_second), "loop": 0}
    _write(path, pictures, options)


def _write(path: Path, pictures: list[Image.Image], options: dict[str, Any]) -> None:
    """Write one picture, or several as an animation, in the format of the suffix, atomically.

    The file is encoded in memory first, since Pillow does not report a full disk.
    """
    encoded = io.BytesIO()
    kind = Image.registered_extensions()[path.suffix.lower()]
    others = {"append_images": pictures[1:]} if pictures[1:] else {}
    pictures[0].save(encoded, kind, **others, **options)
    # the view is released even if writing fails, which else is reported when `encoded` is freed
    with encoded.getbuffer() as view, replacing(path) as temporary:
        temporary.write_bytes(view)


def require_video() -> None:
    """Raise `UsageError` unless MP4 can be written."""
    try:
        import av  # noqa: F401 - an optional dependency
    except ImportError as error:
        msg = "MP4 needs the extra 'video': pip install 'facevae[video]', or name a .gif or .webp"
        raise UsageError(msg) from error


def _encode_video(path: Path, frames: Pixels, frames_per_second: float) -> None:
    require_video()
    from fractions import Fraction

    import av

    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2  # 4:2:0 needs even sides
    with av.open(str(path), "w", format="mp4") as container:
        rate = Fraction(frames_per_second).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames:
            picture = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
