"""Tune a decoder to certain photos, so that they and their edits keep their likeness.

Pivotal tuning (Roich et al. 2021, "Pivotal Tuning for Latent-based Editing of Real Images"). A latent
does not hold all that makes a face this face; the weights of a decoder have room for it.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from facevae.data.image_tensors import to_pixels
from facevae.data.images import Pixels
from facevae.errors import UsageError
from facevae.faces.detail import redrawn
from facevae.latent_space.latents import decode, latents_of_seeds
from facevae.measures.losses import mean_squared_error
from facevae.measures.metrics import psnr
from facevae.models.bundle import Bundle
from facevae.networks.vae import VAE
from facevae.system.runtime import Stream, generator, training_precision

_NUM_STEPS = 60  # that each photo takes part in
_BATCH = 8  # photos in a step
_LEARNING_RATE = 5e-4  # at first; it falls to zero
_LOCALITY = 0.3  # weight of the locality regularisation
_NEIGHBOURS = (0.2, 0.8)  # how far from a photo's latent towards a sample the neighbours are
_NUM_SAMPLES = 16  # that lend the neighbours their directions
_FLOOR = 1e-6  # mean squared error of rounding to 8 bits, about 1/12 of a squared step


@dataclass(frozen=True)
class Tuning:
    """A model with a tuned decoder, and the PSNR of its photos before and after, (N,) in dB."""

    bundle: Bundle
    before: Tensor
    after: Tensor


def tune(
    bundle: Bundle,
    images: Tensor,
    latents: Tensor,
    texture: float,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tuning:
    """A model whose decoder makes `images` (N, 3, size, size) of their `latents` (N, D), the pivots.

    It shares everything but the decoder with `bundle`, which stays as it is. `texture` is that of the
    pictures. `progress` is told of steps done and to do. If the mean PSNR does not rise, the result is
    `bundle` itself.
    """
    # also where a caller computes no gradients, and apart from any that it computes
    with torch.inference_mode(mode=False), torch.enable_grad():
        images, latents = (part.detach().clone().to(bundle.device) for part in (images, latents))
        before = psnr(decode(bundle.vae, latents, texture).to(images), images)
        tuned: VAE = copy.deepcopy(bundle.vae, {id(bundle.vae.encoder): bundle.vae.encoder})
        _fit(tuned, bundle, images, latents, before, texture, progress)
        with suppress(UsageError):  # raised if the decoder has lost its way to NaN or infinity
            after = psnr(decode(tuned, latents, texture).to(images), images)
            if after.mean() > before.mean():
                return Tuning(replace(bundle, vae=tuned), before, after)
        return Tuning(bundle, before, before)


def draw_edits(
    plain: VAE, tuned: VAE, starts: Tensor, edited: Tensor, texture: float
) -> tuple[Pixels, Pixels]:
    """Pictures by a tuned decoder: of latents `starts`, and of their edits (N, D).

    There are N starts, or one for all. The pictures are pixels (1 or N, S, S, 3) and (N, S, S, 3).
    Where an edit changes a lot, it is as the plain decoder draws it (see `redrawn`). Raises
    `UsageError` if pictures are not finite.
    """
    latents = torch.cat([starts, edited])
    first, drawn = np.split(to_pixels(decode(tuned, latents, texture)), [len(starts)])
    if tuned is plain:
        return first, drawn
    plain_first, plain_drawn = np.split(to_pixels(decode(plain, latents, texture)), [len(starts)])
    before = [[*part] * (len(edited) // len(starts)) for part in (first, plain_first)]
    return first, np.stack(
        [redrawn(*pictures) for pictures in zip(drawn, plain_drawn, *before, strict=True)]
    )


def _fit(
    tuned: VAE,
    bundle: Bundle,
    images: Tensor,
    latents: Tensor,
    before: Tensor,
    texture: float,
    progress: Callable[[int, int], None],
) -> None:
    """Train the decoder of `tuned`, in place. `before` (N,) is the PSNR of the photos until then.

    The loss of a photo is the logarithm of its mean squared error: the likelihood with the optimal
    variance, as in training. To it comes the locality regularisation (Roich et al., section 3.3),
    without which edits would do less to a photo: at a latent part of the way towards a sample of the
    prior, the decoder should make what it made before. That error counts relative to the photo's own
    error before tuning.
    """
    count, device = len(images), bundle.device
    batch = min(count, _BATCH)
    num_steps = -(-_NUM_STEPS * count // batch)
    errors = (10 ** (-before / 10)).clamp_min(_FLOOR)
    decoder = tuned.decoder.requires_grad_()
    optimizer = torch.optim.Adam(decoder.parameters(), _LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
    samples = latents_of_seeds(bundle, list(range(_NUM_SAMPLES)))
    numbers = generator(0, Stream.NEIGHBOURS)
    for step in range(num_steps):
        chosen = (step * batch + torch.arange(batch)) % count
        pivots = latents[chosen]
        towards = samples[torch.randint(_NUM_SAMPLES, (batch,), generator=numbers)]
        share = torch.empty(batch, 1).uniform_(*_NEIGHBOURS, generator=numbers)
        neighbours = pivots.lerp(towards, share.to(device))
        with training_precision(device):
            with torch.no_grad():
                wanted = bundle.vae.decode(neighbours, texture)
            made = tuned.decode(torch.cat([pivots, neighbours]), texture)
        of_photos, of_neighbours = made.float().chunk(2)
        error = mean_squared_error(of_photos, images[chosen])
        moved = mean_squared_error(of_neighbours, wanted.float())
        loss = ((error + _FLOOR).log() + _LOCALITY * moved / errors[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, num_steps)
    optimizer.zero_grad()
