"""The Python API: PIL images as pictures, tensors as latents.

>>> import facevae
>>> model = facevae.load("default")
>>> latents = model.sample(2, seed=7)
>>> pictures = model.decode(model.morph(latents[0], latents[1], steps=5))
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from facevae.attributes.directions import Attribute
from facevae.config import MAX_SEED, TRUE_TEXTURE
from facevae.data.image_tensors import from_pixels, to_pixels
from facevae.data.images import centred_square, open_picture, upright
from facevae.errors import ImageError, UsageError
from facevae.faces.alignment import place
from facevae.latent_space.edits import edit_faces, plan_edit
from facevae.latent_space.latents import PathKind, decode, latents_of_seeds, posteriors
from facevae.latent_space.latents import morph as morph_latents
from facevae.latent_space.tuning import tune
from facevae.models.bundle import Bundle
from facevae.models.loading import load_model
from facevae.system.files import expanded
from facevae.system.runtime import select_device

Picture = Image.Image | Tensor
Latents = Tensor | npt.NDArray[np.floating[Any]]
_IMAGE_DIMENSIONS = 3  # of an image (3, H, W)
_LARGEST = torch.finfo(torch.float32).max
_CHUNK = 64  # pictures encoded at a time


def load(name: str | Path = "default", *, device: str = "auto") -> "Model":
    """Load a model onto a device.

    `name` is what the commands take as `--model`: `default` (the one in the package), a file, a
    folder such as a run's, or `user/repo[@revision]` on the Hugging Face Hub. `device` is `auto`,
    `cpu`, `cuda`, `cuda:N` or `mps`. Raises `FacevaeError`, whose message says what to do.
    """
    torch_device = select_device(device)
    bundle, located = load_model(str(name))
    return Model(bundle.to(torch_device), located.name)


class Model:
    """A trained model: encodes, decodes, samples, morphs and edits faces.

    Latents are float32 tensors (N, D) on the CPU, one row per face. Methods that take latents also
    accept a single one (D,), and NumPy arrays. Errors are `FacevaeError`s with a message of one
    line.
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
        """Side of a picture in pixels."""
        return self.bundle.config.size

    @property
    def latent_dim(self) -> int:
        """Length D of a latent."""
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
        """The face in a photo, levelled and framed like the training faces: (size, size), RGB.

        `face` 1 is the largest, 2 the next. If the training faces did not share one framing, this
        is the largest centred square. Raises `NoFaceError` if no face is found, and `ImageError`
        if the photo cannot be read or has fewer faces.
        """
        if not isinstance(photo, Image.Image | str | Path):
            msg = f"{photo!r:.40}: neither a PIL image nor a path"
            raise ImageError(msg)
        if isinstance(photo, Image.Image):
            name, picture = getattr(photo, "filename", "") or "the picture", upright(photo)
        else:
            name = str(photo)
            picture = open_picture(expanded(photo))
        if not _is_whole(face) or face < 1:
            msg = f"align(face={face}): faces are counted from 1, the largest"
            raise UsageError(msg)
        placed = place(picture, self.bundle.framing, face, name)
        return Image.fromarray(placed.cut(self.size))

    def encode(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Latents (N, D) of pictures: the posterior means, so that equal pictures give equal latents.

        Pictures are PIL images, of which the largest centred square is taken (use `align` first to
        find the face), or float tensors (3, size, size) or (N, 3, size, size) in [0, 1].
        """
        return self._encoded(self._images(pictures))

    def tuned(
        self, pictures: Picture | Sequence[Picture], *, texture: float = TRUE_TEXTURE
    ) -> "Model":
        """Another model, whose decoder is tuned to pictures, such as `encode` takes.

        It takes some seconds. What it decodes from the latents of these pictures is much nearer to
        them, and their edits and morphs keep their likeness (pivotal tuning, Roich et al. 2021).
        Everything else is shared, and latents mean the same to both models. `texture` is that of the
        pictures to be decoded. The command `arith` also keeps the photo's remaining detail.
        """
        texture = self._texture(texture, "tuned")
        images = self._images(pictures)
        if not len(images):
            msg = "tuned([]): needs a picture at least"
            raise UsageError(msg)
        return Model(tune(self.bundle, images, self._encoded(images), texture).bundle, self.name)

    def decode(self, latents: Latents, *, texture: float = TRUE_TEXTURE) -> list[Image.Image]:
        """Pictures of latents, (size, size) in RGB.

        `texture`, from 0 to 1, is how much detail a finished model invents beyond what it knows of a
        face. 0 is the most faithful; `facevae sample` uses 1.
        """
        images = self.decode_images(latents, texture=texture)
        return [Image.fromarray(pixels) for pixels in to_pixels(images)]

    def decode_images(self, latents: Latents, *, texture: float = TRUE_TEXTURE) -> Tensor:
        """Like `decode`, but as a float tensor (N, 3, size, size) in [0, 1]."""
        return decode(self.bundle.vae, self._latents(latents), self._texture(texture, "decode"))

    def sample(
        self, n: int, *, seed: int = 0, temperature: float = 1.0, guidance: float | None = None
    ) -> Tensor:
        """Latents (n, D) of new faces: row i belongs to seed `seed` + i, on any device.

        A lower `temperature` makes faces cleaner and more alike. A higher `guidance` than the
        model's own (None) makes them cleaner and more pronounced; only a flow prior takes one.
        """
        n, seed, temperature, guidance = map(_unwrapped, (n, seed, temperature, guidance))
        is_whole = _is_whole(n) and _is_whole(seed)
        if not is_whole or n < 0 or seed < 0 or seed + n - 1 > MAX_SEED:
            msg = f"sample({n}, seed={seed}): a count and seeds are whole numbers from 0"
            raise UsageError(msg)
        if not _is_finite(temperature) or temperature < 0:
            msg = f"sample(temperature={temperature}): must be a finite number from 0"
            raise UsageError(msg)
        if guidance is not None and not _is_finite(guidance):
            msg = f"sample(guidance={guidance}): must be a finite number from 0, or None"
            raise UsageError(msg)
        seeds = list(range(seed, seed + n))
        return latents_of_seeds(self.bundle, seeds, temperature, guidance).cpu()

    def morph(self, a: Latents, b: Latents, *, steps: int = 10, path: PathKind = "slerp") -> Tensor:
        """Latents (steps, D) along the path from face `a` to face `b`, both included.

        `path` is `slerp`, which turns around the average face, or `lerp`, a straight line.
        """
        if path not in get_args(PathKind):
            msg = f"morph(path={path!r}): must be {' or '.join(map(repr, get_args(PathKind)))}"
            raise UsageError(msg)
        steps = _unwrapped(steps)
        if not _is_whole(steps) or steps < 2:  # noqa: PLR2004 - two ends
            msg = f"morph(steps={steps}): must be a whole number from 2"
            raise UsageError(msg)
        ends = torch.cat([self._latents(a), self._latents(b)])
        if len(ends) != 2:  # noqa: PLR2004 - two ends
            msg = f"morph: goes from one latent to one other, but was given {len(ends)}"
            raise UsageError(msg)
        return morph_latents(self.bundle, ends, steps, path).cpu()

    def edit(
        self, latents: Latents, amounts: Mapping[str, float], *, keep: Sequence[str] | None = None
    ) -> Tensor:
        """Latents (N, D) with attributes added: `{"glasses": 1.5, "smile": -1}`.

        An amount of 1 is the difference between the average face with the attribute and the average
        face without it, or one standard deviation of an attribute that has numbers. `keep` names
        attributes to hold still (default: gender, age, smile and glasses; `["none"]`: none;
        `["all"]`: all that can be). Amounts are what the model's encoder sees in decoded pictures, so
        editing takes several times as long as decoding. The directions are those of each face as it
        is given, so edits one after the other are not quite one edit by the sum of their amounts.
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
        edit = plan_edit(self.bundle, list(amounts), keep)
        starts = self._latents(latents)
        alphas = torch.tensor([list(amounts.values())]).expand(len(starts), -1)
        return edit_faces(self.bundle, edit, starts, alphas).cpu()

    def _latents(self, given: Latents) -> Tensor:
        """Latents as float32 (N, D) on the model's device. Raises `UsageError` for anything else."""
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

    @staticmethod
    def _texture(texture: float, method: str) -> float:
        """The number itself. Raises `UsageError` if it is not from 0 to 1."""
        texture = _unwrapped(texture)
        if not _is_finite(texture) or not 0 <= texture <= 1:
            msg = f"{method}(texture={texture}): must be from 0 to 1"
            raise UsageError(msg)
        return texture

    def _encoded(self, images: Tensor) -> Tensor:
        """Posterior means (N, D), on the CPU, of images (N, 3, size, size)."""
        if not len(images):
            return torch.empty(0, self.latent_dim)
        batches = (part.to(self.bundle.device) for part in images.split(_CHUNK))
        return posteriors(self.bundle.vae, batches)[0].cpu()

    def _images(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Pictures as float (N, 3, size, size) in [0, 1], on the CPU. Raises `ImageError`."""
        if isinstance(pictures, Tensor):
            is_several = pictures.ndim > _IMAGE_DIMENSIONS
        else:
            is_several = isinstance(pictures, Sequence) and not isinstance(pictures, str)
        given: Any = pictures if is_several else [pictures]
        images = [self._image(picture) for picture in given]
        stacked = torch.stack(images) if images else torch.empty(0, 3, self.size, self.size)
        # the memory layout of pixels everywhere else, because rounding may depend on it
        return stacked.contiguous(memory_format=torch.channels_last)

    def _image(self, picture: Picture) -> Tensor:
        """One picture as float (3, size, size) in [0, 1], on the CPU.

        Raises `ImageError` for anything else.
        """
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
        return picture.detach().float().cpu()


def _unwrapped(value: Any) -> Any:
    """The number in a tensor or array without dimensions; anything else as it is."""
    is_scalar = isinstance(value, Tensor | np.ndarray) and value.ndim == 0
    return value.item() if is_scalar else value


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer)


def _is_finite(value: object) -> bool:
    """Whether a value is a number that float32 can hold."""
    # compared, not converted: a whole number may be too large for any float
    return isinstance(value, int | float | np.integer | np.floating) and bool(
        -_LARGEST < value < _LARGEST
    )
