"""`attributes learn --refine`: which options it goes with, and what came of it in words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from facevae.errors import UsageError
from facevae.system.console import Console

if TYPE_CHECKING:
    from facevae.attributes.samples import Examples
    from facevae.models.bundle import Bundle


def check_refine(labels: Sequence[str] | None, method: str) -> None:
    """Raise `UsageError` for options that do not go with `--refine`."""
    if not labels or method == "mean":
        other = "--method mean" if labels else "--with"
        msg = f"--refine: does not go with {other}; leave one of them out"
        raise UsageError(msg)


def refine_learned(
    console: Console, bundle: "Bundle", examples: "Examples", names: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Refine the directions of attributes, say what came of it, and return that for JSON."""
    from facevae.attributes.directions import core_attributes
    from facevae.attributes.names import are_alike
    from facevae.latent_space.refining import refine_attributes

    core = [bundle.attributes[i].name for i in core_attributes(bundle.attributes)]
    if unwatched := [n for n in core if not any(are_alike(n, other) for other in examples.names)]:
        console.warn(
            f"no labels say {', '.join(unwatched)}: what edits change of it in pictures is not watched"
        )
    refined, reasons = refine_attributes(bundle, examples, names, console.progress)
    is_continuous = {a.name: a.continuous for a in bundle.attributes}
    for title, unit, continuous in (
        ("of edits by ±1.5, a classifier sees succeed", ".0%", False),
        ("for α = 1, a classifier sees in standard deviations", "+.2f", True),
    ):
        parts = [
            f"{name} {effect.before:{unit}} → {effect.after:{unit}}"
            for name, effect in refined.items()
            if is_continuous[name] is continuous
        ]
        if parts:
            console.say(f"refined; {title}: {', '.join(parts)}")
    for reason in dict.fromkeys(reasons.values()):
        alike = [name for name, other in reasons.items() if other == reason]
        console.say(f"not refined, since {reason}: {', '.join(alike)}")
    figures = {name: [round(e.before, 4), round(e.after, 4)] for name, e in refined.items()}
    return figures, reasons
