"""Settings of `train` from its options."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from facevae.cli import options
from facevae.cli.session import find_model
from facevae.config import Preset
from facevae.errors import UsageError
from facevae.system.console import Console

if TYPE_CHECKING:
    from facevae.models.bundle import Bundle


def load_init(console: Console, name: str | None) -> "Bundle | None":
    """The model to start from, if one is named."""
    if not name:
        return None
    located = find_model(console, name)

    from facevae.models.loading import read_model  # no earlier: it imports torch

    return read_model(located)


def configure(
    chosen: Preset,
    init: "Bundle | None",
    *,
    model: Mapping[str, Any],
    train: Mapping[str, Any],
    r_loss_factor: str | None,
) -> Preset:
    """The preset with the given settings, and with the network of `init` if there is one.

    Settings that are None keep the preset's value. Raises `UsageError` if a setting in `model`,
    other than the dropout, differs from that of `init`.
    """
    given = {key: value for key, value in model.items() if value is not None}
    if init and (
        wrong := [k for k, v in given.items() if k != "dropout" and v != getattr(init.config, k)]
    ):
        name = wrong[0].replace("_", "-")
        value = getattr(init.config, wrong[0])
        msg = f"--{name} {given[wrong[0]]}: the --init model has {value}; leave --{name} out"
        raise UsageError(msg)
    base = init.config if init else chosen.model
    settings = {key: value for key, value in train.items() if value is not None}
    stages = settings.get("stages", chosen.train.stages)
    if init and "vae" not in stages and init.prior_config.kind == "flow":
        # the network is not trained, so the flow can be trained further and keeps its shape
        shape = init.prior_config
        settings |= {"prior_width": shape.width, "prior_blocks": shape.blocks}
    if r_loss_factor is not None:
        settings["r_loss_factor"] = options.parse_r_loss_factor(r_loss_factor)
    return dataclasses.replace(
        chosen,
        model=dataclasses.replace(base, **given),
        train=dataclasses.replace(chosen.train, **settings),
    )


def check_stages(
    chosen: Preset,
    *,
    vae_options: Mapping[str, object],
    epochs: int | None,
    prior_epochs: int | None,
    finish_epochs: int | None,
    finish_weight: float | None,
    perceptual: bool,
    has_init: bool,
) -> None:
    """Raise `UsageError` for two budgets of one stage, or for options of a stage that is left out.

    `vae_options` are options of the stage vae with their values. Without that stage they are
    refused only if the network is that of another model (`has_init`): a run that trains its later
    stages has its own network, and may repeat the options that it was trained with.
    """
    given = [f"{name} {value}" for name, value in vae_options.items() if value is not None]
    if given and has_init and "vae" not in chosen.train.stages:
        msg = f"{given[0]}: the --init model's network stays as it is; leave the option out, or add vae to --stages"
        raise UsageError(msg)
    finish_options = ["--perceptual"] if perceptual else []
    if finish_weight is not None:
        finish_options.append(f"--finish-weight {finish_weight:g}")
    if finish_options and "finish" not in chosen.train.stages:
        msg = f"{finish_options[0]}: the stage finish is left out; add it to --stages"
        raise UsageError(msg)
    budgets = {"vae": epochs, "prior": prior_epochs, "finish": finish_epochs}
    names = {"vae": "--epochs", "prior": "--prior-epochs", "finish": "--finish-epochs"}
    for stage, value in budgets.items():
        if value is None:
            continue
        if chosen.train.max_seconds is not None:
            msg = f"{names[stage]} and --max-time are two budgets; give one of them"
            raise UsageError(msg)
        if stage == "prior" and chosen.train.prior != "flow":
            msg = f"{names[stage]} {value}: the prior is {chosen.train.prior}, which has no epochs; add --prior flow"
            raise UsageError(msg)
        if stage not in chosen.train.stages:
            msg = f"{names[stage]} {value}: the stage {stage} is left out; add it to --stages"
            raise UsageError(msg)
