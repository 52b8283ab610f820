"""A model's card on the Hub: Markdown generated from the model file's own metadata."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from facevae.attributes.directions import core_attributes
from facevae.errors import Argument, UsageError
from facevae.models.bundle import Bundle
from facevae.networks.vae import num_parameters
from facevae.system.files import dictionary, digest

CARD, LICENSE = "README.md", "LICENSE"
LIBRARY = "facevae"
# pictures that the card shows
SAMPLES, MORPH, ATTRIBUTES = (f"pictures/{name}.png" for name in ("samples", "morph", "attributes"))
NUM_SAMPLES, NUM_MORPHED = 32, 8
ALPHAS = tuple(i / 2 for i in range(-3, 4))
_MARK = re.compile(r"\n<!-- by facevae push, ([0-9a-f]{16}); .* -->\s*\Z")

# figure in the provenance → its name on the card and its format; other figures keep their names
_FIGURES = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "mse": ("mean squared error, pixels in [0, 1]", "{:.5f}"),
    "sharpness": ("sharpness (variance of the Laplacian, real faces = 1)", "{:.2f}"),
    "kl_nats": ("KL divergence", "{:,.0f} nats an image"),
    "kl_nats_per_dim": ("KL divergence a dimension", "{:.2f} nats"),
    "active_units": ("latent dimensions in use", "{:.0f}"),
    "r_loss_factor": ("r_loss_factor", "{:,.0f}"),
    "sigma": ("σ of the likelihood", "{:.3f}"),
}


@dataclass(frozen=True)
class Licence:
    """The terms a model is published on: an identifier of the Hub's list, or terms in words."""

    identifier: str
    terms: str = ""

    @property
    def is_in_words(self) -> bool:
        """Whether the terms are not a published licence, so that their text is published too."""
        return self.identifier == "other"


def licence_of(bundle: Bundle, identifier: str | None = None) -> Licence:
    """The licence `identifier`, else the terms that the model carries, else an unknown licence.

    Raises `UsageError` for an invalid identifier.
    """
    terms = str(bundle.provenance.get("terms") or "").strip()
    if identifier is None:
        return Licence("other" if terms else "unknown", terms)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", identifier):
        reason = ": must be an identifier of the Hub's, as mit or cc-by-nc-4.0"
        raise UsageError(Argument("license", identifier), reason)
    if identifier == "other" and not terms:
        reason = ": the model carries no terms (`facevae train --terms`) that it could mean"
        raise UsageError(Argument("license", identifier), reason)
    return Licence(identifier, terms)


def is_unchanged(card: str) -> bool:
    """Whether a card was written by `write_card` and not changed since."""
    match = _MARK.search(card.replace("\r\n", "\n"))
    return match is not None and match[1] == _fingerprint(match.string[: match.start()])


def _fingerprint(text: str) -> str:
    return digest(text.rstrip())[:16]


def shown_attributes(bundle: Bundle, count: int = 4) -> list[int]:
    """Indices of the attributes to show: the common ones, then those with the best held-out accuracy."""
    core = core_attributes(bundle.attributes)
    accuracies = [a.accuracy or 0.0 for a in bundle.attributes]
    others = sorted(set(range(len(accuracies))) - set(core), key=lambda i: (-accuracies[i], i))
    return [*core, *others][:count]


def write_card(
    bundle: Bundle, repository: str, licence: Licence, seeds: Sequence[int] = (0, 1)
) -> str:
    """The card as Markdown, headed by the Hub's metadata.

    `seeds` are the two of the morph; the first is also that of the edits.
    """
    parts = [
        _header(repository, licence),
        _summary(bundle, repository),
        _use(bundle, repository, seeds),
        _training(bundle.provenance),
        _figures(bundle.provenance),
        _attributes(bundle, seeds[0]),
        _limits(bundle),
        _terms(licence),
    ]
    text = "\n\n".join(part for part in parts if part)
    hint = "this line tells whether the card was changed since, and the next push then leaves it"
    return f"{text}\n\n<!-- by facevae push, {_fingerprint(text)}; {hint} -->\n"


def _header(repository: str, licence: Licence) -> str:
    from huggingface_hub import ModelCardData

    name = re.sub(r"[^a-z0-9]+", "-", licence.terms.lower())[:60].strip("-")
    metadata = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="unconditional-image-generation",
        tags=["vae", "faces", "image-generation", "pytorch"],
        license=licence.identifier,
        license_name=(name or "in-words") if licence.is_in_words else None,
        license_link=LICENSE if licence.is_in_words else None,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n# {repository.partition('/')[2]}"


def _summary(bundle: Bundle, repository: str) -> str:
    config, kind = bundle.config, bundle.prior_config.kind
    priors = {
        "flow": f"a flow ({_millions(num_parameters(bundle.prior))} parameters) fitted to its latents",
        "gaussian": "one Gaussian fitted to its latents",
        "normal": "N(0, I)",
    }
    unfinished = (
        ""
        if bundle.provenance.get("complete")
        else "**Unfinished: its training had not come to an end when it was published.**\n\n"
    )
    return (
        f"{unfinished}Faces of {config.size} × {config.size} px: a variational autoencoder "
        f"({_millions(num_parameters(bundle.vae))} parameters, {config.latent_dim} latent dimensions); "
        f"what it samples from is {priors[kind]}.\n\n"
        f"![Generated faces]({SAMPLES})\n\n"
        f"*None of these people exist: the first {NUM_SAMPLES} seeds, none left out, by* "
        f"`facevae sample --model {repository} -n {NUM_SAMPLES} --columns 8 -o samples.png`"
    )


