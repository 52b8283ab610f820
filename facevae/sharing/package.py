"""Contents of a model's repository: the model, its configuration, its card, and sample pictures."""

import shutil
from pathlib import Path
from typing import Any

import torch

from facevae.config import TRUE_TEXTURE, WHOLE_TEXTURE
from facevae.data.image_tensors import to_pixels
from facevae.data.images import Pixels, grid, save_picture
from facevae.errors import UsageError
from facevae.latent_space.edits import edit_faces, plan_edit
from facevae.latent_space.latents import decode, latents_of_seeds, morph
from facevae.models.bundle import Bundle
from facevae.models.formats import FORMAT
from facevae.models.hub import CONFIG_FILE, MODEL_FILE
from facevae.sharing.card import (
    ALPHAS,
    ATTRIBUTES,
    CARD,
    LIBRARY,
    LICENSE,
    MORPH,
    NUM_MORPHED,
    NUM_SAMPLES,
    SAMPLES,
    Licence,
    shown_attributes,
    write_card,
)
from facevae.system.files import read_json, replacing, write_json, write_text


def write_package(
    bundle: Bundle, model_file: Path, repository: str, licence: Licence, folder: Path
) -> list[str]:
    """Write the contents of a model's repository into `folder`; returns the files' names.

    They are a copy of `model_file`, `config.json`, the card, `LICENSE` if the terms are not a
    published licence, and pictures, all of generated faces: none shows a real person.
    """
    pictures, seeds = draw_pictures(bundle)
    for name, pixels in pictures.items():
        save_picture(folder / name, pixels)
    with replacing(folder / MODEL_FILE) as temporary:
        shutil.copyfile(model_file, temporary)
    write_json(folder / CONFIG_FILE, configuration(bundle))
    write_text(folder / CARD, write_card(bundle, repository, licence, seeds))
    names = [MODEL_FILE, CONFIG_FILE, CARD, *pictures]
    if licence.is_in_words:
        write_text(folder / LICENSE, f"Terms of the model in this repository:\n\n{licence.terms}\n")
        names.append(LICENSE)
    for name in {LICENSE, ATTRIBUTES}.difference(names):
        (folder / name).unlink(missing_ok=True)  # left by an earlier model
    return names


def check_folder(folder: Path, model_file: Path) -> None:
    """Raise `UsageError` unless `folder` is new, empty, or holds an earlier package."""
    if not folder.exists():
        return
    if not folder.is_dir():
        msg = f"{folder}: is a file; name a folder with -o"
        raise UsageError(msg)
    config = folder / CONFIG_FILE
    is_earlier = config.is_file() and is_configuration(read_json(config))
    is_source = (folder / MODEL_FILE).resolve() == model_file.resolve()
    if is_source or (any(folder.iterdir()) and not is_earlier):
        msg = f"{folder}: holds other files, which would be mixed up or replaced; name another -o"
        raise UsageError(msg)


def configuration(bundle: Bundle) -> dict[str, Any]:
    """Content of `config.json`: the model file's metadata. The Hub counts downloads by this file."""
    return {"library_name": LIBRARY, "format": FORMAT, **bundle.describe()}


def is_configuration(values: object) -> bool:
    """Whether `values` is what `configuration` returns."""
    return isinstance(values, dict) and values.get("library_name") == LIBRARY


def draw_pictures(bundle: Bundle) -> tuple[dict[str, Pixels], list[int]]:
    """Pictures by file name, and the two seeds shown in them.

    The pictures are a grid of the first seeds; a morph between the two of them that are nearest the
    average face; and, if the model knows attributes, edits of the nearest.
    """

    def sheet(latents: torch.Tensor, columns: int, texture: float = TRUE_TEXTURE) -> Pixels:
        return grid(to_pixels(decode(bundle.vae, latents, texture)), columns)

    faces = latents_of_seeds(bundle, list(range(NUM_SAMPLES)))
    distances = ((faces - bundle.latent_mean) / bundle.latent_spread).norm(dim=1)
    seeds = distances.argsort(stable=True)[:2].tolist()
    pictures = {
        SAMPLES: sheet(faces, 8, WHOLE_TEXTURE),
        MORPH: sheet(morph(bundle, faces[seeds], NUM_MORPHED), NUM_MORPHED),
    }
    if bundle.directions is not None:
        alphas = torch.tensor(ALPHAS, device=bundle.device)[:, None]
        names = [bundle.attributes[i].name for i in shown_attributes(bundle)]
        repeated = faces[seeds[:1]].repeat(len(alphas), 1)
        swept = [edit_faces(bundle, plan_edit(bundle, [name]), repeated, alphas) for name in names]
        pictures[ATTRIBUTES] = sheet(torch.cat(swept), len(ALPHAS))
    return pictures, seeds
