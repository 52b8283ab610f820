"""`eval`: tables, JSON, pictures, baselines and errors."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Command, draw_face
from PIL import Image
from tiny import tiny_bundle

from facevae.charts.plots import is_available
from facevae.cli import main
from facevae.models.bundle import save

TINY = [
    "--size",
    "32",
    "--epochs",
    "2",
    "--prior-epochs",
    "5",
    "--latent-dim",
    "4",
    "--batch-size",
    "16",
    "-o",
    "run",
    "-q",
]
PICTURES = ["reconstructions", "samples", "interpolations", "neighbours"]


@dataclass
class Done:
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`faces/`, `run/` trained on them, `others/`, and `tiny.safetensors`, trained on neither."""
    root = tmp_path_factory.mktemp("eval")
    for folder, first in (("faces", 0), ("others", 100)):
        (root / folder).mkdir()
        for i in range(first, first + 48):
            draw_face(i, 40).save(root / folder / f"{i:03}.png")
    save(tiny_bundle(), root / "tiny.safetensors")
    command(root, "train", "faces", *TINY)
    return root


def command(place: Path, *arguments: object, code: int = 0, plots: bool = False) -> Done:
    """Run the command line in this process, since a new process takes seconds to start."""
    out, err = io.StringIO(), io.StringIO()
    settings = {"FACEVAE_CACHE": str(place / "cache"), "COLUMNS": "100"}
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["facevae", *map(str, arguments)])
        for name, value in settings.items():
            patch.setenv(name, value)
        if not plots:  # importing matplotlib takes longer than the rest
            patch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(SystemExit) as ended:
            main()
    done = Done(out.getvalue(), err.getvalue())
    assert (ended.value.code or 0) == code, done.stdout + done.stderr
    return done


def evaluated(place: Path, *arguments: object) -> dict:
    done = command(place, "eval", *arguments, "--num-samples", 30, "--no-fid", "--json")
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def known(place):
    """The figures of the run on its own data, with both baselines and a report."""
    return evaluated(place, "run", "faces", "--baselines", "pca,ae", "-o", "report")


def test_figures_have_their_counts_levels_and_crop(known):
    for name in ("swd", "swd_floor", "swd_reconstructions", "swd_midpoints"):
        assert list(known[name]) == ["32", "16", "mean"]
    assert len(known["kl_dims"]) == 4
    assert known["crop"] == "largest centred square, scaled to 32 × 32 px"
    assert (known["split"], known["is_training_set"], known["num_images"]) == ("held-out", True, 5)
    assert known["model"]["name"] == "run"


def test_unavailable_figures_are_null_with_a_reason(known):
    for name in ("fid", "kid", "lpips"):
        assert known[name] is None
        assert known["reasons"][name]
    assert known["features"]["fid"] is None
    assert known["reasons"]["fid"] == "--no-fid"


def test_figures_are_those_of_the_training(place, known):
    figures = json.loads(command(place, "info", "run", "--json").stdout)["provenance"]["figures"]
    for name in ("psnr", "mse", "sharpness", "kl_nats", "active_units"):
        assert known[name] == pytest.approx(figures[name], rel=1e-3), name


def test_novelty_is_measured_only_on_the_training_set(place, known):
    assert set(known["novelty"]) >= {"samples", "held_out", "ratio"}
    other = evaluated(place, "run", "others")
    assert other["novelty"] is None
    assert "training set" in other["reasons"]["novelty"]
    assert (other["split"], other["num_images"], other["num_floor"]) == ("all", 48, 15)


def test_baselines_have_the_same_figures(known):
    assert set(known["baselines"]) == {"pca", "ae"}
    for figures in known["baselines"].values():
        assert figures["latent_dim"] == 4
        assert figures["psnr"] > 0
        assert set(figures["swd"]) == set(known["swd"])
        assert figures["kl"] is None
        assert figures["reasons"]["kl"]
    # four eigenfaces are better than a network trained for two epochs on few faces
    assert known["baselines"]["pca"]["psnr"] > known["psnr"]