def _use(bundle: Bundle, repository: str, seeds: Sequence[int]) -> str:
    commands = [
        f"facevae sample --model {repository} -n 64 -o grid.png",
        f"facevae reconstruct --model {repository} face.png",
        f"facevae morph --model {repository} seed:{seeds[0]} seed:{seeds[1]} --steps {NUM_MORPHED} -o morph.png",
    ]
    if bundle.attributes:
        name = " ".join(bundle.attributes[shown_attributes(bundle)[0]].name.split())
        sweep = f"{ALPHAS[0]:g}:{ALPHAS[-1]:g}:{len(ALPHAS)}"
        commands.append(
            f"facevae arith --model {repository} seed:{seeds[0]} --attr {shlex.quote(name)} --sweep={sweep}"
        )
    code = [
        "import facevae",
        "",
        f'model = facevae.load("{repository}")',
        f"latents = model.sample({NUM_SAMPLES}, seed=0)",
        f"way = model.morph(latents[{seeds[0]}], latents[{seeds[1]}], steps={NUM_MORPHED})",
        "pictures = model.decode(way)",
    ]
    return "\n".join(
        [
            "## Use",
            "",
            "```sh",
            *commands,
            "```",
            "",
            "```python",
            *code,
            "```",
            "",
            "`@` and a commit after the name hold on to this very model.",
            "",
            f"![Two generated faces and the way between them]({MORPH})",
            "",
            f"*Seeds {seeds[0]} and {seeds[1]}: of those above, the two nearest the average face.*",
        ]
    )


def _training(provenance: Mapping[str, Any]) -> str:
    rows = {
        "data": ", ".join(map(str, _items(provenance.get("sources")))),
        "faces trained on": _number(provenance.get("num_train")),
        "faces held out": _number(provenance.get("num_held_out")),
        "epochs": _number(provenance.get("epochs")),
        "epochs of the decoder's finish": _number(
            dictionary(provenance.get("finish")).get("epochs")
        ),
        "preset": provenance.get("preset"),
        "began with": provenance.get("init"),
        "device": provenance.get("device"),
        "facevae": provenance.get("facevae"),
        "torch": provenance.get("torch"),
    }
    train = provenance.get("train")
    settings = {k: v for k, v in train.items() if k != "epochs"} if isinstance(train, dict) else {}
    if settings.get("r_loss_factor", 0) is None:
        settings["r_loss_factor"] = "calibrated"
    table = _table(("", ""), [(name, value) for name, value in rows.items() if value])
    listed = ", ".join(
        f"{_plain(key)} {_plain(' + '.join(map(str, value)) if isinstance(value, list) else value)}"
        for key, value in settings.items()
    )
    return f"## Training\n\n{table}" + (f"\n\nSettings: {listed}." if listed else "")


def _figures(provenance: Mapping[str, Any]) -> str:
    figures = provenance.get("figures")
    if not isinstance(figures, dict) or not figures:
        return "## Figures\n\nNone were measured."
    rows = []
    for key, value in figures.items():
        name, form = _FIGURES.get(key, (key, "{:,.4g}"))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        rows.append((name, form.format(value) if is_number else value))
    return (
        "## Figures\n\nOf the held-out faces, which trained nothing, decoded from the posterior's mean.\n\n"
        + _table(("figure", "value"), rows)
    )


def _attributes(bundle: Bundle, seed: int) -> str:
    if not bundle.attributes:
        return ""
    rows = [
        (a.name, a.num_positives, a.num_negatives, _percent(a.accuracy)) for a in bundle.attributes
    ]
    shown = ", ".join(_plain(bundle.attributes[i].name) for i in shown_attributes(bundle))
    table = _table(("attribute", "faces with it", "without", "held-out balanced accuracy"), rows)
    return (
        f"## Attributes\n\n![A generated face, its attributes changed]({ATTRIBUTES})\n\n"
        f"*Seed {seed} with α from {ALPHAS[0]:g} to {ALPHAS[-1]:g}; from the top: {shown}.*\n\n{table}"
    )


def _limits(bundle: Bundle) -> str:
    opinions = (
        " Attributes are opinions of whoever labelled the faces, and what went along with one there "
        "goes along with it here."
        if bundle.attributes
        else ""
    )
    return (
        "## Limits and misuse\n\n"
        "It knows faces like those it was trained on, and serves others worse. Fine texture is "
        "lost: a reconstruction is a likeness, and no evidence of anything."
        f"{opinions}\n\n"
        "Do not use it to identify, judge or imitate people, nor to make pictures of anyone without "
        "their consent; say of a generated or edited picture that it is one. All faces on this page "
        "are generated."
    )


def _terms(licence: Licence) -> str:
    if licence.identifier == "unknown":
        return "## Terms\n\nNone were given: ask whoever published it before you use it."
    lines = [] if licence.is_in_words else [f"Licence: `{licence.identifier}`."]
    if licence.terms:
        lines.append(f"The model's file carries these terms: {_plain(licence.terms)}.")
    return "## Terms\n\n" + " ".join(lines)


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *(tuple(map(_plain, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: object) -> str:
    """A value as one line of text, with Markdown and HTML escaped."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", line)


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def _percent(accuracy: float | None) -> str:
    return "not measured" if accuracy is None else f"{accuracy:.0%}"
