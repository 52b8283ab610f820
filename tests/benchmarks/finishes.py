"""What a finish learns fastest by: variants, each for as long, from one model on.

    python tests/benchmarks/finishes.py runs/compact/state/unfinished.safetensors celeba128/ --seconds 120

Prints a table: images seen, PSNR and sharpness of held-out reconstructions, and the sliced
Wasserstein distance × 1000 of reconstructions and of samples at each level. Every row but the first
two changes one thing of what `facevae.stages.adversary` does; its own learning rates fall to zero within
the time, on one core, and a row says nothing of where longer finishes end.
"""

import argparse
import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from facevae.config import WHOLE_TEXTURE, TrainConfig
from facevae.data.batches import Batches, batches_of, evenly
from facevae.data.dataset import Faces, load_faces
from facevae.measures import metrics
from facevae.measures.losses import DEFAULT_WEIGHTS, LossWeights
from facevae.measures.swd import SlicedWasserstein
from facevae.models.bundle import Bundle
from facevae.models.loading import load_model
from facevae.networks.prior import sample_latents
from facevae.networks.vae import VAE
from facevae.stages import adversary, critic, discriminator
from facevae.system.memory import keep_freed_memory
from facevae.system.runtime import face_noise, full_precision

CPU = torch.device("cpu")
NUM_MEASURED = 600
BATCH = adversary.MAX_BATCH_SIZE


def of_whole(logits: Tensor) -> Tensor:
    """The whole image's logit, without the patches': (B, 1 + P) → (B,)."""
    return logits[:, 0]


@dataclass(frozen=True)
class Variant:
    """Batch size, weights of the loss, gains of detail, and changed names of modules.

    `texture` is that of samples: with 0 they use the layers of reconstructions.
    """

    batch_size: int = BATCH
    weight: float = 1.0
    detail: float = discriminator._DETAIL
    coarser_detail: float = discriminator._COARSER_DETAIL
    texture: float = WHOLE_TEXTURE
    loss_weights: LossWeights = DEFAULT_WEIGHTS
    changed: Mapping[object, Mapping[str, object]] = field(default_factory=dict)


VARIANTS = {
    f"as it is (batches of {BATCH})": Variant(),
    "batches of 8": Variant(batch_size=8),
    "batches of 64": Variant(batch_size=64),
    "half the weight": Variant(weight=0.5),
    "twice the weight": Variant(weight=2.0),
    "a verdict on whole faces alone": Variant(
        changed={critic: {"mean_logit": of_whole, "penalty_logit": of_whole}}
    ),
    "samples by the layers of reconstructions": Variant(texture=0.0),
    "verdicts count alike": Variant(
        loss_weights=LossWeights(adversarial=2.0, adversarial_samples=2.0)
    ),
    "coarser layers learn to the end, and samples keep their discriminator": Variant(
        changed={adversary: {"COARSE_END": 1.01}}
    ),
    "no detail given apart": Variant(detail=0.0, coarser_detail=0.0),
    "only the finest detail": Variant(coarser_detail=0.0),
    "twice the detail": Variant(detail=2 * discriminator._DETAIL),
    "samples stay what they were at 32 px": Variant(
        changed={adversary: {"_COARSE_SIDE": 32, "_FROZEN_COARSE_SIDE": 32}}
    ),
    "no weight on features of photographs": Variant(
        loss_weights=LossWeights(projected=0.0, projected_samples=0.0)
    ),
    "twice as much of them": Variant(
        loss_weights=LossWeights(projected=0.5, projected_samples=2.0)
    ),
    "R1 of 1": Variant(changed={critic: {"_R1_WEIGHT": 1.0}}),
}


def finished(bundle: Bundle, faces: Faces, variant: Variant, seconds: float) -> tuple[VAE, int]:
    """The VAE after so long a finish, and the images that it has seen."""
    config = TrainConfig(
        stages=("finish",),
        batch_size=variant.batch_size,
        finish_weight=variant.weight,
        max_seconds=seconds,
    )
    batches = Batches(faces, variant.batch_size, 0, CPU)
    vae = copy.deepcopy(bundle.vae)
    index = 0
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(discriminator, "_DETAIL", variant.detail))
        coarser = variant.coarser_detail
        stack.enter_context(mock.patch.object(discriminator, "_COARSER_DETAIL", coarser))
        stack.enter_context(mock.patch.object(adversary, "WHOLE_TEXTURE", variant.texture))
        for module, values in variant.changed.items():
            stack.enter_context(mock.patch.multiple(module, **values))
        stage = adversary.FinishStage(
            vae, bundle.prior, batches, config, weights=variant.loss_weights
        )
        while index < stage.budget.num_steps:
            stage.step(index)
            stage.budget.close_after(index)
            index += 1
    return stage.vae, index * variant.batch_size


def main() -> None:
    """Finish by every variant, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    bundle, _ = load_model(options.model)
    faces = load_faces([options.data], bundle.config.size)
    rows = evenly(faces.held_out, NUM_MEASURED)
    distance = SlicedWasserstein(batches_of(faces, rows, CPU), bundle.config.size)
    noise = face_noise(list(range(len(rows))), bundle.config.latent_dim)
    with full_precision():
        latents = sample_latents(bundle.prior, noise)

    def measure(vae: VAE, texture: float) -> str:
        def made() -> Iterator[tuple[Tensor, Tensor]]:
            for images in batches_of(faces, rows, CPU):
                yield images, vae.decode(vae.encode(images)[0])

        def levels(images: Iterator[Tensor]) -> str:
            return " / ".join(f"{d:.0f}" for d in distance(images).values())

        with full_precision():
            pairs = [
                (metrics.psnr(b, a), metrics.sharpness(b), metrics.sharpness(a)) for a, b in made()
            ]
            psnr, own, real = (torch.cat(column).mean() for column in zip(*pairs, strict=True))
            reconstructions = levels(b for _, b in made())
            samples = levels(vae.decode(part, texture) for part in latents.split(128))
        return f"{psnr:.2f} | {own / real:.3f} | {reconstructions} | {samples}"

    def tell(*cells: object) -> None:
        sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
        sys.stdout.flush()

    sides = " / ".join(map(str, distance.sizes))
    tell("", "images", "PSNR, dB", "sharpness", f"SWD of reconstructions, {sides} px", "of samples")
    tell(*["---"] * 6)
    tell("before", 0, measure(bundle.vae.eval(), 0.0))
    for name, variant in VARIANTS.items():
        vae, count = finished(bundle, faces, variant, options.seconds)
        tell(name, f"{count:,}", measure(vae, variant.texture))


if __name__ == "__main__":
    main()