def test_the_output_folder_has_pictures_and_the_same_figures(place, known):
    names = [*PICTURES, "samples-pca", "samples-ae"]
    assert {Path(p).name for p in known["outputs"]} == {f"{n}.png" for n in names} | {
        "figures.json"
    }
    assert json.loads((place / "report" / "figures.json").read_text()) == known
    sizes = {}
    for name in names:
        with Image.open(place / "report" / f"{name}.png") as picture:
            sizes[name] = picture.size
    assert sizes["reconstructions"] == (5 * 32, 4 * 32)  # faces, the model's, and two baselines'
    assert sizes["samples"] == (6 * 32, 5 * 32)
    assert sizes["interpolations"] == (8 * 32, 3 * 3 * 32)  # three pairs of five faces
    assert sizes["neighbours"] == (8 * 32, 4 * 32)


def test_the_autoencoder_is_a_run_that_is_not_trained_again(place, known):
    (folder,) = (place / "runs").glob("ae-*")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    typed = json.loads((folder / "config.json").read_text())["command"]
    assert typed.startswith("facevae eval run faces --baselines pca,ae ")
    again = evaluated(place, "run", "faces", "--baselines", "ae")
    assert again["baselines"]["ae"] == known["baselines"]["ae"]
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    # a run trained for longer is not used in place of a shorter one
    fewer = ("--baselines", "ae", "--baseline-epochs", 1, "--num-samples", 4, "--no-fid")
    done = command(place, "eval", "run", "faces", *fewer, code=2)
    assert "has been trained for 2 epochs, not 1; name another --baseline-dir" in done.stderr
    shorter = ("--baseline-epochs", 1, "--baseline-dir", "elsewhere")
    elsewhere = evaluated(place, "run", "faces", "--baselines", "ae", *shorter)
    assert len(list((place / "elsewhere").glob("ae-*/model.safetensors"))) == 1
    assert elsewhere["baselines"]["ae"]["psnr"] != again["baselines"]["ae"]["psnr"]


def test_the_same_command_gives_the_same_figures_and_another_seed_others(place, known):
    again = evaluated(place, "run", "faces")
    for name in ("psnr", "swd", "swd_floor", "novelty", "sharpness_samples"):
        assert again[name] == known[name], name
    other = evaluated(place, "run", "faces", "--seed", 1000)
    assert other["sharpness_samples"] != known["sharpness_samples"]
    assert other["psnr"] == known["psnr"]


def test_the_table_states_count_crop_and_feature_space(place):
    done = command(place, "eval", "run", "faces", "--num-samples", 8, "--no-fid", "-q")
    assert "5 held-out faces, largest centred square, scaled to 32 × 32 px" in done.stdout
    assert "8 samples" in done.stdout
    assert "7 × 7 patches of a Laplacian pyramid" in done.stdout
    assert "whitened by those of the training faces" in done.stdout
    for row in ("PSNR", "SSIM", "sharpness", "samples: SWD", "active units", "novelty"):
        assert row in done.stdout
    assert "FID" not in done.stdout
    assert done.stderr == ""


def test_split_chooses_the_faces(place):
    assert evaluated(place, "run", "faces", "--split", "train")["num_images"] == 43
    assert evaluated(place, "run", "faces", "--split", "all")["num_images"] == 48
    held_out = evaluated(place, "run", "others", "--split", "held-out")
    assert 0 < held_out["num_images"] < 48
    assert held_out["novelty"] is None


@pytest.mark.skipif(not is_available(), reason="needs the extra 'plot'")
def test_histograms_are_drawn_where_there_is_matplotlib(place):
    arguments = ("run", "faces", "--num-samples", 8, "--no-fid", "-o", "drawn")
    paths = command(place, "eval", *arguments, plots=True).stdout.splitlines()[-8:]
    assert [Path(p).stem for p in paths] == [*PICTURES, "kl", "latents", "novelty", "figures"]
    assert all((place / path).exists() for path in paths)


