"""`train`, run in separate processes: start, stop, resume, extend, errors."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_face
from one_process import refusals
from PIL import Image
from tiny import differing, tensors_of, tiny_bundle

from facevae.config import ModelConfig
from facevae.models.bundle import load, save
from facevae.training.run_folders import read_metrics

TINY = ("--size", "32", "--latent-dim", "4", "--batch-size", "16")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with `faces/` and `labels.csv`, and a stand-in that hides matplotlib."""
    root = tmp_path_factory.mktemp("train")
    (root / "faces").mkdir()
    for i in range(40):
        draw_face(i, 40, glasses=i % 2 == 0).save(root / "faces" / f"{i:03}.png")
    rows = "".join(f"{i:03}.png,{int(i % 2 == 0)},{i},{'ab'[i % 2]}\n" for i in range(40))
    (root / "labels.csv").write_text("name,Eyeglasses,Age,Note\n" + rows)
    # importing matplotlib takes seconds; without it everything but the plots is the same
    (root / "no-plots" / "matplotlib").mkdir(parents=True)
    (root / "no-plots" / "matplotlib" / "__init__.py").write_text("raise ImportError\n")
    return root


def started(place: Path, *arguments: object, plots: bool = False) -> subprocess.Popen:
    inherited = os.environ.get("PYTHONPATH", "")
    path = (
        inherited if plots else os.pathsep.join(filter(None, (str(place / "no-plots"), inherited)))
    )
    return subprocess.Popen(
        [sys.executable, "-m", "facevae", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=place,
        env={
            **os.environ,
            "FACEVAE_CACHE": str(place / "cache"),
            "PYTHONPATH": path,
            "COLUMNS": "100",
        },
    )


def trained(place, *arguments, code: int = 0, plots: bool = False) -> subprocess.CompletedProcess:
    with started(place, *arguments, plots=plots) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return subprocess.CompletedProcess(process.args, code, out, err)


@pytest.fixture(scope="module")
def first(place):
    """The completed process of one training with labels and a flow."""
    return trained(
        place,
        *("faces", *TINY, "--epochs", 2, "--prior-epochs", 1),
        *("--labels", "labels.csv", "--terms", "for tests", "--json"),
        plots=True,
    )


# ---------------------------------------------------------------- start


def test_a_run_leaves_a_model_its_figures_and_pictures_in_the_default_folder(place, first):
    values = json.loads(first.stdout)
    folder = place / "runs" / "faces-base"
    assert values["model"]["path"] == "runs/faces-base/model.safetensors"
    assert values["outputs"] == ["runs/faces-base/model.safetensors"]
    assert values["epochs"] == 2
    bundle = load(folder / "model.safetensors")
    assert (bundle.config.size, bundle.config.latent_dim) == (32, 4)
    assert bundle.prior_config.kind == "flow"
    assert [a.name for a in bundle.attributes] == ["Eyeglasses", "Age"]
    assert [a.continuous for a in bundle.attributes] == [False, True]
    assert bundle.provenance["terms"] == "for tests"
    assert bundle.provenance["figures"] == values["figures"]
    kept = json.loads((folder / "config.json").read_text())
    assert kept["num_train"] < 40
    assert kept["command"].startswith("facevae train faces --size 32 --latent-dim 4 ")
    assert "--terms 'for tests' --json" in kept["command"]
    assert kept["environment"]["device"] == "cpu"
    epochs = [r for r in read_metrics(folder / "metrics.jsonl") if r["event"] == "epoch"]
    assert epochs[-1]["psnr"] == values["figures"]["psnr"]
    names = {path.name for path in (folder / "pictures").iterdir()}
    pytest.importorskip("matplotlib")
    assert {"curves.png", "latents.png", "samples.png", epochs[-1]["samples"]} <= names


def test_a_run_prints_its_faces_epochs_figures_and_advice(first):
    values = json.loads(first.stdout)
    assert re.search(r"\d+ faces to train on, \d+ held out, at 32 × 32 px", first.stderr)
    assert "epoch 2: " in first.stderr
    assert f"held-out PSNR {values['figures']['psnr']:.2f} dB" in first.stderr
    assert "40 faces are labelled" in first.stderr
    assert re.search(r"left out: Note$", first.stderr, re.MULTILINE)
    assert "facevae sample --model runs/faces-base" in first.stderr
    assert "pip install" not in first.stderr


def test_a_finished_run_is_not_trained_again_with_other_free_options(place, first):
    assert first.returncode == 0
    folder = place / "runs" / "faces-base"
    before = [(folder / name).read_bytes() for name in ("model.safetensors", "config.json")]
    more = ("--tensorboard",) if find_spec("tensorboardX") else ()
    again = trained(
        place,
        *("faces", *TINY, "--epochs", 2, "--prior-epochs", 1, "--labels", "labels.csv"),
        *("--device", "cpu", "--cache-dir", "another-cache", *more),
    )
    assert again.stdout == "runs/faces-base/model.safetensors\n"
    assert "finished already" in again.stderr
    assert again.stderr.count("pip install") == 1, "without matplotlib it says so, once"
    after = [(folder / name).read_bytes() for name in ("model.safetensors", "config.json")]
    assert after == before
    assert len(list(folder.glob("tensorboard/events.out.tfevents.*"))) == len(more)


@pytest.mark.usefixtures("first")
def test_terms_and_half_precision_of_a_finished_run_can_be_changed(place, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(place / "runs" / "faces-base", folder)
    command = ("faces", *TINY, "--epochs", 2, "--prior-epochs", 1, "-o", folder)
    before = load(folder / "model.safetensors")
    done = trained(place, *command, "--half", "--terms", "others")
    assert "finished already, at epoch 2; its model is written anew" in done.stderr
    after = load(folder / "model.safetensors")
    assert (before.half, before.provenance["terms"]) == (False, "for tests")
    assert (after.half, after.provenance["terms"]) == (True, "others")
    assert after.provenance["complete"]
    assert "nothing to do" in trained(place, *command, "--half").stderr


@pytest.mark.usefixtures("first")
def test_a_finished_run_without_its_state_is_not_restarted(place, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(place / "runs" / "faces-base", folder)
    shutil.rmtree(folder / "state")
    before = (folder / "model.safetensors").read_bytes()
    command = ("faces", *TINY, "--prior-epochs", 1, "-o", folder)
    assert "nothing to do" in trained(place, *command, "--epochs", 2).stderr
    refused = trained(place, *command, "--epochs", 3, code=1)
    assert "its state/ is gone" in refused.stderr
    assert (folder / "model.safetensors").read_bytes() == before


def test_constant_labels_are_refused_or_named(place):
    rows = "".join(f"{i:03}.png,1,{i % 2}\n" for i in range(40))
    (place / "same.csv").write_text("name,Same,Odd\n" + rows)
    (place / "alike.csv").write_text("name,Same\n" + "".join(f"{i:03}.png,1\n" for i in range(40)))
    command = ("faces", *TINY, "--epochs", 1, "--prior", "gaussian", "-o", "runs/same")
    refused = trained(place, *command, "--labels", "alike.csv", code=1)
    assert "nothing to learn" in refused.stderr
    done = trained(place, *command, "--labels", "same.csv")
    assert "not learned, since all training faces have the same value: Same" in done.stderr
    known = load(place / "runs" / "same" / "model.safetensors").attributes
    assert [attribute.name for attribute in known] == ["Odd"]


def test_another_configuration_in_the_folder_is_refused(place, first):
    assert first.returncode == 0
    refused = trained(place, *("faces", *TINY[:-1], 8, "--epochs", 2, "--prior-epochs", 1), code=1)
    assert refused.stdout == ""
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("error: runs/faces-base: ")
    assert "holds another run: --batch-size was 16, now 8; name another folder" in last


def test_the_trained_model_serves_the_other_commands(place, first, facevae, tmp_path):
    assert first.returncode == 0
    model = place / "runs" / "faces-base"
    photo = place / "faces" / "001.png"
    done = facevae("arith", photo, "--attr", "glasses", "-m", model, "-o", "edited.png")
    assert done.stdout == "edited.png\n"
    with Image.open(tmp_path / "edited.png") as picture:
        assert picture.size == (32, 32)


# ---------------------------------------------------------------- stop and resume


def wait_for_steps(process: subprocess.Popen, metrics: Path) -> None:
    """Wait until the run has recorded new steps in `metrics`."""
    before, begun = metrics.stat().st_size if metrics.exists() else 0, time.monotonic()
    while not metrics.exists() or metrics.stat().st_size <= before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < 120
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupted_run_ends_as_one_that_never_was(place):
    command = ("faces", *TINY, "--epochs", 30, "--prior", "gaussian", "-o")
    folder = place / "stopped"
    for number, code in (
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGKILL, -signal.SIGKILL),
    ):
        with started(place, *command, "stopped") as process:
            wait_for_steps(process, folder / "metrics.jsonl")
            time.sleep(random.uniform(0, 0.3))
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert out == ""
        assert "Traceback" not in err
        if number != signal.SIGKILL:
            assert err.splitlines()[-1].startswith("stopped and saved in stopped")
        assert load(folder / "model.safetensors").provenance.get("complete") is None
    done = trained(place, *command, "stopped")
    assert "going on with the network after step" in done.stderr
    trained(place, *command, "whole")

    bundles = [load(place / name / "model.safetensors") for name in ("stopped", "whole")]
    assert differing(*map(tensors_of, bundles)) == []
    records = [read_metrics(place / name / "metrics.jsonl") for name in ("stopped", "whole")]
    epochs = [{r["step"]: r["psnr"] for r in part if r["event"] == "epoch"} for part in records]
    both = (
        epochs[0].keys() & epochs[1].keys()
    )  # which epochs in between are recorded depends on time
    assert both >= {min(epochs[1]), max(epochs[1])}
    assert [epochs[0][step] for step in both] == [epochs[1][step] for step in both]
    places = [(r["event"], r["step"]) for r in records[0]]
    assert len(places) == len(set(places))


# ---------------------------------------------------------------- odd data


def test_odd_pictures_are_trained_on_and_unreadable_ones_are_left_out_and_counted(place):
    folder = place / "odd" / "deep" / "er"
    folder.mkdir(parents=True)
    face = draw_face(1, 60)
    grey = np.asarray(face.convert("L")).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    Image.fromarray(grey).save(folder / "sixteen.png")
    face.convert("CMYK").save(folder / "cmyk.jpg")
    face.convert("P").save(folder / "palette.png")
    face.convert("L").save(folder / "grey.JPG")
    face.convert("RGBA").save(folder / "alpha.webp")
    face.convert("1").save(folder / "bits.tif")
    face.save(folder / "turned.jpg", exif=exif)
    face.save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:-200])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("not even a name of a picture")
    done = trained(
        place, *("odd", *TINY, "--epochs", 1, "--prior", "normal", "--preset", "paper"), "--quiet"
    )
    assert done.stdout == "runs/odd-paper/model.safetensors\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: 3 pictures cannot be read")
    kept = json.loads((place / "runs" / "odd-paper" / "config.json").read_text())
    assert kept["num_train"] + kept["num_held_out"] == 8
    named = "\n".join(kept["skipped"])
    assert len(kept["skipped"]) == 3
    assert all(name in named for name in ("cut.png", "text.png", "empty.jpg"))


