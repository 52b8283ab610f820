"""Valid settings are accepted and survive JSON; all others are refused when created."""

import dataclasses
import json

import pytest

from facevae.config import (
    MAX_LATENT_DIM,
    MAX_SEED,
    PRESETS,
    SIZES,
    STAGES,
    ModelConfig,
    PriorConfig,
    TrainConfig,
    preset,
)
from facevae.errors import UsageError

RECORDS = [
    ModelConfig(),
    ModelConfig(size=32, latent_dim=7, filters=(8, 16), dropout=0.25),
    ModelConfig(filters=(8, 16), residual_blocks=2),
    PriorConfig(),
    PriorConfig("flow", 64, 2),
    PriorConfig("flow", 64, 2, residual=True, guidance=1.75, guided_until=0.5),
    TrainConfig(),
    TrainConfig(epochs=3, r_loss_factor=1000.0, prior="gaussian", seed=MAX_SEED),
]


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_records_go_through_json_and_back(record):
    assert type(record).from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_records_cannot_be_changed(record):
    field = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, field, getattr(record, field))


@pytest.mark.parametrize("values", [None, [], "size", {}, {"size": 128}])
def test_a_record_of_other_fields_is_refused_with_the_names_it_needs(values):
    with pytest.raises(UsageError, match="dropout, filters, latent_dim, residual_blocks, size"):
        ModelConfig.from_dict(values)


def test_a_surplus_field_is_refused():
    with pytest.raises(UsageError, match="needs exactly"):
        PriorConfig.from_dict(PriorConfig().to_dict() | {"depth": 3})


BAD = [
    (ModelConfig, "size", [0, 100, 512, -32, "128", None, [128], 128.0]),
    (ModelConfig, "latent_dim", [0, -1, MAX_LATENT_DIM + 1, 2.5, 200.0, "200", True, None]),
    (
        ModelConfig,
        "filters",
        [(), (0,), (8,) * 8, [8, 8], (8, 2.5), (8, "8"), (True,), (4097,), None],
    ),
    (ModelConfig, "dropout", [-0.1, 1, 1.0, float("nan"), float("inf"), "0.1", None, True]),
    (PriorConfig, "kind", ["", "Normal", "vamp", None, ["flow"]]),
    (PriorConfig, "width", [-1, 8193, 1.5, None]),
    (PriorConfig, "blocks", [-1, 65, 1.5, None]),
    (PriorConfig, "residual", [True, 1, None]),
    (PriorConfig, "guidance", [1.5, 0, -1, float("nan"), None]),
    (PriorConfig, "guided_until", [0.5, 2, -1, float("nan"), None]),
    (TrainConfig, "epochs", [0, -1, 1.5, "3", True, None, MAX_SEED + 1]),
    (TrainConfig, "batch_size", [0, -1, 1.5, None]),
    (TrainConfig, "learning_rate", [0, -1e-3, float("nan"), float("inf"), "fast", None]),
    (TrainConfig, "r_loss_factor", [0, -1.0, float("nan"), float("inf"), "auto", True]),
    (TrainConfig, "prior", ["vamp", "", None]),
    (TrainConfig, "prior_epochs", [0, None]),
    (TrainConfig, "prior_width", [0, None]),
    (TrainConfig, "prior_blocks", [0, None]),
    (TrainConfig, "ema_images", [-1, 0.5, None]),
    (ModelConfig, "residual_blocks", [-1, 17, 1.5, "1", None, True]),
    (TrainConfig, "stages", [(), ("prior", "vae"), ("vae", "vae"), ("gan",), "vae", None]),
    (TrainConfig, "max_seconds", [0, -1.0, float("nan"), "8m", True]),
    (TrainConfig, "warm_up_images", [-1, 0.5, None]),
    (TrainConfig, "cool_down", [-0.1, 1.1, float("nan"), None]),
    (TrainConfig, "finish_epochs", [0, None]),
    (TrainConfig, "finish_weight", [-1, float("inf"), None]),
    (TrainConfig, "perceptual", [1, "yes", None]),
    (TrainConfig, "seed", [-1, 0.5, MAX_SEED + 1, None]),
]


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [(record, field, value) for record, field, values in BAD for value in values],
)
def test_what_cannot_be_meant_is_refused_in_one_line_that_names_it(record, field, value):
    with pytest.raises(UsageError) as caught:
        record(**{field: value})
    message = str(caught.value)
    assert "\n" not in message
    assert str(value) in message
    field = {"kind": "prior"}.get(field, field)
    assert field.replace("_", " ") in message.replace("_", " ").replace("-", " ")


@pytest.mark.parametrize("kind", ["width", "blocks"])
def test_a_flow_needs_width_and_blocks(kind):
    sizes = {"width": 8, "blocks": 1} | {kind: 0}
    with pytest.raises(UsageError, match=f"prior {kind}"):
        PriorConfig("flow", **sizes)


@pytest.mark.parametrize("field", ["prior_width", "prior_blocks"])
def test_a_prior_that_cannot_be_built_is_refused_before_the_training(field):
    with pytest.raises(UsageError, match="prior"):
        TrainConfig(**{field: 10_000})


@pytest.mark.parametrize("size", SIZES)
def test_filters_may_halve_a_picture_down_to_one_pixel_and_no_further(size):
    halvings = size.bit_length() - 1
    assert len(ModelConfig(size=size, filters=(4,) * halvings).filters) == halvings
    with pytest.raises(UsageError, match="filters"):
        ModelConfig(size=size, filters=(4,) * (halvings + 1))


def test_num_pixels_counts_every_channel():
    assert ModelConfig(size=64).num_pixels == 64 * 64 + 64 * 64 + 64 * 64


@pytest.mark.parametrize("kind", ["normal", "gaussian"])
def test_only_a_flow_has_a_network(kind):
    assert TrainConfig(prior=kind).prior_config == PriorConfig(kind, 0, 0)


def test_the_prior_of_a_training_has_the_sizes_it_asks_for():
    train = TrainConfig(prior_width=48, prior_blocks=3)
    assert train.prior_config == PriorConfig("flow", 48, 3, residual=True, guided_until=0.4)


def test_the_paper_preset_is_the_paper():
    paper = preset("paper")
    assert (paper.train.r_loss_factor, paper.train.prior) == (10_000, "normal")
    assert (paper.model.size, paper.model.latent_dim) == (128, 200)
    assert paper.train.ema_images == 0


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(UsageError, match="preset=huge") as caught:
        preset("huge")
    assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), True])
def test_the_kl_divergence_cannot_count_less_than_nothing(weight):
    with pytest.raises(UsageError, match="kl_weight"):
        TrainConfig(kl_weight=weight)


def test_a_residual_network_has_no_dropout():
    with pytest.raises(UsageError, match="residual networks have none"):
        ModelConfig(dropout=0.25, residual_blocks=1)


def test_time_is_shared_among_the_stages_that_take_steps():
    every = TrainConfig(stages=STAGES, max_seconds=100)
    shares = [every.seconds_for(stage) for stage in STAGES]
    assert sum(shares) == pytest.approx(100)
    assert all(share > 0 for share in shares)
    assert TrainConfig(stages=("finish",), max_seconds=60).seconds_for("finish") == 60
    without = TrainConfig(stages=STAGES, prior="gaussian", max_seconds=100)
    assert without.seconds_for("vae") + without.seconds_for("finish") == pytest.approx(100)
    assert TrainConfig().seconds_for("vae") is None


def test_only_the_residual_presets_finish():
    for name, chosen in PRESETS.items():
        assert ("finish" in chosen.train.stages) == bool(chosen.model.residual_blocks), name
