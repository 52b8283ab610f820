"""How `arith` and `morph` draw faces: by which decoder, with which detail, and in which photo."""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from facevae.system.console import Console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from facevae.data.images import Pixels
    from facevae.faces.framing import Placed
    from facevae.models.bundle import Bundle


@dataclass(frozen=True)
class Subject:
    """The face to edit: pixels (S, S, 3), latent (D,), and with --paste its place in the photo."""

    pixels: "Pixels"
    latent: "Tensor"
    placed: "Placed | None" = None

    @property
    def original(self) -> "Pixels":
        """What an edit is shown beside: the face, or the whole photo."""
        return self.placed.photo if self.placed else self.pixels

    def cut(self, written: "Pixels") -> "Pixels":
        """The face (S, S, 3) in a picture that `EditDrawing.written` made."""
        return self.placed.again(written, len(self.pixels)) if self.placed else written


def read_in_place(
    console: Console, bundle: "Bundle", photo: str, number: int, *, align: bool
) -> Subject:
    """Read the face to edit, with its place in the photo; warns if it is seen from the side."""
    from facevae.faces.alignment import place_photo
    from facevae.latent_space.latents import encode_pixels
    from facevae.system.files import expanded

    framing = bundle.framing if align else None
    placed = place_photo(expanded(photo), framing, number)
    if placed.is_profile:
        console.warn(f"{photo}: the face looks far to a side; edits work best from the front")
    pixels = placed.cut(bundle.config.size)
    return Subject(pixels, encode_pixels(bundle, pixels[None])[0], placed)


@dataclass(frozen=True)
class EditDrawing:
    """Draws edits of a face.

    `tuned` is the model that is tuned to its photo, or `plain` itself. `start` (D,) is the latent that
    is edited, of the face or of a sum of faces. With `keeps_detail`, the photo's detail is restored.
    """

    subject: Subject
    plain: "Bundle"
    tuned: "Bundle"
    start: "Tensor"
    texture: float
    _: KW_ONLY
    keeps_detail: bool

    def images(self, latents: "Tensor") -> "Tensor":
        """Images (N, 3, S, S) in [0, 1] of edited latents (N, D), without the photo around them."""
        import numpy as np

        from facevae.data.image_tensors import from_pixels

        _, drawn = self._draw(latents)
        return from_pixels(np.stack([self._detailed(picture) for picture in drawn]))

    def written(self, latents: "Tensor") -> "tuple[Pixels, Pixels]":
        """Pictures as they are written: of the start, and of edited latents (N, D).

        Each is the face (S, S, 3), or with --paste the whole photo.
        """
        import numpy as np

        (start,), drawn = self._draw(latents)
        return self._placed(start), np.stack([self._placed(picture) for picture in drawn])

    def _draw(self, latents: "Tensor") -> "tuple[Pixels, Pixels]":
        from facevae.latent_space.tuning import draw_edits

        vaes = self.plain.vae, self.tuned.vae
        return draw_edits(*vaes, self.start[None], latents, self.texture)

    @cached_property
    def _unedited(self) -> "Pixels":
        """The face of the photo (S, S, 3), as it is drawn."""
        from facevae.data.image_tensors import to_pixels
        from facevae.latent_space.latents import decode

        images = decode(self.tuned.vae, self.subject.latent[None], self.texture)
        pixels: Pixels = to_pixels(images)[0]
        return pixels

    def _detailed(self, drawn: "Pixels") -> "Pixels":
        from facevae.faces.detail import with_detail

        if not (self.keeps_detail or self.subject.placed):
            return drawn
        return with_detail(drawn, self._unedited, self.subject.pixels)

    def _placed(self, drawn: "Pixels") -> "Pixels":
        placed = self.subject.placed
        return placed.paste(drawn, self._unedited) if placed else self._detailed(drawn)


@dataclass(frozen=True)
class MorphDrawing:
    """Draws frames of a morph, and their edits.

    `tuned` is the model that is tuned to the photos among the faces, or `plain` itself. `ends` (F, D)
    are the latents of the faces; `photos` have those whose detail is to be restored, by their places.
    """

    plain: "Bundle"
    tuned: "Bundle"
    ends: "Tensor"
    photos: "Mapping[int, Pixels]"
    texture: float

    def images(self, before: "Tensor", shares: "Tensor", after: "Tensor") -> "Tensor":
        """`frames` as images (T, 3, S, S) in [0, 1]."""
        from facevae.data.image_tensors import from_pixels

        return from_pixels(self.frames(before, shares, after))

    def frames(self, before: "Tensor", shares: "Tensor", after: "Tensor") -> "Pixels":
        """Frames (T, S, S, 3) of latents after an edit; those before it are (T, D) too, or the same.

        `shares` (T, F) say how much of each face is in each frame.
        """
        import numpy as np

        from facevae.data.image_tensors import to_pixels
        from facevae.faces.detail import coloured_like, with_details
        from facevae.latent_space.latents import decode
        from facevae.latent_space.tuning import draw_edits

        if after is before or self.tuned is self.plain:
            drawn = to_pixels(decode(self.tuned.vae, after, self.texture))
        else:
            _, drawn = draw_edits(self.plain.vae, self.tuned.vae, before, after, self.texture)
        photos = self.photos.items()
        frames = [
            with_details(
                picture, [(row[i], self._drawn_ends[i], photo) for i, photo in photos if row[i]]
            )
            for picture, row in zip(drawn, shares.tolist(), strict=True)
        ]
        if len(photos) == len(self.ends):
            frames = coloured_like(np.concatenate(list(self.photos.values())), *frames)
        return np.stack(frames)

    @cached_property
    def _drawn_ends(self) -> "Pixels":
        """The faces (F, S, S, 3), as they are drawn."""
        from facevae.data.image_tensors import to_pixels
        from facevae.latent_space.latents import decode

        return to_pixels(decode(self.tuned.vae, self.ends, self.texture))