# ---------------------------------------------------------------- errors and dry runs


def test_a_dry_run_prints_an_estimate_and_writes_nothing(place):
    before = set(place.rglob("*"))
    done = trained(place, "faces", *TINY, "--dry-run", "--json", "--cache-dir", "dry", "-o", "dry")
    values = json.loads(done.stdout)
    assert values["dry_run"] is True
    assert values["num_pictures"] == 40
    assert values["cache_bytes"] == 40 * 3 * 32 * 32
    for key in ("convert_seconds", "train_seconds", "prior_seconds", "memory_bytes", "run_bytes"):
        assert values[key] > 0
    assert set(place.rglob("*")) == before


def test_a_dry_run_refuses_labels_of_other_faces(place):
    (place / "others.csv").write_text("name,Smiling\nanna,1\nbert,0\n")
    done = trained(place, "faces", *TINY, "--dry-run", "--labels", "others.csv", code=1)
    assert "--labels: none belongs to a face" in done.stderr
    assert "labels like 'anna'" in done.stderr


def test_a_dry_run_warns_of_too_little_memory(faces_folder, here, monkeypatch):
    command = ("train", faces_folder, *TINY, "--stages", "vae", "--dry-run")
    assert "lower --batch-size" not in here(*command).stdout
    monkeypatch.setattr("facevae.system.memory.total_bytes", lambda _: 50_000_000)
    assert re.search(
        r"GB, of 0\.1 GB in all; lower --batch-size$", here(*command).stdout, re.MULTILINE
    )


