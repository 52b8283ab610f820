"""Tune a decoder to certain photos, so that they and their edits keep their likeness.

Pivotal tuning (Roich et al. 2021, "Pivotal Tuning for Latent-based Editing of Real Images"). A latent
does not hold all that makes a face this face; the weights of a decoder have room for it.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from facevae.errors import UsageError
from facevae.latent_space.latents import decode, latents_of_seeds
from facevae.models.bundle import Bundle
from facevae.networks.vae import VAE
from facevae.system.runtime import Stream, generator, training_precision

NUM_STEPS = 60  # that each photo takes part in
_BATCH = 8  # photos in a step
_LEARNING_RATE = 5e-4  # at first; it falls to zero
_HOLD = 0.3  # weight of the neighbours' error, relative to that of the photos before tuning
_NEIGHBOURS = (0.2, 0.8)  # how far from a photo towards a sample its neighbours are
_NUM_SAMPLES = 16
_FLOOR = 1e-6  # mean squared error of rounding to 8 bits, about 1/12 of a squared step


@dataclass(frozen=True)
class Tuning:
    """A model with a tuned decoder, and mean squared errors (N,) of its photos before and after."""

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
    """A copy of a model whose decoder makes `images` (N, 3, size, size) of their `latents` (N, D).

    Encoder, prior and attributes stay as they are, and so do the latents. The decoder is held to what
    it made before in a neighbourhood of each photo: at latents part of the way towards samples of the
    prior (Roich et al., section 3.2). Without that, edits would do less to a photo. `texture` is
    that of the pictures. `progress` is told of steps done and to do. If the error cannot be made
    smaller, the decoder stays as it is too.
    """
    images, latents = images.to(bundle.device), latents.to(bundle.device)
    before = _errors(bundle.vae, images, latents, texture)
    # the encoder is shared
    tuned: VAE = copy.deepcopy(bundle.vae, {id(bundle.vae.encoder): bundle.vae.encoder})
    _fit(tuned, bundle, images, latents, before, texture, progress)
    with suppress(UsageError):  # raised if the decoder has lost its way to NaN or infinity
        after = _errors(tuned, images, latents, texture)
        if after.mean() < before.mean():
            return Tuning(replace(bundle, vae=tuned), before, after)
    return Tuning(bundle, before, before)


def _fit(
    tuned: VAE,
    bundle: Bundle,
    images: Tensor,
    latents: Tensor,
    before: Tensor,
    texture: float,
    progress: Callable[[int, int], None],
) -> None:
    """Train the decoder of `tuned`, in place."""
    count, device = len(images), bundle.device
    num_steps = NUM_STEPS * -(-count // _BATCH)
    optimizer = torch.optim.Adam(tuned.decoder.parameters(), _LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_steps)
    samples = latents_of_seeds(bundle, list(range(_NUM_SAMPLES)))
    numbers = generator(0, Stream.NEIGHBOURS)
    low, high = _NEIGHBOURS
    for step in range(num_steps):
        chosen = (step * _BATCH + torch.arange(min(count, _BATCH))) % count
        here, scale = latents[chosen], before[chosen].clamp_min(_FLOOR)
        share = torch.empty(len(chosen), 1).uniform_(low, high, generator=numbers).to(device)
        near = here.lerp(samples[step % _NUM_SAMPLES], share)
        with training_precision(device):
            with torch.no_grad():
                wanted = bundle.vae.decode(near, texture)
            made = tuned.decode(torch.cat([here, near]), texture)
        own, others = made.float().chunk(2)
        error = _mean_squares(own - images[chosen])
        moved = _mean_squares(others - wanted.float())
        loss = (error + _FLOOR).log().mean() + _HOLD * (moved / scale).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, num_steps)


def _errors(vae: VAE, images: Tensor, latents: Tensor, texture: float) -> Tensor:
    """Mean squared errors (N,) of pictures decoded from latents, on the images' device."""
    return _mean_squares(decode(vae, latents, texture).to(images) - images)


def _mean_squares(differences: Tensor) -> Tensor:
    return differences.square().mean((1, 2, 3))
