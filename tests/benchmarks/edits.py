"""Measure whether edits do what they say, with a classifier trained on real faces only.

    python tests/benchmarks/edits.py celeba128 --labels celeba128-list_attr.txt

The classifier averages the logits of small convolutional networks. Each learns the attributes from
another random start, from the labelled training faces, sharp and blurred; none sees a generated
face. Held-out faces without an attribute are edited at α = 1.5, those with it at -1.5 (`--alpha`
sets the amount), and the classifier judges the pictures.

`changed` is the share of faces that have the wanted label after the edit, among those whose
reconstruction did not. `so labelled` is, for comparison, the share of reconstructions of faces with
the wanted label in which the classifier sees it. The other columns are the shares in which gender,
age, smile or glasses flipped, among faces whose reconstruction the classifier was sure of (90 %).
`--tuned N` measures on N faces only, and adds edits with a decoder that is tuned to each photo, as
`facevae arith` makes them by default: that takes 3 to 5 s for each face. Flips and changes are then
counted against the photo itself. Edits are those of the model's own attributes, or of attributes
that are learned from the labels if it lacks one of them. `--compare` adds these in any case, which are
not refined, edits that are not corrected, and other methods of finding the direction. `--photos` and `--photo-labels` measure on another
collection of faces, such as FFHQ with its features.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from facevae.attributes.samples import Examples
from facevae.cli.drawing import EditDrawing, Subject
from facevae.config import TRUE_TEXTURE
from facevae.data.batches import batches_of
from facevae.data.dataset import Faces, load_faces
from facevae.data.image_tensors import from_pixels, to_pixels
from facevae.data.images import SUFFIXES
from facevae.data.label_files import read_labels
from facevae.data.labels import Labels
from facevae.data.pictures import Picture, find_files
from facevae.errors import ImageError
from facevae.faces.alignment import load_faces_of
from facevae.latent_space.edits import Draw, edit_faces, plan_edit
from facevae.latent_space.latents import decode, posteriors
from facevae.latent_space.learning import add_attributes, examples_of_faces
from facevae.latent_space.tuning import tune
from facevae.models.bundle import Bundle
from facevae.models.loading import load_model
from facevae.networks.image_features import ImageFeatures, load_image_features
from facevae.system.runtime import training_precision

CPU = torch.device("cpu")
SURE, SIZE = 2.2, 64  # 2.2 is the logit of 90 %
EDITED = ("Eyeglasses", "Smiling", "Male", "Young", "No_Beard", "Wearing_Hat")
CELEBA_NAMES = {"Headwear": "Wearing_Hat"}  # of FFHQ's attributes, where they differ
WATCHED = ("Male", "Young", "Smiling", "Eyeglasses")


# ---------------------------------------------------------------- the classifier


class Block(nn.Module):
    """Residual block of two convolutions that halves the side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, 2, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.short = nn.Conv2d(in_channels, out_channels, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


class Network(nn.Sequential):
    """Images (B, 3, 64, 64) in [-1, 1] → logits (B, A)."""

    def __init__(self, num_attributes: int, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(3, width, 5, 2, 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Block(width, 2 * width),
            Block(2 * width, 4 * width),
            Block(4 * width, 6 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(6 * width, num_attributes),
        )


class Classifier(nn.ModuleList):
    """Ensemble of networks: the mean of their logits."""

    @torch.no_grad()
    def look(self, images: Tensor) -> Tensor:
        """Logits (N, A) of images (N, 3, S, S) in [0, 1], averaged with those of mirror images."""
        small = F.interpolate(images, size=(SIZE, SIZE), mode="area") * 2 - 1
        batches = [torch.cat([part, part.flip(3)]) for part in small.split(128)]
        logits = [sum(network(batch) for network in self) / len(self) for batch in batches]
        return torch.cat([sum(both_sides.chunk(2)) / 2 for both_sides in logits])


def augment(images: Tensor) -> Tensor:
    """Mirror, rotate, scale, shift, relight, and blur (mostly) images (N, 3, S, S) at random."""
    count = len(images)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    angle, scale = 0.25 * (torch.rand(count) - 0.5), 1 + 0.2 * (torch.rand(count) - 0.5)
    shift = 0.16 * (torch.rand(2, count) - 0.5)
    rows = [mirror * scale * angle.cos(), -scale * angle.sin(), shift[0]]
    rows += [mirror * scale * angle.sin(), scale * angle.cos(), shift[1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), images.shape, align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    if torch.rand(()) < 0.6:
        side = int(torch.randint(20, 48, ()))
        small = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        images = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear")
    contrast = 1 + 0.4 * (torch.rand(count, 1, 1, 1) - 0.5)
    return ((images - 0.5) * contrast + 0.5 + 0.2 * (torch.rand(count, 1, 1, 1) - 0.5)).clamp(0, 1)


def train_network(faces: Faces, labels: Labels, epochs: int, seed: int) -> Network:
    """Train a network on the training faces that have every label."""
    torch.manual_seed(seed)
    values = labels.rows_for([faces.stems[row] for row in faces.train])
    rows = faces.train[~np.isnan(values).any(1)]
    images = torch.from_numpy(faces.pixels[rows]).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(values[~np.isnan(values).any(1)])
    share = targets.mean(0).clamp(0.04, 0.96)  # yes and no have equal weight
    weights = torch.where(targets > 0, 0.5 / share, 0.5 / (1 - share))
    network = Network(targets.shape[1]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    num_steps = epochs * len(rows) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, num_steps, pct_start=0.1)
    for _ in range(num_steps):
        batch = torch.randint(len(rows), (128,))
        seen = augment(images[batch].float() / 255).contiguous(memory_format=torch.channels_last)
        with training_precision(CPU):
            logits = network(seen * 2 - 1)
        loss = F.binary_cross_entropy_with_logits(logits.float(), targets[batch], weights[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


# ---------------------------------------------------------------- other directions, to compare


def joint_directions(latents: Tensor, values: Tensor, scorers: Tensor) -> Tensor:
    """Least squares of latents on all attributes at once, each scaled to move its score by 1."""
    design = torch.cat([torch.ones(len(values), 1), values], 1).double()
    directions = torch.linalg.lstsq(design, latents.double()).solution[1:].float()
    return directions / (directions * scorers).sum(1, keepdim=True)


# ---------------------------------------------------------------- the table

Way = Callable[[str, Tensor, float], Tensor]
"""An attribute's name, latents (N, D) and α → edited latents (N, D)."""


def along(directions: Callable[[str], Tensor]) -> Way:
    """Edit that moves latents along the direction of an attribute's name."""
    return lambda name, latents, alpha: latents + alpha * directions(name)


def as_arith(bundle: Bundle, draw: Draw | None = None) -> Way:
    """Edits as `facevae arith` makes them; `draw` makes pictures of them, None by the decoder."""

    def way(name: str, latents: Tensor, alpha: float) -> Tensor:
        edit = plan_edit(bundle, [name])
        alphas = alpha * edit.signs.expand(len(latents), 1)
        return edit_faces(bundle, edit, latents, alphas, draw)

    return way


def uncorrected(bundle: Bundle) -> Way:
    """The same without corrections by what pictures show."""

    def way(name: str, latents: Tensor, alpha: float) -> Tensor:
        edit = plan_edit(bundle, [name])
        return edit.apply(latents, alpha * edit.signs.expand(len(latents), 1))

    return way


def other_ways(bundle: Bundle, examples: Examples) -> dict[str, Way]:
    """Edits along directions of other methods, by title."""
    names = [attribute.name for attribute in bundle.attributes]
    training = ~examples.held_out
    latents = examples.latents[torch.from_numpy(training)]
    columns = [list(examples.names).index(name) for name in names]
    labels = torch.from_numpy(examples.values[training])[:, columns]
    joint = joint_directions(latents, labels, bundle.scorers)
    discriminants = replace(bundle)
    add_attributes(discriminants, examples, "lda")
    means = replace(bundle)
    add_attributes(means, examples, "mean")
    return {
        "one direction for all faces": along(lambda name: plan_edit(bundle, [name]).etas[0]),
        "by linear discriminants": as_arith(discriminants),
        "the paper's difference of means": along(
            lambda name: plan_edit(means, [name], ["none"]).etas[0]
        ),
        "joint least squares": along(lambda name: joint[names.index(name)]),
    }


@dataclass(frozen=True)
class LabelledFaces:
    """Faces outside the training set: images (N, 3, S, S), latents (N, D) and labels (N, A).

    Labels of attributes that are unknown are NaN.
    """

    images: Tensor
    latents: Tensor
    values: np.ndarray
    names: list[str]

    def some(self, count: int) -> "LabelledFaces":
        """At most `count` of the faces, evenly spaced."""
        rows = np.unique(np.linspace(0, len(self.images) - 1, count).round().astype(int))
        return replace(
            self, images=self.images[rows], latents=self.latents[rows], values=self.values[rows]
        )

    @property
    def edited(self) -> list[str]:
        """The attributes to edit whose labels are known."""
        return [
            name for name in EDITED if not np.isnan(self.values[:, self.names.index(name)]).any()
        ]


@dataclass(frozen=True)
class Seen:
    """What the classifier sees, as logits: of all faces unedited (N, A), and of edited ones.

    `after` is by attribute and sign of α, each for the faces that lack what is added, in order.
    """

    before: Tensor
    after: dict[tuple[str, int], Tensor]


def lacking(faces: LabelledFaces, name: str, sign: int) -> Tensor:
    """Which faces (N,) lack what an edit of `name` by α of this sign adds."""
    return torch.from_numpy((faces.values[:, faces.names.index(name)] > 0) != (sign > 0))


def look(
    way: Way, bundle: Bundle, classifier: Classifier, faces: LabelledFaces, amount: float
) -> Seen:
    """Edit latents and judge the decoded pictures."""
    after = {}
    for name, sign in product(faces.edited, (1, -1)):
        edited = way(name, faces.latents[lacking(faces, name, sign)], sign * amount)
        after[name, sign] = classifier.look(decode(bundle.vae, edited))
    return Seen(classifier.look(decode(bundle.vae, faces.latents)), after)


def look_tuned(bundle: Bundle, classifier: Classifier, faces: LabelledFaces, amount: float) -> Seen:
    """Edit photos as `facevae arith` does, with the decoder tuned to each, and judge the pictures.

    Also prints how like their photos the pictures are.
    """
    features = load_image_features(CPU)
    likeness: dict[str, list[Tensor]] = {"plain": [], "tuned": []}
    lacks = {key: lacking(faces, *key) for key in product(faces.edited, (1, -1))}
    before, decibels = [], []
    after: dict[tuple[str, int], list[Tensor]] = {key: [] for key in lacks}
    for row, (image, latent) in enumerate(zip(faces.images, faces.latents[:, None], strict=True)):
        edits = [key for key in lacks if lacks[key][row]]
        photo, tuning = to_pixels(image), tune(bundle, image[None], latent, TRUE_TEXTURE)
        decibels.append(torch.cat([tuning.before, tuning.after]))
        subject = Subject(photo, latent[0])
        drawing = EditDrawing(
            subject, bundle, tuning.bundle, latent[0], TRUE_TEXTURE, keeps_detail=True
        )
        way = as_arith(bundle, drawing.images)
        latents = torch.cat([way(name, latent, sign * amount) for name, sign in edits])
        pictures = from_pixels(np.concatenate([photo[None], drawing.written(latents)[1]]))
        logits = classifier.look(pictures)
        before.append(logits[0])
        for key, seen in zip(edits, logits[1:], strict=True):
            after[key].append(seen)
        likeness["plain"].append(alike(features, image, decode(bundle.vae, latents)))
        likeness["tuned"].append(alike(features, image, pictures[1:]))
    plain, tuned = torch.stack(decibels).mean(0)
    means = {title: torch.cat(parts).mean() for title, parts in likeness.items()}
    sys.stdout.write(
        f"{len(before)} photos: {plain:.2f} dB before tuning, {tuned:.2f} dB after; cosine of edited"
        f" faces' features with the photo's: {means['plain']:.3f} before, {means['tuned']:.3f} after\n"
    )
    return Seen(torch.stack(before), {key: torch.stack(seen) for key, seen in after.items()})


def alike(features: ImageFeatures, image: Tensor, pictures: Tensor) -> Tensor:
    """Cosines (N,) of features of pictures (N, 3, S, S) with those of an image, at 1/8 and 1/16."""
    levels = features(torch.cat([image[None], pictures]))[1:3]
    rows = [F.normalize(level.flatten(1), dim=1) for level in levels]
    return sum(level[1:] @ level[0] for level in rows) / len(rows)


def judged(seen: Seen, faces: LabelledFaces, amount: float) -> Table:
    """Table of what edits by ±`amount` change, two rows for each attribute."""
    before = seen.before
    table = Table(
        "attribute", "α", "faces", "changed", "so labelled", *(f"{n} flips" for n in WATCHED)
    )
    for (name, sign), after in seen.after.items():
        chosen, alpha = lacking(faces, name, sign), sign * amount
        is_seen = before[~chosen, faces.names.index(name)] * alpha > 0
        so_labelled = f"{is_seen.float().mean():.1%}"
        table.add_row(*figures(name, alpha, faces.names, before[chosen], after, so_labelled))
    return table


def figures(
    name: str, alpha: float, names: list[str], before: Tensor, after: Tensor, so_labelled: str
) -> list[str]:
    """Cells of a row, from the logits (N, A) of faces before and after an edit of `name`."""
    column = names.index(name)
    countable = before[:, column] * alpha < 0
    changed = (after[countable, column] * alpha > 0).float().mean()
    cells = [name, f"{alpha:+.1f}", str(int(countable.sum())), f"{changed:.1%}"]
    cells.append(so_labelled)
    for watched in WATCHED:
        k = names.index(watched)
        sure = before[:, k].abs() > SURE
        flips = (before[sure, k] > 0) != (after[sure, k] > 0)
        cells.append("" if watched == name else f"{flips.float().mean():.1%} of {int(sure.sum())}")
    return cells


def held_out(bundle: Bundle, faces: Faces, labels: Labels) -> LabelledFaces:
    """The held-out faces that have every label."""
    values = labels.rows_for([faces.stems[row] for row in faces.held_out])
    known = ~np.isnan(values).any(1)
    images = torch.cat(list(batches_of(faces, faces.held_out[known], CPU)))
    latents, _ = posteriors(bundle.vae, images.split(128))
    return LabelledFaces(images, latents, values[known], labels.names)


def of_photos(bundle: Bundle, folder: Path, labels: Labels, names: list[str]) -> LabelledFaces:
    """Faces of photos, framed like the model's, with the known labels of the attributes `names`."""
    files = find_files([folder], SUFFIXES)
    opened = [(path.name, Picture(path).open) for path in files]
    found = list(load_faces_of(opened, bundle.config.size, bundle.framing))
    values = np.full((len(files), len(names)), np.nan, np.float32)
    marks = labels.rows_for([path.stem for path in files])
    for column, name in enumerate(labels.names):
        known_as = CELEBA_NAMES.get(name, name)
        if name not in labels.continuous and known_as in names:
            values[:, names.index(known_as)] = marks[:, column]
    known = ~np.isnan(marks).any(1) & [not isinstance(one, ImageError) for one in found]
    images = from_pixels(torch.from_numpy(np.stack([found[row] for row in np.flatnonzero(known)])))
    latents, _ = posteriors(bundle.vae, images.split(128))
    return LabelledFaces(images, latents, values[known], names)


def accuracies(classifier: Classifier, faces: LabelledFaces) -> str:
    """The classifier's balanced accuracy on real faces, for each attribute."""
    found = classifier.look(faces.images) > 0
    parts = []
    for name in faces.edited:
        has = torch.from_numpy(faces.values[:, faces.names.index(name)] > 0)
        right = (found[:, faces.names.index(name)] == has).float()
        parts.append(f"{name} {(right[has].mean() + right[~has].mean()) / 2:.1%}")
    return f"classifier, balanced accuracy on {len(found)} such real faces: {', '.join(parts)}\n"


def trained(labels: Labels, arguments: argparse.Namespace) -> Classifier:
    """The classifier: loaded if its file exists, else trained, and saved if a file is named."""
    path = arguments.classifier
    if path and path.exists():
        classifier = Classifier(Network(len(labels.names)) for _ in range(arguments.networks))
        classifier.load_state_dict(torch.load(path, weights_only=True))
        return classifier.eval()
    faces = load_faces([arguments.data], SIZE)
    classifier = Classifier(
        train_network(faces, labels, arguments.epochs, seed) for seed in range(arguments.networks)
    )
    if path:
        torch.save(classifier.state_dict(), path)
    return classifier.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--classifier", type=Path, help="file to load it from, or to save it to")
    parser.add_argument("--alpha", type=float, default=1.5)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--tuned", type=int, metavar="N")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--photo-labels", type=Path)
    arguments = parser.parse_args()

    labels = read_labels(arguments.labels)
    classifier = trained(labels, arguments)
    bundle, _ = load_model(arguments.model)
    faces = load_faces([arguments.data], bundle.config.size)
    examples = examples_of_faces(bundle, faces, labels)
    if examples is None:
        parser.error("none of the faces has a label")
    unrefined = replace(bundle)
    started = time.perf_counter()
    learned = add_attributes(unrefined, examples)
    sys.stdout.write(
        f"{len(learned)} attributes learned from {len(examples.values):,} encoded faces in "
        f"{time.perf_counter() - started:.2f} s on {torch.get_num_threads()} threads\n"
    )
    if not {attribute.name for attribute in bundle.attributes}.issuperset(learned):
        bundle = unrefined
    if arguments.photos:
        known = read_labels(arguments.photo_labels)
        test_faces = of_photos(bundle, arguments.photos, known, labels.names)
    else:
        test_faces = held_out(bundle, faces, labels)
    sys.stdout.write(accuracies(classifier, test_faces))
    if arguments.tuned:
        test_faces = test_faces.some(arguments.tuned)
    ways = {"facevae arith --no-tune": as_arith(bundle)}
    if arguments.compare:
        ways |= {"not corrected": uncorrected(bundle), "not refined": as_arith(unrefined)}
        ways |= other_ways(unrefined, examples)
    seen = {
        title: look(way, bundle, classifier, test_faces, arguments.alpha)
        for title, way in ways.items()
    }
    if arguments.tuned:
        seen["facevae arith"] = look_tuned(bundle, classifier, test_faces, arguments.alpha)
    for title, what in seen.items():
        table = judged(what, test_faces, arguments.alpha)
        table.title = title
        Console(width=132).print(table)


if __name__ == "__main__":
    main()