def test_a_dry_run_estimates_the_chosen_stages(place):
    options = [*("--stages", "vae,finish"), *("--max-time", "1m30s")]
    values = json.loads(trained(place, "faces", *TINY, *options, "--dry-run", "--json").stdout)
    assert values["prior_seconds"] == 0
    assert values["train_seconds"] + values["finish_seconds"] == pytest.approx(90)
    assert values["epochs"] > 1
    assert values["finish_images_per_second"] > 0
    told = trained(place, "faces", *TINY, *options, "--dry-run").stdout
    assert "finish: " in told
    assert "prior: " not in told


def refused(place, commands):
    """Exit code and stderr of each `train`; a refused one says nothing on stdout."""
    named = [["train", *command, "-o", "never"] for command in commands]
    found = refusals(place, named)
    assert [done.out for done in found if done.out and done.code] == []
    return [(done.code, done.err) for done in found]


def test_invalid_input_is_refused_in_one_line_and_leaves_nothing(place):
    (place / "void").mkdir()
    save(tiny_bundle(), place / "tiny.safetensors")
    expected = {
        ("nowhere",): (1, "nowhere: no such file"),
        ("void",): (1, "no pictures"),
        ("faces", "--labels", "nowhere.csv"): (1, "nowhere.csv"),
        ("faces", "--stages", "finish"): (1, "never: holds nothing to go on from"),
        ("faces", "--preset", "vast"): (2, "--preset vast"),
        ("faces", "--init", "nowhere"): (1, "nowhere: no such model"),
        ("faces", "--init", "tiny.safetensors", "--size", "64"): (2, "the --init model has 32"),
        **{
            ("faces", "--init", "tiny.safetensors", "--stages", "prior", option, "0.1"): (
                2,
                f"{option} 0.1: the --init model's network stays as it is",
            )
            for option in ("--learning-rate", "--r-loss-factor")
        },
    }
    found = refused(place, [list(arguments) for arguments in expected])
    for (code, err), (expected_code, said) in zip(found, expected.values(), strict=True):
        assert code == expected_code, err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert said in err


