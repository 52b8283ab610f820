"""Using a trained VAE: posteriors, decoding, samples, paths between faces, and arithmetic."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from facevae.config import TRUE_TEXTURE
from facevae.data.image_tensors import from_pixels, to_pixels
from facevae.data.images import Pixels
from facevae.errors import UsageError
from facevae.faces.alignment import load_face
from facevae.latent_space.face_names import is_seed, seed_of, split_name
from facevae.latent_space.latent_files import LatentsFile, digest_of, open_latents
from facevae.models.bundle import Bundle
from facevae.networks.prior import sample_latents
from facevae.networks.vae import VAE, Coder
from facevae.system.files import expanded
from facevae.system.memory import RowBuffer
from facevae.system.runtime import face_noise, full_precision

_PARALLEL = 1e-4  # sine of an angle below which two directions span no plane

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
    """Posterior means (N, D) of batches of images (B, 3, size, size), and of their mirror images."""
    with full_precision():
        found = RowBuffer()
        for images in batches:
            sides = [vae.encode(side)[0] for side in (images, images.flip(-1))]
            found.add(torch.stack(sides))
        plain, mirrored = found.rows
        return plain, mirrored


def decode(vae: VAE, latents: Tensor, texture: float = TRUE_TEXTURE, chunk: int = 64) -> Tensor:
    """Images (N, 3, size, size) in [0, 1], on the CPU, decoded from latents (N, D).

    `texture`, from 0 to 1, is how much detail a finished decoder invents. Latents are decoded
    `chunk` at a time. Raises `UsageError` if the images are not finite.
    """
    with full_precision():
        device = next(vae.parameters()).device
        parts = [vae.decode(part.to(device), texture).cpu() for part in latents.split(chunk)]
        size = vae.config.size
        images = torch.cat(parts) if parts else torch.empty(0, 3, size, size)
    if not images.isfinite().all():
        msg = "the decoder produced NaN or infinity; use a smaller alpha or temperature"
        raise UsageError(msg)
    return images


def latents_of_seeds(
    bundle: Bundle, seeds: list[int], temperature: float = 1.0, guidance: float | None = None
) -> Tensor:
    """Latents (N, D) of seeds: row i depends on seed i alone.

    `guidance` None is the prior's own. Raises `UsageError` if the prior cannot be guided.
    """
    noise = face_noise(seeds, bundle.config.latent_dim).to(bundle.device)
    with full_precision():
        return sample_latents(bundle.prior, noise, temperature, guidance)


def encode_pixels(bundle: Bundle, pixels: Pixels) -> Tensor:
    """Posterior means (N, D) of pictures (N, size, size, 3)."""
    batches = (from_pixels(part).to(bundle.device) for part in torch.from_numpy(pixels).split(64))
    return posteriors(bundle.vae, batches)[0]


def read_face(
    bundle: Bundle, name: str, *, align: bool = True, number: int = 1
) -> tuple[Pixels, Tensor]:
    """Picture (size, size, 3) and latent (D,) of the face that `name` names.

    `name` is a photo, `seed:N` for a sample, or `FILE.npz#NAME` for a row of a latents file, by
    name or number. With `align`, face `number` of the photo (1 is the largest) is brought into the
    model's framing. Raises `ImageError` for a photo that cannot be used, `UsageError` for a bad
    seed, and `LatentsError` for latents that are missing or belong to another model.
    """
    if is_seed(name):
        latents = latents_of_seeds(bundle, [seed_of(name)])
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
    """Open a file of this model's latents. Raises `LatentsError`, also for another model's."""
    return open_latents(path, bundle.config.latent_dim, digest_of(bundle.vae))


def interpolate(
    start: Tensor, end: Tensor, times: Tensor, kind: PathKind, centre: Tensor | None = None
) -> Tensor:
    """Latents (T, D) on the path from `start` to `end`, both (D,), at times (T,) from 0 to 1.

    `lerp` is a straight line. `slerp` rotates around `centre`, the mean of all latents (None: the
    origin), while the distance to it changes linearly. So the faces in between are no closer to the
    average face than faces are (White 2016, section 3). Times 0 and 1 give the ends exactly.
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
    """Latents on a path through faces (F, D), F > 1.

    Each leg from one face to the next has `steps` latents, both ends included; a face between two
    legs appears once. With `loop` the path returns through all faces and stops one step before its
    start.
    """
    return _through(faces, steps, kind, bundle.latent_mean, loop=loop)


def shares_of_faces(count: int, steps: int, *, loop: bool = False) -> Tensor:
    """How near each latent that `morph` returns is to each of `count` faces: (T, count), 0 to 1."""
    return _through(torch.eye(count), steps, "lerp", None, loop=loop)


def _through(
    ends: Tensor, steps: int, kind: PathKind, centre: Tensor | None, *, loop: bool
) -> Tensor:
    """Points (T, D) on the path through ends (F, D) that `morph` describes."""
    if loop:
        ends = torch.cat([ends, ends[:-1].flip(0)])
    times = torch.linspace(0, 1, steps)
    legs = [interpolate(start, end, times, kind, centre)[:-1] for start, end in pairwise(ends)]
    return torch.cat(legs if loop else [*legs, ends[-1:]])


def times_of(count: int, *, loop: bool = False) -> Tensor:
    """Position (count,) of each of `count` pictures of a morph along its path, from 0 to 1."""
    if loop:
        return 1 - (1 - 2 * torch.arange(count) / count).abs()
    return torch.linspace(0, 1, count)


def combine(latent: Tensor, plus: list[Tensor], minus: list[Tensor], centre: Tensor) -> Tensor:
    """latent + Σ plus − Σ minus, all (D,), where each term is its difference from `centre`.

    `centre` is the mean of all latents. With as many faces added as subtracted this is plain
    arithmetic; otherwise the differences keep the result among faces.
    """
    for sign, faces in ((1, plus), (-1, minus)):
        for face in faces:
            latent = latent + sign * (face - centre)
    return latent
