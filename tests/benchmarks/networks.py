"""What a residual network is best made of: variants, each trained for as long on one core.

    python tests/benchmarks/networks.py celeba128/ --size 64 --seconds 75

Prints a table: weights, images seen, PSNR of held-out faces decoded from the posterior's mean, KL
divergence, and seconds to decode 64 faces. All times are the process's own on one core, so that
other work on the machine hardly counts. Filters are fewer than the presets', since a core is slow;
every row but the first changes one thing. `facevae.networks.blocks` is the second.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from facevae.config import ModelConfig
from facevae.data.batches import Batches, batches_of
from facevae.data.dataset import Faces, load_faces
from facevae.measures import losses, metrics
from facevae.networks.vae import VAE, sample_posterior
from facevae.system.memory import keep_freed_memory
from facevae.system.runtime import full_precision, generator, training_precision

BATCH, COOL_DOWN, WARM_UP_STEPS = 64, 0.3, 50
LATENT_DIM = 256


@dataclass(frozen=True)
class Variant:
    """How a network is made, and how fast it learns; `filters` are those of 64 px."""

    filters: tuple[int, ...] = (32, 64, 128, 256)
    blocks: int = 1
    norms: int = 2
    activation: type[nn.Module] = nn.SiLU
    doubling: str = "nearest"
    last: str = "sub-pixel"
    learning_rate: float = 5e-4


BASE = Variant()
VARIANTS = {
    "two norms a block": BASE,
    "one norm a block": replace(BASE, norms=1),
    "no norms": replace(BASE, norms=0),
    "learning rate 0.001": replace(BASE, learning_rate=1e-3),
    "LeakyReLU": replace(BASE, activation=nn.LeakyReLU),
    "doubled by sub-pixels": replace(BASE, doubling="sub-pixel"),
    "3 × 3 after doubling": replace(BASE, doubling="nearest 3 × 3"),
    "16 channels at full size": replace(BASE, last="thin"),
    "twice the blocks, fewer channels": replace(BASE, blocks=2, filters=(32, 64, 96, 192)),
    "twice the outer channels": replace(BASE, filters=(64, 128, 192, 256)),
    "the paper's plain network": replace(BASE, blocks=0),
}


class Block(nn.Module):
    def __init__(self, channels: int, variant: Variant) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            norm(channels, is_there=variant.norms > 0),
            activation(variant),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            norm(channels, is_there=variant.norms > 1),
            activation(variant),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


def norm(channels: int, *, is_there: bool) -> nn.Module:
    return nn.GroupNorm(max(1, channels // 16), channels) if is_there else nn.Identity()


def activation(variant: Variant) -> nn.Module:
    return nn.LeakyReLU(0.2) if variant.activation is nn.LeakyReLU else variant.activation()


def doubled(before: int, after: int, how: str) -> list[nn.Module]:
    if how == "sub-pixel":
        return [nn.Conv2d(before, 4 * after, kernel_size=1), nn.PixelShuffle(2)]
    double = nn.Upsample(scale_factor=2)
    if how == "nearest 3 × 3":
        return [double, nn.Conv2d(before, after, kernel_size=3, padding=1)]
    return [nn.Conv2d(before, after, kernel_size=1), double]


def build(size: int, variant: Variant) -> VAE:
    """A VAE with the variant's layers in place of its own; without blocks, the paper's."""
    if not variant.blocks:
        return VAE(ModelConfig(size, LATENT_DIM))
    vae = VAE(ModelConfig(size, LATENT_DIM, variant.filters, residual_blocks=1))
    inward: list[nn.Module] = []
    for before, after in zip((3, *variant.filters), variant.filters, strict=False):
        inward.append(nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1))
        inward += [Block(after, variant) for _ in range(variant.blocks)]
    inward += [norm(variant.filters[-1], is_there=variant.norms > 0), activation(variant)]
    vae.encoder.convolutions = nn.Sequential(*inward)

    filters = variant.filters[::-1]
    outward: list[nn.Module] = []
    for i, channels in enumerate(filters):
        outward += [Block(channels, variant) for _ in range(variant.blocks)]
        if i + 1 < len(filters):
            outward += doubled(channels, filters[i + 1], variant.doubling)
    if variant.last == "thin":
        thin = 16
        outward += [*doubled(filters[-1], thin, "nearest"), Block(thin, variant)]
        outward += [norm(thin, is_there=variant.norms > 0), activation(variant)]
        outward += [nn.Conv2d(thin, 3, kernel_size=3, padding=1)]
    else:
        outward += [norm(filters[-1], is_there=variant.norms > 0), activation(variant)]
        outward += [nn.Conv2d(filters[-1], 12, kernel_size=3, padding=1), nn.PixelShuffle(2)]
    vae.decoder.convolutions = nn.Sequential(*outward, nn.Sigmoid())
    return vae


def train(vae: VAE, faces: Faces, seconds: float, learning_rate: float) -> int:
    """Train on one core for so long; returns how many images were seen."""
    device = torch.device("cpu")
    vae.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(vae.parameters(), lr=learning_rate, fused=True)
    batches, step, begun = Batches(faces, BATCH, 0, device), 0, time.process_time()
    while (share := (time.process_time() - begun) / seconds) < 1:
        images = batches(step)
        with training_precision(device):
            mean, logvar = vae.encode(images)
            noise = torch.randn(mean.shape, generator=generator(0, step))
            made = vae.decode(sample_posterior(mean, logvar, noise))
        mse = losses.mean_squared_error(made, images)
        kl = losses.kl_divergence(mean, logvar).sum(1).mean()
        rate = min(1, (step + 1) / WARM_UP_STEPS) * min(1, (1 - share) / COOL_DOWN)
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        optimizer.zero_grad()
        (losses.calibrated_reconstruction(mse, vae.config.num_pixels) + kl).backward()
        optimizer.step()
        step += 1
    return step * BATCH


def measure(vae: VAE, faces: Faces) -> tuple[float, float, float]:
    """PSNR in dB, KL divergence in nats, and seconds to decode 64 faces."""
    vae.eval()
    rows, psnr, kl = faces.held_out[:600], [], []
    with full_precision():
        for images in batches_of(faces, rows, torch.device("cpu")):
            mean, logvar = vae.encode(images)
            psnr.append(metrics.psnr(vae.decode(mean), images))
            kl.append(losses.kl_divergence(mean, logvar).sum(1))
        latents = torch.randn(64, LATENT_DIM)
        vae.decode(latents[:8])
        begun = time.process_time()
        vae.decode(latents)
        decoding = time.process_time() - begun
    return torch.cat(psnr).mean().item(), torch.cat(kl).mean().item(), decoding


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=75)
    parser.add_argument("--only", type=int, help="this many of the variants")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(1)
    faces = load_faces(options.data, options.size)
    show("| | million weights | images seen | PSNR, dB | KL, nats | ELBO, nats | 64 faces, s |")
    show("|---|---|---|---|---|---|---|")
    for name, variant in list(VARIANTS.items())[: options.only]:
        torch.manual_seed(0)
        vae = build(options.size, variant)
        weights = sum(p.numel() for p in vae.parameters()) / 1e6
        seen = train(vae, faces, options.seconds, variant.learning_rate)
        psnr, kl, decoding = measure(copy.deepcopy(vae), faces)
        # of the likelihood with the best variance, but for what is the same for all
        nats = -vae.config.num_pixels / 2 * math.log(10 ** (-psnr / 10)) - kl
        row = f"{weights:.1f} | {seen:,} | {psnr:.2f} | {kl:,.0f} | {nats:,.0f} | {decoding:.2f}"
        show(f"| {name} | {row} |")


if __name__ == "__main__":
    main()
