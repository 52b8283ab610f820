"""Lookup of a model's attributes by the names that people type."""

import difflib
import re
from collections.abc import Sequence

from facevae.errors import Argument, UsageError

_MAX_SUGGESTIONS = 5
_MAX_LISTED = 12  # names of attributes in a message
# everyday words → plain names of published attributes; the first one that a model has is used, and
# a leading - marks the opposite
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


def match_attribute(
    wanted: str, names: Sequence[str], argument: str = "attribute"
) -> tuple[int, int]:
    """Index in `names` of the attribute `wanted`, and its sign, -1 for the opposite.

    With CelebA's names, `glasses` finds Eyeglasses, and `beard` the opposite of No_Beard. Case,
    spaces and underscores are ignored; everyday words and unique parts of a name are accepted.
    Otherwise raises `UsageError`, which names `argument` and suggests close names or lists all.
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
        reason = ": this model knows no attributes; see `facevae attributes learn`"
        raise UsageError(Argument(argument, wanted), reason)
    parts = [part for part in wanted.split(",") if part.strip()]
    if len(parts) > 1 and all(exact_match(part, names) for part in parts):
        each = (text for part in parts for text in (" ", Argument(argument, part.strip())))
        raise UsageError(Argument(argument, wanted), ": name one at a time:", *each)
    aliases = [word for word in _ALIASES if exact_match(word, names)]
    known = dict.fromkeys(aliases) | {name: names[i] for name, i in plain.items()}
    close = difflib.get_close_matches(plain_name(wanted), known, n=3, cutoff=0.6)
    nearest: dict[tuple[int, int] | None, str] = {}
    for name in close:  # suggest each attribute once
        nearest.setdefault(exact_match(name, names), known[name] or name)
    if options := [names[i] for i in partial[:_MAX_SUGGESTIONS]] or [*nearest.values()]:
        reason = f": did you mean {' or '.join(options)}? `facevae attributes list` shows them all"
    else:
        shown = ", ".join(names) if len(names) <= _MAX_LISTED else f"{len(names)} attributes"
        more = "" if len(names) <= _MAX_LISTED else "; see `facevae attributes list`"
        reason = f": this model knows {shown}{more}"
    raise UsageError(Argument(argument, wanted), reason)


def exact_match(wanted: str, names: Sequence[str]) -> tuple[int, int] | None:
    """Index and sign, as in `match_attribute`, for a whole name or everyday word; else None."""
    plain = {plain_name(name): i for i, name in enumerate(names)}
    return next(((plain[word], sign) for word, sign in _meanings(wanted) if word in plain), None)


def are_alike(name: str, other: str) -> bool:
    """Whether two names mean the same attribute, or one the opposite of the other."""
    return bool(exact_match(name, [other]) or exact_match(other, [name]))


def _meanings(wanted: str) -> list[tuple[str, int]]:
    """Plain names that a word may mean, each with its sign; the word itself comes first."""
    word = plain_name(wanted)
    aliases = _ALIASES.get(word, ())
    signed = [(name.removeprefix("-"), -1 if name.startswith("-") else 1) for name in aliases]
    return [(word, 1), *signed]


def plain_name(name: str) -> str:
    """Letters and digits of a name, case-folded; names with the same result are the same."""
    return re.sub(r"[\W_]+", "", name).casefold()
