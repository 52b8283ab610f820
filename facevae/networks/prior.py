"""Priors over the latents: N(0, I), a fitted Gaussian, or a fitted flow.

Each prior maps standard normal noise to latents, so that a seed determines a face.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from facevae.config import MAX_GUIDANCE, PriorConfig
from facevae.errors import Argument, UsageError

# of Heun's method; twice as many would change a pixel by a third of a level on average
SAMPLING_STEPS = 25
_ROWS = 8192  # latents converted to double precision at a time


class NormalPrior(nn.Module):
    """The prior N(0, I), which is the paper's."""

    def forward(self, noise: Tensor) -> Tensor:
        """noise (B, D) → latents (B, D): the same."""
        return noise


class GaussianPrior(nn.Module):
    """One Gaussian with a full covariance matrix; `factor` is its lower Cholesky factor."""

    mean: Tensor
    factor: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim))
        # on the meta device, `torch.eye` would import modules for a second
        identity = torch.zeros(latent_dim, latent_dim).fill_diagonal_(1)
        self.register_buffer("factor", identity)

    def fit(self, mean: Tensor, logvar: Tensor) -> None:
        """Fit the first two moments of the aggregate posterior of means, log-variances (N, D).

        The covariance is shrunk towards its diagonal with the weight of D latents, so that directions
        in which few faces happen not to differ keep some variance.
        """
        # on the CPU, because some devices lack float64, and in parts, because there may be GB of them
        centre = torch.stack([part.cpu().double().sum(0) for part in mean.split(_ROWS)]).sum(0)
        centre /= len(mean)
        covariance = torch.zeros(len(centre), len(centre), dtype=torch.float64)
        for means, logvars in zip(mean.split(_ROWS), logvar.split(_ROWS), strict=True):
            deviation = means.cpu().double() - centre
            covariance += deviation.T @ deviation + logvars.cpu().double().exp().sum(0).diag()
        covariance /= len(mean)
        share = len(centre) / (len(centre) + len(mean))
        covariance = (1 - share) * covariance + share * covariance.diag().diag()
        # a little noise, because perfectly correlated dimensions would make it singular
        covariance.diagonal().add_(1e-6 * covariance.diagonal().mean())
        self.mean.copy_(centre)
        self.factor.copy_(torch.linalg.cholesky(covariance))

    @property
    def covariance(self) -> Tensor:
        """The covariance (D, D), exactly symmetric."""
        factor = self.factor.cpu().double()  # not every device has float64
        product = factor @ factor.T
        return ((product + product.T) / 2).to(self.factor.dtype).to(self.factor.device)

    def forward(self, noise: Tensor) -> Tensor:
        """noise (B, D) → latents (B, D)."""
        latents: Tensor = self.mean + noise @ self.factor.T
        return latents

    def whiten(self, latents: Tensor) -> Tensor:
        """The inverse of `forward`: latents (B, D) → (B, D) of unit covariance."""
        centred = (latents - self.mean).T
        white: Tensor = torch.linalg.solve_triangular(self.factor, centred, upper=False).T
        return white


class _Block(nn.Module):
    """Residual block of the flow's MLP: x (B, width) and embedded times → (B, width)."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inward = nn.Linear(width, width)
        self.time = nn.Linear(time_width, width)
        self.outward = nn.Linear(width, width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.inward(self.norm(x)) + self.time(time)
        out: Tensor = x + self.outward(nn.functional.silu(hidden))
        return out


class FlowPrior(nn.Module):
    """Flow matching on whitened latents: a residual MLP gives the velocity at a point and time.

    Lipman et al. 2023 (straight paths), with times drawn as in Esser et al. 2024, section 3.1. The
    MLP of a `residual` flow is added to the velocity that would be right if whitened latents were
    N(0, I), so that the flow starts as one Gaussian and learns the difference (as Karras et al. 2022,
    section 5, precondition a denoiser).

    A `guidance` above 1 extrapolates from the Gaussian's velocity beyond the learned one: the flow
    is guided by a worse model of the same data (Karras et al. 2024, autoguidance), which costs
    nothing here. It brings out what the flow has learned too weakly, and faces become cleaner.
    Guidance ends at the time `guided_until`: before, the kind of face is still open; later, guidance
    would exaggerate the face (Kynkäänniemi et al. 2024, guidance in a limited interval).
    """

    frequencies: Tensor

    def __init__(
        self,
        latent_dim: int,
        width: int,
        blocks: int,
        *,
        residual: bool = False,
        guidance: float = 1.0,
        guided_until: float = 1.0,
    ) -> None:
        super().__init__()
        self.residual, self.guidance, self.guided_until = residual, guidance, guided_until
        self.whitening = GaussianPrior(latent_dim)
        time_width = 128
        # from 1 to 1000, evenly in the logarithm; not `torch.logspace`, for the import time on meta
        frequencies = [1000 ** (i / (time_width // 2 - 1)) for i in range(time_width // 2)]
        self.register_buffer("frequencies", torch.tensor(frequencies), persistent=False)
        self.inward = nn.Linear(latent_dim, width)
        self.blocks = nn.ModuleList(_Block(width, time_width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, latent_dim)
        # only this layer: if the blocks started at zero too, gradients would vanish for long
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def velocity(self, points: Tensor, times: Tensor, condition: Tensor | None = None) -> Tensor:
        """Velocity (B, D) at whitened points (B, D) and times (B, 1), or (1, 1) for all, in [0, 1].

        `condition` (B, width) embeds what else is known of the latents.
        """
        angles = times * self.frequencies
        embedded = torch.cat([angles.sin(), angles.cos()], dim=1)
        hidden = self.inward(points)
        if condition is not None:
            hidden = hidden + condition
        for block in self.blocks:
            hidden = block(hidden, embedded)
        out: Tensor = self.outward(self.norm(hidden))
        return out + _gaussian_velocity(points, times) if self.residual else out

    def forward(self, noise: Tensor) -> Tensor:
        """noise (B, D) → latents (B, D), along the flow from time 0 to 1."""
        latents: Tensor = self.whitening(self.white(noise))
        return latents

    def white(self, noise: Tensor) -> Tensor:
        """noise (B, D) → whitened latents (B, D), by Heun's method."""
        points = noise
        step = 1 / SAMPLING_STEPS
        for i in range(SAMPLING_STEPS):
            start = noise.new_full((1, 1), i * step)  # of all rows
            guidance = self.guidance if i * step < self.guided_until else 1.0
            first = self._guided(points, start, guidance)
            second = self._guided(points + step * first, start + step, guidance)
            points = points + step / 2 * (first + second)
        return points

    def _guided(self, points: Tensor, times: Tensor, guidance: float) -> Tensor:
        """Velocity (B, D), extrapolated from the Gaussian's by `guidance`."""
        velocity = self.velocity(points, times)
        if guidance == 1:
            return velocity
        gaussian = _gaussian_velocity(points, times)
        return gaussian + guidance * (velocity - gaussian)


