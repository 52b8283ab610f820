"""Priors on one model's latents, each fitted to the same faces: a Gaussian, mixtures, flows.

    python tests/benchmarks/priors.py runs/compact celeba128/

Prints a table: seconds to fit on one core, the flow-matching loss of held-out faces, SWD × 1000 of
samples by the level of the pyramid, and novelty, which is how far samples are from the nearest
training face over how far held-out faces are, so that it should be 1.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from facevae.config import TrainConfig
from facevae.data.augment import NUM_CHANGES
from facevae.data.batches import batches_of
from facevae.data.dataset import load_faces
from facevae.latent_space.latents import posteriors
from facevae.measures import losses, metrics
from facevae.measures.swd import SlicedWasserstein
from facevae.models.loading import load_model
from facevae.networks.prior import FlowPrior, GaussianPrior, guided
from facevae.networks.vae import draw_posteriors
from facevae.stages.flow_matching import PriorStage
from facevae.system.memory import keep_freed_memory
from facevae.system.runtime import face_noise, full_precision, generator
from facevae.training.prior_fit import GUIDANCES, changed_posteriors

CPU = torch.device("cpu")
UNTIL = (TrainConfig().prior_config.guided_until, 1.0)
Sampler = Callable[[Tensor], Tensor]


def fit_mixture(white: Tensor, count: int, passes: int = 25) -> Sampler:
    """A Gaussian mixture of whitened latents (N, D) by EM, seeded by k-means++.

    Covariances are shrunk towards the whole set's, which is the identity, by D latents' worth.
    """
    num, dim = white.shape
    draw = generator(0, count)
    centres = white[torch.randint(num, (1,), generator=draw)]
    for _ in range(count - 1):
        nearest = torch.cdist(white, centres).amin(1).square()
        centres = torch.cat([centres, white[torch.multinomial(nearest, 1, generator=draw)]])
    responsibilities = nn.functional.one_hot(torch.cdist(white, centres).argmin(1), count).float()
    for _ in range(passes):
        sizes = responsibilities.sum(0)
        means = responsibilities.T @ white / sizes[:, None]
        logs, factors = [], []
        for k in range(count):
            centred = white - means[k]
            scatter = (centred * responsibilities[:, k : k + 1]).T @ centred
            covariance = (scatter + dim * torch.eye(dim)) / (sizes[k] + dim)
            factor = torch.linalg.cholesky(covariance)
            distances = torch.linalg.solve_triangular(factor, centred.T, upper=False).square()
            logs.append((sizes[k] / num).log() - factor.diag().log().sum() - distances.sum(0) / 2)
            factors.append(factor)
        responsibilities = torch.stack(logs, 1).softmax(1)
    stacked, weights = torch.stack(factors), sizes / num

    def sample(noise: Tensor) -> Tensor:
        chosen = torch.multinomial(weights, len(noise), replacement=True, generator=draw)
        return means[chosen] + torch.einsum("nij,nj->ni", stacked[chosen], noise)

    return sample


def fit_flow(
    mean: Tensor, logvar: Tensor, changes: Tensor, epochs: int, *, residual: bool
) -> FlowPrior:
    """A small flow, so that a core can do it."""
    torch.manual_seed(0)
    flow = FlowPrior(mean.shape[1], 512, 3, residual=residual)
    stage = PriorStage(flow, mean, logvar, changes, epochs=epochs, seed=0)
    for index in range(stage.budget.num_steps):
        stage.step(index)
    return stage.prior


def held_out_loss(prior: FlowPrior, latents: Tensor) -> float:
    """The flow-matching loss of latents (N, D), with the same noise and times for any prior."""
    draw = generator(0, 1)
    with full_precision():
        white = prior.whitening.whiten(latents).repeat(4, 1)
        noise = torch.randn(white.shape, generator=draw)
        times = torch.randn(len(white), 1, generator=draw).sigmoid()
        found = prior.velocity((1 - times) * noise + times * white, times)
        return losses.flow_matching(found, noise, white).mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--epochs", type=int, default=20, help="of the flows")
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(1)
    bundle, _ = load_model(options.model)
    faces, vae = load_faces(options.data, bundle.config.size), bundle.vae
    mean, logvar = posteriors(vae, batches_of(faces, faces.train, CPU, mirrored=True))
    held = posteriors(vae, batches_of(faces, faces.held_out, CPU))
    unseen = draw_posteriors(*held, 0)
    gaussian = GaussianPrior(bundle.config.latent_dim)
    gaussian.fit(mean, logvar)
    white, known = gaussian.whiten(draw_posteriors(mean, logvar, 1)), gaussian.whiten(mean)
    with full_precision():
        usual = metrics.nearest(gaussian.whiten(unseen), known)[0].median()
        rows = faces.held_out[: options.samples]
        swd = SlicedWasserstein(batches_of(faces, rows, CPU), faces.size)
    noise = face_noise(list(range(len(rows))), bundle.config.latent_dim)

    def row(name: str, sample: Sampler, loss: float, begun: float) -> None:
        seconds = time.process_time() - begun
        with full_precision():
            latents = sample(noise)
            distances = swd(vae.decode(part) for part in latents.split(50))
            novelty = metrics.nearest(gaussian.whiten(latents), known)[0].median() / usual
        level = " / ".join(f"{d:.0f}" for d in distances.values())
        told = "" if math.isnan(loss) else f"{loss:.3f}"
        sys.stdout.write(f"| {name} | {seconds:.0f} | {told} | {level} | {novelty:.3f} |\n")
        sys.stdout.flush()

    sides = " / ".join(map(str, swd.sizes))
    sys.stdout.write(
        f"| | s to fit | held-out loss | SWD, {sides} px | novelty |\n|---|---|---|---|---|\n"
    )
    row(
        "draws of held-out faces' posteriors",
        lambda _: unseen[: len(rows)],
        math.nan,
        time.process_time(),
    )
    row("one Gaussian", gaussian, math.nan, time.process_time())
    plain = mean, logvar, mean.new_zeros(len(mean), NUM_CHANGES)
    changed = changed_posteriors(vae, faces, CPU, seed=0)
    both = tuple(torch.cat(parts) for parts in zip(plain, changed, strict=True))
    for name, latents, residual in (
        ("residual flow, of changed faces too", both, True),
        ("residual flow", plain, True),
        ("plain flow", plain, False),
    ):
        begun = time.process_time()
        flow = fit_flow(*latents, options.epochs, residual=residual)
        row(name, flow, held_out_loss(flow, unseen), begun)
        for guidance, until in itertools.product(GUIDANCES[1:], UNTIL):
            flow.guided_until = until
            with guided(flow, guidance):
                how = f"... guided by {guidance} until {until}"
                row(how, flow, math.nan, time.process_time())
    for count in (4, 16):
        begun = time.process_time()
        mixture = fit_mixture(white, count)
        row(f"mixture of {count}", lambda z, m=mixture: gaussian(m(z)), math.nan, begun)


if __name__ == "__main__":
    main()