def test_a_file_as_run_folder_is_refused_before_any_work(place):
    refused = trained(place, "faces", *TINY, "-o", "labels.csv", "--cache-dir", "unused", code=1)
    assert refused.stderr.startswith("error: labels.csv: is a file")
    assert not (place / "unused").exists()


def test_invalid_settings_are_usage_errors(place):
    bad = [
        ["--size", "100"],
        ["--size", "512"],
        ["--epochs", "0"],
        ["--batch-size", "0"],
        ["--learning-rate", "0"],
        ["--learning-rate", "nan"],
        ["--latent-dim", "0"],
        ["--latent-dim", "1000000"],
        ["--r-loss-factor", "much"],
        ["--r-loss-factor", "-1"],
        ["--r-loss-factor", ""],
        ["--dropout", "1"],
        ["--prior", "vamp"],
        ["--prior-epochs", "0"],
        ["--prior-epochs", "2", "--prior", "gaussian"],
        ["--stages", "vae,gan"],
        ["--stages", ""],
        ["--max-time", "8"],
        ["--max-time", "0s"],
        ["--max-time", "8m", "--epochs", "2"],
        ["--max-time", "8m", "--finish-epochs", "2", "--stages", "vae,finish"],
        ["--finish-epochs", "0"],
        ["--finish-epochs", "2", "--stages", "vae"],
        ["--finish-weight", "-1"],
        ["--perceptual"],  # of a preset without a finish
        ["--finish-weight", "2"],
        ["--seed", "-1"],
        ["--device", "abacus"],
    ]
    # a dry run, so that one that slips through does not train
    found = refused(place, [["faces", *TINY, "--dry-run", *arguments] for arguments in bad])
    slipped = [arguments for arguments, (code, _) in zip(bad, found, strict=True) if code != 2]
    assert slipped == []
    for arguments, (_, err) in zip(bad, found, strict=True):
        assert arguments[0] in err
        assert "Traceback" not in err


def test_init_takes_the_network_of_the_named_model(place):
    init = tiny_bundle(ModelConfig(32, 6, (8, 16)))
    save(init, place / "init.safetensors")
    done = trained(
        place,
        *("faces", "--init", "init.safetensors", "--learning-rate", "1e-30", "--epochs", 1),
        *("--batch-size", 16, "--prior", "normal", "--preset", "paper", "-o", "gone-on", "--half"),
    )
    assert "preset paper, from init.safetensors; run folder gone-on" in done.stderr
    bundle = load(place / "gone-on" / "model.safetensors")
    assert bundle.config == init.config
    expected = init.vae.encoder.mean.weight.half().float()
    assert bundle.vae.encoder.mean.weight.equal(expected)


def test_labels_of_other_pictures_are_refused_before_the_training(tmp_path, faces_folder, facevae):
    (tmp_path / "others.csv").write_text("name,Eyeglasses\nqqq.png,1\nrrr.png,0\n")
    done = facevae(
        *("train", faces_folder, "--size", 32, "--labels", "others.csv", "-o", "run"), code=1
    )
    assert "faces are named like '0" in done.stderr
    assert "labels like 'qqq'" in done.stderr
    assert not (tmp_path / "run").exists()
