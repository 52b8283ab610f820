"""The Python API: pictures in and out as PIL images, faces between them as latents.

>>> import facevae
>>> model = facevae.load("default")
>>> latents = model.sample(2, seed=7)
>>> pictures = model.decode(model.morph(latents[0], latents[1], steps=5))
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from facevae.attributes import Attribute
from facevae.bundle import Bundle
from facevae.config import MAX_SEED, TRUE_TEXTURE
from facevae.edits import plan_edit
from facevae.errors import ImageError, UsageError
from facevae.faces import place
from facevae.files import expanded
from facevae.hub import load_model
from facevae.images import centred_square, from_pixels, open_picture, to_pixels, upright
from facevae.latents import PathKind, decode, latents_of_seeds, posteriors
from facevae.latents import morph as morph_latents
from facevae.runtime import select_device

Picture = Image.Image | Tensor
Latents = Tensor | npt.NDArray[np.floating[Any]]
_IMAGE_DIMENSIONS = 3  # of an image (3, H, W)
_LARGEST = torch.finfo(torch.float32).max


def load(name: str | Path = "default", *, device: str = "auto") -> "Model":
    """The model of that name, on that device.

    `name` is what the commands take as `--model`: `default` (the one in the package), a file, a
    folder such as a run's, or `user/repo[@revision]` on the Hugging Face Hub. `device` is `auto`,
    `cpu`, `cuda`, `cuda:N` or `mps`. Raises `FacevaeError` with one line on what to do.
    """
    chosen = select_device(device)
    bundle, located = load_model(str(name))
    return Model(bundle.to(chosen), located.name)


class Model:
    """A model and what one does with it.

    Latents are float32 tensors (N, D) on the CPU, a face a row; wherever some are taken, one (D,)
    will do, and so will an array. Errors are `FacevaeError`s of one line.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.bundle = bundle
        self.name = name

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, size={self.size}, latent_dim={self.latent_dim}, "
            f"device={str(self.bundle.device)!r})"
        )

    @property
    def size(self) -> int:
        """The side of a picture in pixels."""
        return self.bundle.config.size

    @property
    def latent_dim(self) -> int:
        """Numbers in a latent, D."""
        return self.bundle.config.latent_dim

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The attributes that `edit` knows, with their held-out accuracies."""
        return tuple(self.bundle.attributes)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the model comes from: data, terms, figures, versions."""
        return dict(self.bundle.provenance)

    def align(self, photo: Image.Image | str | Path, *, face: int = 1) -> Image.Image:
        """The face in a photo, levelled and framed as the training faces were: (size, size), RGB.

        `face` 2 takes the next in size. A model whose training faces were not framed alike takes
        the largest centred square. Raises `ImageError` where there is no such face.
        """
        if not isinstance(photo, Image.Image | str | Path):
            msg = f"{photo!r:.40}: neither a PIL image nor a path"
            raise ImageError(msg)
        if isinstance(photo, Image.Image):
            name, picture = getattr(photo, "filename", "") or "the picture", upright(photo)
        else:
            name = str(photo)
            picture = open_picture(expanded(photo))
        if face < 1:
            msg = f"align(face={face}): faces are counted from 1, the largest"
            raise UsageError(msg)
        placed = place(picture, self.bundle.framing, face, name)
        return Image.fromarray(placed.cut(self.size))

    def encode(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Latents (N, D) of pictures, means of the posterior: the same picture, the same latent.

        Pictures are PIL images, of which the largest centred square is taken (`align` finds the
        face first), or float tensors (3, size, size) or (N, 3, size, size) in [0, 1].
        """
        if isinstance(pictures, Tensor):
            is_several = pictures.ndim > _IMAGE_DIMENSIONS
        else:
            is_several = isinstance(pictures, Sequence) and not isinstance(pictures, str)
        given: Any = pictures if is_several else [pictures]
        images = [self._image(picture) for picture in given]
        if not images:
            return torch.empty(0, self.latent_dim)
        # as pixels lie in memory everywhere else, since rounding may depend on it
        stacked = torch.stack(images).contiguous(memory_format=torch.channels_last)
        batches = (part.to(self.bundle.device) for part in stacked.split(64))
        return posteriors(self.bundle.vae, batches)[0].cpu()

    def decode(self, latents: Latents, *, texture: float = TRUE_TEXTURE) -> list[Image.Image]:
        """A picture of each latent, (size, size) in RGB.

        `texture` from 0 to 1 is how much detail a finished model makes up beside what it knows of a
        face. 0 is truest; 1 is what `facevae sample` makes samples with.
        """
        images = self.decode_images(latents, texture=texture)
        return [Image.fromarray(pixels) for pixels in to_pixels(images)]

    def decode_images(self, latents: Latents, *, texture: float = TRUE_TEXTURE) -> Tensor:
        """The same as a float tensor (N, 3, size, size) in [0, 1]."""
        if not 0 <= texture <= 1:
            msg = f"decode(texture={texture}): must be from 0 to 1"
            raise UsageError(msg)
        return decode(self.bundle.vae, self._latents(latents), texture)

    def sample(
        self, n: int, *, seed: int = 0, temperature: float = 1.0, guidance: float | None = None
    ) -> Tensor:
        """Latents (n, D) of new faces: row i is the face of seed `seed` + i, on any device.

        Less `temperature` is cleaner, and more alike; more `guidance` than the model's own is
        cleaner, and more pronounced.
        """
        if n < 0 or seed < 0 or seed + n - 1 > MAX_SEED:
            msg = f"sample({n}, seed={seed}): a count and seeds are whole numbers from 0"
            raise UsageError(msg)
        if not 0 <= temperature < math.inf:
            msg = f"sample(temperature={temperature}): must be a finite number from 0"
            raise UsageError(msg)
        seeds = list(range(seed, seed + n))
        return latents_of_seeds(self.bundle, seeds, temperature, guidance).cpu()

    def morph(self, a: Latents, b: Latents, *, steps: int = 10, path: PathKind = "slerp") -> Tensor:
        """Latents (steps, D) on the way from face `a` to face `b`, which are its ends."""
        ends = torch.cat([self._latents(a), self._latents(b)])
        if len(ends) != 2 or steps < 2:  # noqa: PLR2004 - two ends
            msg = "a morph goes from one latent to one other, in two steps or more"
            raise UsageError(msg)
        return morph_latents(self.bundle, ends, steps, path).cpu()

    def edit(
        self, latents: Latents, amounts: Mapping[str, float], *, keep: Sequence[str] | None = None
    ) -> Tensor:
        """Latents (N, D) with attributes added: `{"glasses": 1.5, "smile": -1}`.

        1 is what sets the average face with the attribute off from the average face without it, or
        one standard deviation of an attribute that has numbers. `keep` names attributes that are
        held still (default: gender, age, smile and glasses; `["none"]`: none; `["all"]`: all
        that can be).
        """
        is_sound = isinstance(amounts, Mapping) and all(
            isinstance(name, str) and _is_finite(amount) for name, amount in amounts.items()
        )
        if not is_sound:
            msg = f"edit(…, {amounts!r}): needs names with finite numbers, like {{'smile': 1.5}}"
            raise UsageError(msg)
        if isinstance(keep, str):
            msg = f"edit(…, keep={keep!r}): needs a list of names"
            raise UsageError(msg)
        if not amounts:
            return self._latents(latents).cpu()
        try:
            edit = plan_edit(self.bundle, list(amounts), keep)
        except UsageError as error:
            raise UsageError(str(error).removeprefix("--attr ")) from error
        given = self._latents(latents)
        alphas = torch.tensor([list(amounts.values())]).expand(len(given), -1)
        return edit.apply(given, alphas).cpu()

    def _latents(self, given: Latents) -> Tensor:
        """Any latents as float32 (N, D) on the model's device."""
        try:
            latents = torch.as_tensor(given, dtype=torch.float32, device=self.bundle.device)
        except (TypeError, ValueError, RuntimeError) as error:
            msg = f"{given!r:.40}: no latents; `encode` makes them of pictures, `sample` of seeds"
            raise UsageError(msg) from error
        if latents.ndim == 1:
            latents = latents[None]
        if latents.ndim != 2 or latents.shape[1] != self.latent_dim:  # noqa: PLR2004 - (N, D)
            msg = (
                f"latents of shape {tuple(latents.shape)}; this model's are (N, {self.latent_dim})"
            )
            raise UsageError(msg)
        return latents

    def _image(self, picture: Picture) -> Tensor:
        """One picture as float (3, size, size) in [0, 1]."""
        if isinstance(picture, Image.Image):
            pixels = centred_square(upright(picture), self.size)
            return from_pixels(pixels)
        if not isinstance(picture, Tensor):
            msg = f"{picture!r:.40}: not a PIL image or a tensor; `align` opens a photo by its path"
            raise ImageError(msg)
        wanted = (3, self.size, self.size)
        is_sound = tuple(picture.shape) == wanted and picture.is_floating_point()
        if not is_sound or not ((picture >= 0) & (picture <= 1)).all():
            msg = f"a tensor {tuple(picture.shape)} of {picture.dtype} is no image; needs floats {wanted} in [0, 1]"
            raise ImageError(msg)
        return picture.float()


def _is_finite(value: object) -> bool:
    # a whole number may be too large to be a float at all
    return isinstance(value, int | float | np.number) and bool(-_LARGEST < value < _LARGEST)