@pytest.mark.skipif(not is_available(), reason="needs the extra 'plot'")
def test_three_faces_are_enough_for_all_figures(place):
    (place / "few").mkdir()
    for i in range(3):
        draw_face(i, 40).save(place / "few" / f"{i}.png")
    command(place, "train", "few", *TINY[:-3], "-o", "of-few", "-q")
    arguments = ("of-few", "few", "--baselines", "pca", "--num-samples", 4, "--no-fid")
    done = command(place, "eval", *arguments, "-o", "small", "--json", plots=True)
    found = json.loads(done.stdout)
    assert (found["num_images"], found["baselines"]["pca"]["latent_dim"]) == (1, 1)
    assert found["active_units"] is None
    assert found["novelty"]["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere", "faces"), 1, "nowhere: no such model"),
        (("run", "nowhere"), 1, "nowhere: no such file or folder"),
        (("run", "report-of-nothing.txt"), 1, "no such file"),
        (("run", "hf://some/faces"), 1, "write it as hf://datasets/owner/name"),
        (
            ("run", "faces", "--baselines", "svm"),
            2,
            "'svm' is not a baseline; name pca, ae or pca,ae",
        ),
        (("run", "faces", "--baselines", "pca", "--split", "all"), 2, "would favour them"),
        (("run", "others", "--baselines", "pca"), 2, "not what the model was trained on"),
        (("run", "faces", "-o", "faces/report"), 2, "name another -o"),
        (("run", "faces", "-o", "tiny.safetensors"), 2, "is a file"),
        (("run", "faces/000.png"), 1, "only one face"),
        (("run", "faces", "--num-samples", 0), 2, "num-samples"),
        (("run", "faces", "--seed", 2**63 - 1), 2, "--seed"),
    ],
)
def test_invalid_input_is_refused_in_one_line(place, arguments, code, words):
    done = command(place, "eval", *arguments, "-q", code=code)
    assert words in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_an_output_folder_that_cannot_be_made_is_refused_before_the_work(place):
    (place / "locked").mkdir(exist_ok=True)
    (place / "locked" / "report").write_text("a file in the way")
    done = command(place, "eval", "run", "faces", "-o", "locked/report/deeper", code=1)
    assert "locked/report" in done.stderr
    assert "Sampling" not in done.stderr


def test_fid_that_is_requested_but_unavailable_is_an_error(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    done = command(place, "eval", "run", "faces", "--fid", code=2)
    assert "--fid: needs the extra 'eval': pip install 'facevae[eval]'" in done.stderr


def test_damaged_pictures_are_left_out_and_named(place):
    folder = place / "damaged"
    folder.mkdir()
    for i in range(12):
        draw_face(i, 40).save(folder / f"{i:03}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    done = command(place, "eval", "tiny.safetensors", "damaged", "--num-samples", 4, "--no-fid")
    assert "bad.png" in done.stderr
    assert "12 faces" in done.stdout


def test_a_separate_process_gives_the_same_output(place, facevae: Command):
    model, folder = place / "tiny.safetensors", place / "others"
    done = facevae("eval", model, folder, "--num-samples", 4, "--no-fid", "--json")
    assert json.loads(done.stdout)["num_images"] == 48
    done = facevae("eval", model, folder, "--baselines", "pca", "--baseline-epochs", 3, code=2)
    assert "--baseline-epochs 3: is for the autoencoder; add --baselines ae" in done.stderr
    done = facevae("eval", model, folder, "--baseline-dir", "elsewhere", code=2)
    assert "--baseline-dir elsewhere: is for the autoencoder" in done.stderr
    done = facevae("eval", model, folder, "--baselines", "pca", code=2)
    assert "not what the model was trained on" in done.stderr
