import dataclasses
import json
import shutil

import pytest
import torch
from conftest import draw_face
from test_page import check_page
from tiny import CONFIG, TRAIN, Ear, tiny_bundle, tiny_run

from facevae.data.dataset import load_faces
from facevae.data.label_files import read_labels
from facevae.errors import FacevaeError, ModelError
from facevae.models.bundle import load, save
from facevae.reports import report
from facevae.reports.report import write_report
from facevae.reports.sources import _time_budget, open_source
from facevae.training.training import train

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

CPU = torch.device("cpu")
ALL = (
    "Samples",
    "Reconstructions",
    "Training",
    "Latents",
    "Attributes",
    "Morph",
    "Configuration",
    "Provenance",
    "Reproduce",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the finished run `run` on labelled faces, and their cache."""
    root = tmp_path_factory.mktemp("report")
    (root / "faces").mkdir()
    for i in range(48):
        draw_face(i, CONFIG.size, glasses=i % 2 == 0).save(root / "faces" / f"{i:03}.png")
    rows = "".join(f"{i:03}.png,{int(i % 2 == 0)}\n" for i in range(48))
    (root / "labels.csv").write_text("name,Eyeglasses\n" + rows)
    faces = load_faces([root / "faces"], CONFIG.size, cache=root / "cache")
    labels = read_labels(root / "labels.csv")
    run = tiny_run(root / "run", faces, train=TRAIN, labels=labels)
    typed = "facevae train 'my faces' --epochs 2"
    train(dataclasses.replace(run, command=typed, terms="for <tests> only"), Ear())
    return root


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Show fewer faces, to save time."""
    monkeypatch.setattr(report, "_NUM_SAMPLES", 4)
    monkeypatch.setattr(report, "_NUM_GENERATED", 40)
    monkeypatch.setattr(report.latent_plots, "NUM_HISTOGRAMS", 2)


def reported(name, path, cache):
    write_report(open_source(str(name), CPU, cache), path)
    return check_page(path.read_text("utf-8"))


def sections(reader) -> list[str]:
    return [name for name in ALL if f"#{name.casefold()}" in reader.addresses]


def test_a_finished_run_has_all_sections(place, tmp_path):
    progress = []
    source = open_source(str(place / "run"), CPU, place / "cache")
    write_report(source, tmp_path / "page.html", lambda *call: progress.append(call))
    reader = check_page((tmp_path / "page.html").read_text("utf-8"))
    assert sections(reader) == list(ALL)
    figures = load(place / "run" / "model.safetensors").provenance["figures"]
    for text in (
        f"{figures['psnr']:.2f} dB",
        "finished, 2 epochs",
        "Eyeglasses",
        "for <tests> only",
        "facevae train 'my faces' --epochs 2",
        f"Of {len(source.faces.held_out)} held-out faces",
        torch.__version__,
        "This page holds pictures of the training data",
    ):
        assert text in reader.words, text
    assert progress[-1] == ("Drawing", len(ALL), len(ALL))


def test_without_the_data_latents_of_generated_faces_are_shown(place, tmp_path):
    reader = reported(place / "run", tmp_path / "page.html", tmp_path / "another-cache")
    assert "Of 40 generated faces" in reader.words
    assert "held-out faces: on the map" not in reader.words
    # the run's pictures of reconstructions still show the data
    assert "This page holds pictures of the training data" in reader.words


def test_a_model_alone_has_the_sections_it_has_data_for(tmp_path):
    bundle = tiny_bundle()
    bundle.provenance |= {"preset": "paper", "sources": ["my faces"], "train": TRAIN.to_dict()}
    save(bundle, tmp_path / "model.safetensors")
    reader = reported(tmp_path / "model.safetensors", tmp_path / "page.html", tmp_path)
    assert sections(reader) == [name for name in ALL if name not in ("Reconstructions", "Training")]
    assert "This page holds pictures of the training data" not in reader.words
    command = next(line for line in reader.words.splitlines() if "facevae train" in line)
    for part in ("'my faces'", "--preset paper", "--size 32", "--r-loss-factor auto", "--epochs 3"):
        assert part in command
    assert "--terms 'for tests'" in command


@pytest.mark.parametrize("left", ["epochs", "steps", "beginning", "config"])
def test_an_unfinished_run_is_shown_as_far_as_it_got(place, tmp_path, left):
    folder = tmp_path / "run"
    shutil.copytree(place / "run", folder)
    (folder / "model.safetensors").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = {"epochs": lines[:-1], "steps": lines[:1], "beginning": [], "config": []}[left]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    if left == "config":
        (folder / "metrics.jsonl").unlink()
    reader = reported(folder, tmp_path / "page.html", place / "cache")
    number = sum(json.loads(line)["event"] == "epoch" for line in kept)
    assert f"not finished, {number} of 2 epochs" in reader.words
    expected = {"Configuration", "Provenance", "Reproduce"}
    expected |= {"Training"} if kept else set()
    expected |= {"Samples", "Reconstructions"} if number else set()
    assert set(sections(reader)) == expected


@pytest.mark.parametrize("is_complete", [True, False])
def test_the_finish_is_shown(place, tmp_path, is_complete):
    folder = tmp_path / "run"
    shutil.copytree(place / "run", folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = next(r for r in map(json.loads, reversed(lines)) if r["event"] == "epoch")
    losses = {
        "generator_loss": 0.7,
        "discriminator_loss": 1.4,
        "projected_loss": 1.2,
        "feature_loss": 0.2,
        "mse": 0.01,
    }
    lines.append(json.dumps({**last, "event": "finish", **losses}))
    lines.append(json.dumps({**last, "stage": "finish", "epoch": 3}))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    bundle = load(folder / "model.safetensors")
    bundle.provenance |= {"finish": {"epochs": 3}, "complete": is_complete}
    save(bundle, folder / "model.safetensors")
    reader = reported(folder, tmp_path / "page.html", tmp_path)
    expected = "finished, 2 epochs and 3 of the finish"
    assert (expected if is_complete else "not finished, 3 epochs, in the finish") in reader.words
    assert "epochs of the finish" in reader.words


def test_a_command_with_time_and_stages_is_reconstructed(tmp_path):
    bundle = tiny_bundle(dataclasses.replace(CONFIG, residual_blocks=1))
    changed = {"max_seconds": 90.0, "stages": ["vae", "finish"], "finish_weight": 3.0}
    settings = TRAIN.to_dict() | changed
    bundle.provenance |= {"preset": "compact", "train": settings}
    save(bundle, tmp_path / "m.safetensors")
    command = open_source(str(tmp_path / "m.safetensors"), CPU).equivalent_command()
    for part in ("--max-time 90s", "--stages vae,finish", "--finish-weight 3.0"):
        assert part in command
    for option in ("--epochs", "--prior-epochs", "--finish-epochs"):
        assert f"{option} " not in command


def test_a_run_without_its_pictures_has_its_curves(place, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(place / "run", folder)
    shutil.rmtree(folder / "pictures")
    reader = reported(folder, tmp_path / "page.html", tmp_path)
    assert "Training" in sections(reader)
    assert "Reconstructions" not in sections(reader)


def test_damaged_pictures_are_left_out_with_a_reason(place, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(place / "run", folder)
    for picture in (folder / "pictures").glob("*.png"):
        picture.write_bytes(picture.read_bytes()[:100])
    reader = reported(folder, tmp_path / "page.html", tmp_path)
    assert sections(reader) == list(ALL)
    assert "A picture is left out: reconstructions-0002.png: damaged picture" in reader.words
    (folder / "model.safetensors").unlink()
    reader = reported(folder, tmp_path / "page.html", tmp_path)
    assert "A picture is left out: samples-0002.png: damaged picture" in reader.words


def test_the_records_of_a_run_show_no_picture_of_another_folder(place, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(place / "run", folder)
    (folder / "model.safetensors").unlink()
    (folder / "pictures").rename(tmp_path / "private")
    (folder / "pictures").mkdir()
    text = (folder / "metrics.jsonl").read_text()
    for lead in ("../../private/", f"{tmp_path}/private/"):
        hostile = text.replace('"samples-', f'"{lead}samples-')
        (folder / "metrics.jsonl").write_text(
            hostile.replace('"reconstructions-', f'"{lead}reconstructions-')
        )
        reader = reported(folder, tmp_path / "page.html", tmp_path)
        assert not {"Samples", "Reconstructions"} & set(sections(reader))


@pytest.mark.parametrize("dims", [1, 2])
def test_latents_of_one_or_two_dimensions_have_a_map(tmp_path, dims):
    save(tiny_bundle(dataclasses.replace(CONFIG, latent_dim=dims)), tmp_path / "m.safetensors")
    reader = reported(tmp_path / "m.safetensors", tmp_path / "page.html", tmp_path)
    assert "Latents" in sections(reader)


def test_provenance_of_unexpected_types_is_no_error(tmp_path):
    bundle = tiny_bundle()
    bundle.provenance = {
        "figures": ["<b>"],
        "sources": "<b>",
        "preset": ["<i>"],
        "train": {"seed": None, "stages": 3, "max_seconds": "long"},
        "finish": {"epochs": "<u>"},
        "terms": 7,
        "epochs": "<u>",
        "fingerprint": {"a": 1},
        "skipped": 3,
        "complete": 1,
    }
    save(bundle, tmp_path / "m.safetensors")
    reader = reported(tmp_path / "m.safetensors", tmp_path / "page.html", tmp_path)
    assert not reader.tags & {"b", "i", "u"}


def test_no_command_is_given_for_settings_without_options(tmp_path):
    bundle = tiny_bundle()
    bundle.provenance |= {"preset": "ae", "train": TRAIN.to_dict()}
    save(bundle, tmp_path / "m.safetensors")
    assert open_source(str(tmp_path / "m.safetensors"), CPU).equivalent_command() == ""


def test_a_folder_that_is_neither_run_nor_model_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="no model"):
        open_source(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text('{"model_type": "another tool\'s"}')
    with pytest.raises(ModelError, match="no model"):
        open_source(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FacevaeError, match=r"config\.json"):
        open_source(str(tmp_path), CPU)


def test_a_damaged_cache_is_ignored(place, tmp_path):
    shutil.copytree(place / "cache", tmp_path / "cache")
    (pixels,) = (tmp_path / "cache").rglob("pixels.npy")
    pixels.write_bytes(pixels.read_bytes()[:1000])
    assert open_source(str(place / "run"), CPU, place / "cache").faces is not None
    assert open_source(str(place / "run"), CPU, tmp_path / "cache").faces is None


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({"vae": 60.0, "prior": 10.0, "finish": 20.0}, 90.0),
        ({"vae": None, "prior": 10.0}, None),
        ({}, 5.0),
    ],
)
def test_the_time_budget_is_the_sum_over_stages_trained_one_by_one(seconds, wanted):
    assert _time_budget({"stage_seconds": seconds}, {"max_seconds": 5.0}) == wanted
