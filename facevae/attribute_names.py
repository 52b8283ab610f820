"""Which of a model's attributes is meant: names as people write them."""

import difflib
import re
from collections.abc import Sequence

from facevae.errors import UsageError

_MOST_NAMED = 5  # of attributes that might be meant
# everyday words → the published attributes that mean it, the first that there is; - its opposite
_ALIASES = {
    "glasses": ("eyeglasses",),
    "spectacles": ("eyeglasses",),
    "smile": ("smiling",),
    "smiling": ("smile",),
    "gender": ("male", "-female"),
    "male": ("-female",),
    "man": ("male", "-woman", "-female"),
    "masculine": ("male", "-female"),
    "female": ("-male",),
    "woman": ("female", "-male"),
    "feminine": ("female", "-male"),
    "age": ("-young",),
    "old": ("age", "-young"),
    "young": ("-age",),
    "beard": ("-nobeard",),
    "hat": ("wearinghat", "headwear"),
    "headwear": ("wearinghat",),
    "lipstick": ("wearinglipstick", "lipmakeup"),
    "earrings": ("wearingearrings",),
    "necklace": ("wearingnecklace",),
    "necktie": ("wearingnecktie",),
    "tie": ("wearingnecktie",),
    "makeup": ("heavymakeup", "eyemakeup"),
    "blond": ("blondhair",),
    "blonde": ("blondhair",),
    "brunette": ("brownhair",),
    "fringe": ("bangs",),
    "moustache": ("mustache",),
    "mustache": ("moustache",),
    "stubble": ("5oclockshadow",),
    "pale": ("paleskin",),
    "curly": ("wavyhair",),
    "openmouth": ("mouthslightlyopen",),
    "balding": ("recedinghairline", "bald"),
}


def match_attribute(wanted: str, names: Sequence[str], option: str = "--attr") -> tuple[int, int]:
    """Which of `names` is meant, and which way (1 or -1): `glasses`, `Eyeglasses`, `beard`.

    Case, spaces and underscores do not count; everyday words and unique parts will do. Raises
    `UsageError` that lists what there is, and the nearest.
    """
    if exact := exact_match(wanted, names):
        return exact
    plain = {plain_name(name): i for i, name in enumerate(names)}
    partial: list[int] = []
    for word, sign in _meanings(wanted):
        partial = [i for name, i in plain.items() if word and word in name]
        if len(partial) == 1:
            return partial[0], sign
    if not names:
        msg = f"{option} {wanted}: this model knows no attributes; see `facevae attributes learn`"
        raise UsageError(msg)
    parts = [part for part in wanted.split(",") if part.strip()]
    if len(parts) > 1 and all(exact_match(part, names) for part in parts):
        msg = f"{option} {wanted}: name one at a time: {' '.join(f'{option} {p.strip()}' for p in parts)}"
        raise UsageError(msg)
    aliases = [word for word in _ALIASES if exact_match(word, names)]
    known = dict.fromkeys(aliases) | {name: names[i] for name, i in plain.items()}
    close = difflib.get_close_matches(plain_name(wanted), known, n=3, cutoff=0.6)
    nearest: dict[tuple[int, int] | None, str] = {}
    for name in close:  # each attribute once
        nearest.setdefault(exact_match(name, names), known[name] or name)
    if options := [names[i] for i in partial[:_MOST_NAMED]] or [*nearest.values()]:
        msg = f"{option} {wanted}: did you mean {' or '.join(options)}? `facevae attributes list` has them all"
    else:
        msg = f"{option} {wanted}: this model knows {', '.join(names)}"
    raise UsageError(msg)


def exact_match(wanted: str, names: Sequence[str]) -> tuple[int, int] | None:
    """An attribute of that very name, or of one that the word stands for."""
    plain = {plain_name(name): i for i, name in enumerate(names)}
    return next(((plain[word], sign) for word, sign in _meanings(wanted) if word in plain), None)


def _meanings(wanted: str) -> list[tuple[str, int]]:
    """The plain names that a word may mean, and which way, itself first."""
    word = plain_name(wanted)
    others = _ALIASES.get(word, ())
    return [(word, 1), *((name.removeprefix("-"), 1 - 2 * name.startswith("-")) for name in others)]


def plain_name(name: str) -> str:
    """A name as it is told from others, by its letters and digits alone."""
    return re.sub(r"[\W_]+", "", name).casefold()