def _gaussian_velocity(points: Tensor, times: Tensor) -> Tensor:
    """E[latents − noise | (1 − t)·noise + t·latents], (B, D), if both are N(0, I)."""
    return (2 * times - 1) / (times.square() + (1 - times).square()) * points


Prior = NormalPrior | GaussianPrior | FlowPrior


def build_prior(config: PriorConfig, latent_dim: int) -> Prior:
    """An unfitted prior over latents with `latent_dim` dimensions."""
    if config.kind == "normal":
        return NormalPrior()
    if config.kind == "gaussian":
        return GaussianPrior(latent_dim)
    return FlowPrior(
        latent_dim,
        config.width,
        config.blocks,
        residual=config.residual,
        guidance=config.guidance,
        guided_until=config.guided_until,
    )


def sample_latents(
    prior: Prior, noise: Tensor, temperature: float = 1.0, guidance: float | None = None
) -> Tensor:
    """Latents (B, D) for standard normal noise (B, D).

    A lower `temperature` gives cleaner faces that are more alike. `guidance` None is the prior's
    own. Raises `UsageError` for a guidance if the prior is not a flow.
    """
    with nullcontext() if guidance is None else guided(prior, guidance):
        latents: Tensor = prior(noise * temperature)
    return latents


@contextmanager
def guided(prior: Prior, guidance: float) -> Iterator[None]:
    """Set the guidance of a flow inside the block. Raises `UsageError` for other priors."""
    if not isinstance(prior, FlowPrior):
        reason = f": only a flow can be guided, and this prior is {kind_of(prior)}"
        raise UsageError(Argument("guidance", f"{guidance:g}"), reason)
    if not 0 <= guidance <= MAX_GUIDANCE:
        reason = f": must be 0 to {MAX_GUIDANCE:g}"
        raise UsageError(Argument("guidance", f"{guidance:g}"), reason)
    before, prior.guidance = prior.guidance, guidance
    try:
        yield
    finally:
        prior.guidance = before


def other_prior(prior: Prior, kind: str) -> Prior:
    """A simpler prior that a fitted one contains, or the prior itself.

    Every prior can be replaced with N(0, I), and a flow with the Gaussian that whitens its latents.
    Raises `UsageError` for a kind that the prior does not contain.
    """
    if kind == "normal":
        return NormalPrior()
    if kind == "gaussian" and isinstance(prior, FlowPrior):
        return prior.whitening
    if kind == kind_of(prior):
        return prior
    reason = f": this model holds a {kind_of(prior)} prior, and knows no {kind} one"
    raise UsageError(Argument("prior", kind), reason)


def fitted_gaussian(prior: Prior) -> GaussianPrior | None:
    """The Gaussian that a prior is, or whitens with; None of N(0, I)."""
    if isinstance(prior, FlowPrior):
        return prior.whitening
    return prior if isinstance(prior, GaussianPrior) else None


def kind_of(prior: Prior) -> str:
    """The kind of a prior: `normal`, `gaussian` or `flow`."""
    return {NormalPrior: "normal", GaussianPrior: "gaussian", FlowPrior: "flow"}[type(prior)]
