"""What one does with a trained VAE: posteriors, decoding, samples, paths and arithmetic."""

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from facevae.bundle import Bundle
from facevae.config import MAX_SEED, TRUE_TEXTURE
from facevae.errors import ImageError, LatentsError, UsageError
from facevae.faces import load_face
from facevae.files import expanded
from facevae.images import Pixels, from_pixels, to_pixels
from facevae.latent_files import LatentsFile, digest_of, open_latents, split_name
from facevae.memory import RowBuffer
from facevae.model import VAE, Coder
from facevae.prior import sample_latents
from facevae.runtime import face_noise, full_precision

_PARALLEL = 1e-4  # sine of an angle below which there is no plane to turn in

PathKind = Literal["slerp", "lerp"]


def posteriors(
    coder: Coder,
    batches: Iterable[Tensor],
    precision: Callable[[], AbstractContextManager[object]] = full_precision,
) -> tuple[Tensor, Tensor]:
    """Means and log-variances, each (N, D), of batches of images (B, 3, size, size) in [0, 1]."""
    found = RowBuffer()
    with torch.no_grad():
        for images in batches:
            with precision():
                found.add(torch.stack(coder.encode(images)))
        mean, logvar = found.rows
    return mean, logvar


def encode_both_sides(vae: VAE, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Posterior means (N, D) of images (B, 3, size, size), and of their mirror images."""
    with full_precision():
        found = RowBuffer()
        for images in batches:
            sides = [vae.encode(side)[0] for side in (images, images.flip(-1))]
            found.add(torch.stack(sides))
        plain, mirrored = found.rows
        return plain, mirrored


def decode(vae: VAE, latents: Tensor, texture: float = TRUE_TEXTURE, chunk: int = 64) -> Tensor:
    """Images (N, 3, size, size) in [0, 1], on the CPU, of latents (N, D).

    `texture` from 0 to 1 is how much detail a finished decoder makes up.
    """
    with full_precision():
        device = next(vae.parameters()).device
        parts = [vae.decode(part.to(device), texture).cpu() for part in latents.split(chunk)]
        size = vae.config.size
        images = torch.cat(parts) if parts else torch.empty(0, 3, size, size)
    if not images.isfinite().all():
        msg = "that leads out of the numbers a model can decode; use a smaller alpha or temperature"
        raise UsageError(msg)
    return images


def latents_of_seeds(
    bundle: Bundle, seeds: list[int], temperature: float = 1.0, guidance: float | None = None
) -> Tensor:
    """The latents (N, D) that these seeds name: row i depends on seed i alone.

    `guidance` None is the prior's own. Raises `UsageError` where that cannot be guided.
    """
    noise = face_noise(seeds, bundle.config.latent_dim).to(bundle.device)
    with full_precision():
        return sample_latents(bundle.prior, noise, temperature, guidance)


def encode_pixels(bundle: Bundle, pixels: Pixels) -> Tensor:
    """Posterior means (N, D) of pictures (N, size, size, 3)."""
    batches = (from_pixels(part).to(bundle.device) for part in torch.from_numpy(pixels).split(64))
    return posteriors(bundle.vae, batches)[0]


def check_face(name: str) -> None:
    """Raise what `read_face` would, as far as it is seen without a model.

    That is a bad seed, or a file that is not there.
    """
    if name.startswith("seed:"):
        _seed_of(name)
    elif stored := split_name(name):
        check_latents(stored[0])
    elif not (photo := expanded(name)).exists():
        msg = f"{photo}: no such file"
        raise ImageError(msg)


def check_latents(path: Path) -> None:
    """Raise `LatentsError` where there is no such file."""
    if not path.exists():
        msg = f"{path}: no such file"
        raise LatentsError(msg)


def _seed_of(name: str) -> int:
    seed = name.removeprefix("seed:")
    if not re.fullmatch(r"\d{1,19}", seed) or int(seed) > MAX_SEED:
        msg = f"{name}: a seed is a whole number from 0, as in seed:7"
        raise UsageError(msg)
    return int(seed)


def read_face(
    bundle: Bundle, name: str, *, align: bool = True, number: int = 1
) -> tuple[Pixels, Tensor]:
    """The picture (size, size, 3) and latent (D,) of a photo, or of what else names a face.

    That is `seed:N`, a sample, or `FILE.npz#NAME`, a row of a file of latents, by name or number.
    With `align`, face `number` of the photo, the largest being 1, is brought into the model's
    framing. Raises `ImageError` for a photo that cannot be used, `UsageError` for a bad seed, and
    `LatentsError` for latents that are not there, or another model's.
    """
    if name.startswith("seed:"):
        latents = latents_of_seeds(bundle, [_seed_of(name)])
        return to_pixels(decode(bundle.vae, latents))[0], latents[0]
    if stored := split_name(name):
        file = latents_file(bundle, stored[0])
        row = file.row(stored[1])
        latents = next(file.read(row, row + 1)).to(bundle.device)
        return to_pixels(decode(bundle.vae, latents))[0], latents[0]
    framing = bundle.framing if align else None
    pixels = load_face(expanded(name), bundle.config.size, framing, number)
    return pixels, encode_pixels(bundle, pixels[None])[0]


def latents_file(bundle: Bundle, path: Path) -> LatentsFile:
    """A file of this model's latents. Raises `LatentsError`, for another's too."""
    return open_latents(path, bundle.config.latent_dim, digest_of(bundle.vae))


def interpolate(
    start: Tensor, end: Tensor, times: Tensor, kind: PathKind, centre: Tensor | None = None
) -> Tensor:
    """Latents (T, D) on the way from `start` to `end`, both (D,), at times (T,) from 0 to 1.

    `lerp` goes straight. `slerp` turns around `centre`, the mean of all latents, and changes its
    distance from it evenly, so that faces on the way are no closer to the average face than
    faces are (White 2016, section 3). Times 0 and 1 give the ends exactly.
    """
    t = times[:, None].to(start)
    straight = (1 - t) * start + t * end
    if kind == "lerp":
        return straight
    centre = torch.zeros_like(start) if centre is None else centre
    a, b = start - centre, end - centre
    norm_a, norm_b = a.norm(), b.norm()
    if norm_a == 0 or norm_b == 0:
        return straight
    cosine = (a / norm_a @ (b / norm_b)).clamp(-1, 1)
    angle = cosine.arccos()
    if angle.sin() < _PARALLEL:
        return straight
    turned = ((1 - t) * angle).sin() * (a / norm_a) + (t * angle).sin() * (b / norm_b)
    curve = centre + turned / angle.sin() * ((1 - t) * norm_a + t * norm_b)
    return torch.where(t == 0, start, torch.where(t == 1, end, curve))


def morph(
    bundle: Bundle, faces: Tensor, steps: int, kind: PathKind = "slerp", *, loop: bool = False
) -> Tensor:
    """Latents along the faces (F, D), F > 1: `steps` a leg, both its ends included, joints once.

    With `loop` it ends one step short of where it began, on the way back through all faces.
    """
    if loop:
        faces = torch.cat([faces, faces[:-1].flip(0)])
    times = torch.linspace(0, 1, steps)
    legs = [
        interpolate(start, end, times, kind, bundle.latent_mean)[:-1]
        for start, end in pairwise(faces)
    ]
    last = faces[-1:]
    return torch.cat(legs if loop else [*legs, last])


def times_of(count: int, *, loop: bool = False) -> Tensor:
    """Of each of `count` pictures of a morph (count,), how far along it is, from 0 to 1."""
    if loop:
        return 1 - (1 - 2 * torch.arange(count) / count).abs()
    return torch.linspace(0, 1, count)


def combine(latent: Tensor, plus: list[Tensor], minus: list[Tensor], centre: Tensor) -> Tensor:
    """latent + Σ plus − Σ minus, all (D,), each taken as its difference from `centre`, the mean.

    With as many faces added as taken away it is plain arithmetic; else the difference keeps the
    result among faces.
    """
    for sign, faces in ((1, plus), (-1, minus)):
        for face in faces:
            latent = latent + sign * (face - centre)
    return latent
