"""Settings of models and trainings: immutable, checked when created; and the presets."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from facevae.errors import Argument, UsageError

PriorKind = Literal["flow", "gaussian", "normal"]
StageName = Literal["vae", "prior", "finish"]
STAGES: tuple[StageName, ...] = get_args(StageName)  # in the order of a training
# of `max_seconds`
_TIME_SHARES: dict[StageName, float] = {"vae": 0.55, "prior": 0.15, "finish": 0.3}
SIZES = (32, 64, 128, 256)
MAX_LATENT_DIM = 8192
# time in a new flow at which guidance ends: guided to the end, samples are less like faces
_GUIDED_UNTIL = 0.4
MAX_GUIDANCE = 10.0
MAX_SEED = 2**63 - 1
# texture of samples, and of everything else, which should be true to given faces
WHOLE_TEXTURE, TRUE_TEXTURE = 1.0, 0.0


def _require(holds: object, *message: Argument | str) -> None:
    """Raise `UsageError` with this message unless the condition holds."""
    if not holds:
        raise UsageError(*message)


def _is_count(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class _Record:
    """An immutable dataclass that can be converted to and from JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of JSON values, by field name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """The inverse of `to_dict`. Raises `UsageError` for missing, unknown or bad fields."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            msg = f"{cls.__name__} needs exactly the fields {', '.join(sorted(names))}"
            raise UsageError(msg)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclass(frozen=True)
class ModelConfig(_Record):
    """The network. `size` is in pixels; `filters` are the encoder's channels, from the image inwards.

    `residual_blocks` is the number of them at each level; 0 is the paper's plain network.
    """

    size: int = 128
    latent_dim: int = 200
    filters: tuple[int, ...] = (32, 64, 64, 64)
    dropout: float = 0.0
    residual_blocks: int = 0

    def __post_init__(self) -> None:
        """Check the values. Raises `UsageError`."""
        _require(
            isinstance(self.size, int) and self.size in SIZES,
            Argument("size", self.size),
            ": must be 32, 64, 128 or 256",
        )
        _require(
            _is_count(self.latent_dim, 1, MAX_LATENT_DIM),
            Argument("latent_dim", self.latent_dim),
            f": must be 1 to {MAX_LATENT_DIM}",
        )
        _require(
            isinstance(self.filters, tuple)
            and 1 <= len(self.filters) <= int(math.log2(self.size))
            and all(_is_count(f, 1, 4096) for f in self.filters),
            f"filters {self.filters}: needs 1 to {int(math.log2(self.size))} counts of 1 to 4096",
        )
        _require(
            _is_real(self.dropout) and 0 <= self.dropout < 1,
            Argument("dropout", self.dropout),
            ": must be at least 0 and less than 1",
        )
        _require(
            _is_count(self.residual_blocks, 0, 16),
            f"residual_blocks {self.residual_blocks}: must be 0 to 16",
        )
        _require(
            not (self.residual_blocks and self.dropout),
            Argument("dropout", self.dropout),
            ": residual networks have none",
        )

    @property
    def num_pixels(self) -> int:
        """Number of values in an image: 3 · size · size."""
        return 3 * self.size * self.size


@dataclass(frozen=True)
class PriorConfig(_Record):
    """The prior over the latents. `width` and `blocks` are the size of a flow's network, else 0.

    The network of a `residual` flow learns the difference from one Gaussian. `guidance` scales what
    the flow learned beyond that Gaussian, 1 being unchanged, before the time `guided_until`.
    """

    kind: PriorKind = "normal"
    width: int = 0
    blocks: int = 0
    residual: bool = False
    guidance: float = 1.0
    guided_until: float = 1.0

    def __post_init__(self) -> None:
        """Check the values. Raises `UsageError`."""
        _require(
            self.kind in get_args(PriorKind),
            f"prior {self.kind}: must be one of {get_args(PriorKind)}",
        )
        low, width, blocks = (1, 8192, 64) if self.kind == "flow" else (0, 0, 0)
        _require(_is_count(self.width, low, width), f"prior width {self.width}: out of range")
        _require(_is_count(self.blocks, low, blocks), f"prior blocks {self.blocks}: out of range")
        is_sound = isinstance(self.residual, bool) and self.residual <= (self.kind == "flow")
        _require(is_sound, f"prior residual {self.residual}: only a flow can be")
        _require(
            _is_real(self.guidance)
            and 0 <= self.guidance <= MAX_GUIDANCE
            and (self.guidance == 1 or self.kind == "flow"),
            f"prior guidance {self.guidance}: must be 0 to {MAX_GUIDANCE:g}, and 1 but for a flow",
        )
        _require(
            _is_real(self.guided_until)
            and 0 <= self.guided_until <= 1
            and (self.guided_until == 1 or self.kind == "flow"),
            f"prior guided_until {self.guided_until}: must be 0 to 1, and 1 but for a flow",
        )


@dataclass(frozen=True)
class TrainConfig(_Record):
    """The training. `r_loss_factor` None is the calibrated likelihood (`--r-loss-factor auto`).

    `kl_weight` 0 is a plain autoencoder: no KL divergence, and the latent is the mean.
    `ema_images` is the half-life of the averaged weights in images, 0 for no average.
    `warm_up_images` is the number of images over which the learning rate rises; `cool_down` is the
    share of the training, at its end, over which it falls to zero. `prior_epochs` is the number of
    passes over the latents in the fit of a flow, and `finish_epochs` that of passes over the faces
    in the finish of the decoder. `finish_weight` is the weight of the discriminators in the finish;
    `perceptual` adds LPIPS to its loss. `max_seconds` is the time of all `stages` together, and
    takes the place of epochs.
    """

    stages: tuple[StageName, ...] = ("vae", "prior")
    max_seconds: float | None = None
    epochs: int = 30
    batch_size: int = 150
    learning_rate: float = 5e-4
    r_loss_factor: float | None = None
    kl_weight: float = 1.0
    prior: PriorKind = "flow"
    prior_epochs: int = 100
    prior_width: int = 768
    prior_blocks: int = 4
    ema_images: int = 50_000
    warm_up_images: int = 0
    cool_down: float = 0.0
    finish_epochs: int = 10
    finish_weight: float = 1.0
    perceptual: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values. Raises `UsageError`."""
        for name, value, low in (
            ("epochs", self.epochs, 1),
            ("batch_size", self.batch_size, 1),
            ("prior_epochs", self.prior_epochs, 1),
            ("finish_epochs", self.finish_epochs, 1),
            ("ema_images", self.ema_images, 0),
            ("warm_up_images", self.warm_up_images, 0),
            ("seed", self.seed, 0),
        ):
            _require(
                _is_count(value, low, MAX_SEED),
                Argument(name, value),
                f": must be a whole number from {low}, below 2^63",
            )
        _require(
            _is_real(self.learning_rate) and self.learning_rate > 0,
            Argument("learning_rate", self.learning_rate),
            ": must be more than 0",
        )
        _require(
            self.r_loss_factor is None or (_is_real(self.r_loss_factor) and self.r_loss_factor > 0),
            Argument("r_loss_factor", self.r_loss_factor),
            ": must be more than 0, or auto",
        )
        _require(
            _is_real(self.kl_weight) and self.kl_weight >= 0,
            f"kl_weight {self.kl_weight}: must be 0 or more",
        )
        _require(
            self.prior in get_args(PriorKind),
            Argument("prior", self.prior),
            f": must be one of {', '.join(get_args(PriorKind))}",
        )
        PriorConfig("flow", self.prior_width, self.prior_blocks)
        self._check_stages()

    def _check_stages(self) -> None:
        is_chosen = isinstance(self.stages, tuple) and len(self.stages) > 0
        _require(
            is_chosen and self.stages == tuple(s for s in STAGES if s in self.stages),
            Argument("stages", self.stages),
            f": must be some of {', '.join(STAGES)}, in that order",
        )
        _require(
            self.max_seconds is None or (_is_real(self.max_seconds) and self.max_seconds > 0),
            Argument("max_seconds", self.max_seconds),
            ": must be more than 0",
        )
        _require(
            _is_real(self.cool_down) and 0 <= self.cool_down <= 1,
            f"cool_down {self.cool_down}: must be 0 to 1",
        )
        _require(
            _is_real(self.finish_weight) and self.finish_weight >= 0,
            Argument("finish_weight", self.finish_weight),
            ": must be 0 or more",
        )
        _require(
            isinstance(self.perceptual, bool),
            Argument("perceptual", self.perceptual),
            ": must be yes or no",
        )

    def seconds_for(self, stage: StageName) -> float | None:
        """The part of `max_seconds` for a stage; None without `max_seconds`.

        The time is divided in fixed proportions among the chosen stages that take steps.
        """
        if self.max_seconds is None:
            return None
        timed = [s for s in self.stages if s != "prior" or self.prior == "flow"]
        total = sum(_TIME_SHARES[s] for s in {*timed, stage})
        return self.max_seconds * _TIME_SHARES[stage] / total

    @property
    def prior_config(self) -> PriorConfig:
        """The prior that this training fits, before its guidance is chosen."""
        if self.prior != "flow":
            return PriorConfig(self.prior)
        return PriorConfig(
            "flow",
            self.prior_width,
            self.prior_blocks,
            residual=True,
            guided_until=_GUIDED_UNTIL,
        )


@dataclass(frozen=True)
class Preset:
    """A network and a training for it, with a one-line summary of their use."""

    model: ModelConfig
    train: TrainConfig
    summary: str


PRESETS = {
    "base": Preset(
        ModelConfig(),
        TrainConfig(),
        "the paper's network with a calibrated likelihood and a fitted flow prior",
    ),
    "paper": Preset(
        ModelConfig(),
        TrainConfig(r_loss_factor=10_000.0, prior="normal", ema_images=0),
        "the paper as it stands: r_loss_factor 10,000 and the prior N(0, I)",
    ),
    "compact": Preset(
        ModelConfig(latent_dim=256, filters=(32, 64, 128, 256, 384), residual_blocks=1),
        TrainConfig(
            stages=STAGES,
            epochs=80,
            warm_up_images=20_000,
            cool_down=0.3,
            ema_images=20_000,
            prior_epochs=300,
            prior_width=896,
            finish_epochs=15,
        ),
        "a residual network of 14 M with an adversarial finish; train it on a GPU, use it anywhere",
    ),
    "sharp": Preset(
        ModelConfig(latent_dim=512, filters=(96, 192, 320, 448, 512), residual_blocks=2),
        TrainConfig(
            stages=STAGES,
            epochs=150,
            warm_up_images=20_000,
            cool_down=0.3,
            prior_epochs=300,
            prior_width=2048,
            prior_blocks=6,
            finish_epochs=20,
        ),
        "the same of 60 M, for a data-centre GPU and an evening",
    ),
}


# settings with an option of that name, such as --latent-dim, that takes their value. Of the others,
# epochs and max_seconds are budgets, perceptual is a flag, and a preset or --init sets the rest.
SETTINGS_WITH_OPTIONS = (
    "size",
    "latent_dim",
    "dropout",
    "batch_size",
    "learning_rate",
    "r_loss_factor",
    "prior",
    "prior_epochs",
    "stages",
    "finish_epochs",
    "finish_weight",
    "seed",
)


def setting_text(key: str, value: object) -> str:
    """The value of a setting as its option has it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "auto" if key == "r_loss_factor" and value is None else str(value)


def preset(name: str) -> Preset:
    """The preset with this name. Raises `UsageError`."""
    if name not in PRESETS:
        raise UsageError(Argument("preset", name), f": must be one of {', '.join(PRESETS)}")
    return PRESETS[name]
