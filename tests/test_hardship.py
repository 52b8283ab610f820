"""Full disks, read-only folders, vanishing files, signals: a one-line error, and nothing is lost."""

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_face
from tiny import CONFIG, TRAIN, Ear, differing, tensors_of, tiny_run

from facevae.config import STAGES
from facevae.data import conversion, dataset
from facevae.data.dataset import load_faces
from facevae.data.images import save_animation, save_picture
from facevae.data.pictures import Picture
from facevae.errors import DataError, FacevaeError, Stopped
from facevae.latent_space.latent_files import LatentsOrigin, save_latents
from facevae.stages.adversary import FinishStage
from facevae.stages.flow_matching import PriorStage
from facevae.stages.network_stage import NetworkStage
from facevae.system.files import append_text, replacing, write_text
from facevae.training import training
from facevae.training.run_folders import RunFolder
from facevae.training.training import train

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.usefixtures("quick_features")

FINISHED = dataclasses.replace(TRAIN, epochs=1, prior="gaussian", stages=STAGES, finish_epochs=2)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Turn off plots, and the search for faces in drawings, which take longest."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(training, "_measure_framing", lambda _work: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `faces/` and two undisturbed runs: `whole/`, and `finished/` with a finish."""
    root = tmp_path_factory.mktemp("hardship")
    (root / "faces").mkdir()
    for i in range(30):
        draw_face(i, CONFIG.size).save(root / "faces" / f"{i:03}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        patch.setattr(training, "_measure_framing", lambda _work: None)
        train(tiny_run(root / "whole", faces_of(root)), Ear())
        train(tiny_run(root / "finished", faces_of(root), train=FINISHED), Ear())
    return root


def faces_of(place):
    return load_faces([place / "faces"], CONFIG.size, cache=place / "cache")


def check_same(place, bundle, name="whole"):
    from facevae.models.bundle import load

    whole = load(place / name / "model.safetensors")
    assert differing(tensors_of(bundle), tensors_of(whole)) == []


# ---------------------------------------------------------------- no room


@contextmanager
def room_for(num_bytes):
    """Limit the size of files: writing beyond it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def in_one_line(caught, path):
    text = str(caught.value)
    assert text.startswith(f"{path}")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kept", ["config.json", "model.safetensors", "state/network.safetensors"])
def test_a_run_for_which_the_disk_has_no_room_goes_on_where_it_has(place, tmp_path, kept):
    run = tiny_run(tmp_path / "run", faces_of(place))
    # one byte too few for that file, and for all that is larger
    with (
        room_for((place / "whole" / kept).stat().st_size - 1),
        pytest.raises(FacevaeError, match="cannot be written there") as caught,
    ):
        train(run, Ear())
    in_one_line(caught, run.folder)
    assert list(run.folder.rglob(".*-????????.*")) == []
    check_same(place, train(run, Ear()))


def test_a_state_for_which_there_is_no_room_leaves_the_one_before(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_state("network", {"weights": torch.ones(1000)}, 1)
    with room_for(2000), pytest.raises(FacevaeError):
        folder.save_state("network", {"weights": torch.zeros(1000)}, 2)
    state, step = folder.load_state("network")
    assert (state["weights"][0], step) == (1, 1)


def test_a_conversion_for_which_there_is_no_room_says_so_and_leaves_nothing(place, tmp_path):
    with (
        room_for(30_000),
        pytest.raises(FacevaeError, match=r"cannot be written there .*--cache-dir") as caught,
    ):
        load_faces([place / "faces"], CONFIG.size, cache=tmp_path)
    in_one_line(caught, tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".lock"]
    found = load_faces([place / "faces"], CONFIG.size, cache=tmp_path)
    np.testing.assert_array_equal(found.pixels, faces_of(place).pixels)


NOISE = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
WRITERS = {
    "a.png": lambda path: save_picture(path, NOISE[0]),
    "a.jpg": lambda path: save_picture(path, NOISE[0]),
    "a.webp": lambda path: save_picture(path, NOISE[0]),
    "a.tif": lambda path: save_picture(path, NOISE[0]),
    "a.gif": lambda path: save_animation(path, NOISE, 10),
    "a.npz": lambda path: save_latents(path, ["x"], torch.ones(1, 999), LatentsOrigin("", "")),
    "a.safetensors": lambda path: save_latents(
        path, ["x"], torch.ones(1, 999), LatentsOrigin("", "")
    ),
    "a.html": lambda path: write_text(path, "x" * 3000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_finds_no_room_is_one_line_and_the_old_file_stays(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    with room_for(1000), pytest.raises(FacevaeError, match="cannot be written there") as caught:
        WRITERS[name](path)
    in_one_line(caught, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_to_be_full(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (write_text, append_text):
        with pytest.raises(FacevaeError, match=r"a: .*No space left .*free some space"):
            write(tmp_path / "a", "text")


def test_what_fails_for_another_reason_is_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        copy(tmp_path / "nowhere", tmp_path / "a.txt")


def copy(source, path):
    with replacing(path) as temporary:
        temporary.write_bytes(source.read_bytes())


# ---------------------------------------------------------------- no permission


@pytest.fixture
def read_only(monkeypatch, tmp_path, place):
    """Make the creation of files and folders fail, even for the superuser."""

    def refuse(path, *_args, **_kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    assert tmp_path.is_dir(), "made before"
    assert place.is_dir()
    opened = Path.open
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(
        Path,
        "open",
        lambda p, mode="r", *a, **k: (refuse if "a" in mode else opened)(p, mode, *a, **k),
    )


@pytest.mark.usefixtures("read_only")
def test_a_folder_that_cannot_be_written_into_is_named_with_what_to_do(place, tmp_path):
    with pytest.raises(FacevaeError, match=r"Read-only file system.*-o") as caught:
        save_picture(tmp_path / "deep" / "a.png", NOISE[0])
    in_one_line(caught, tmp_path / "deep" / "a.png")
    with pytest.raises(FacevaeError, match=r"Read-only file system.*-o") as caught:
        train(tiny_run(tmp_path / "run", faces_of(place)), Ear())
    in_one_line(caught, tmp_path / "run")
    with pytest.raises(FacevaeError, match=r"Read-only file system.*--cache-dir") as caught:
        load_faces([place / "faces"], CONFIG.size, cache=tmp_path)
    in_one_line(caught, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- files that vanish


@pytest.mark.parametrize("kind", ["picture", "shard"])
def test_a_file_that_vanishes_ends_the_conversion_which_goes_on_when_it_is_back(
    place, tmp_path, monkeypatch, kind
):
    """Unlike a damaged picture, it is not skipped for good: its disk may only be unplugged."""
    source, away = tmp_path / "faces", tmp_path / "away"
    shutil.copytree(place / "faces", source)
    lost = source / "020.png"
    if kind == "shard":
        lost = tmp_path / "shard.tar"
        subprocess.run(["tar", "-cf", lost, "-C", source, "."], check=True)
    opened = Picture.open

    def vanishing(picture):
        if picture.stem == "010" and lost.exists():
            lost.rename(away)
        return opened(picture)

    monkeypatch.setattr(Picture, "open", vanishing)
    named = [lost if kind == "shard" else source]
    with pytest.raises(DataError, match=r"cannot be read any more \(No such file") as caught:
        load_faces(named, CONFIG.size, cache=tmp_path / "cache")
    in_one_line(caught, lost)
    monkeypatch.undo()
    away.rename(lost)
    found = load_faces(named, CONFIG.size, cache=tmp_path / "cache")
    assert found.skipped == []
    assert found.fingerprint == faces_of(place).fingerprint


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_conversion_that_is_stopped_goes_on_with_what_is_left(
    place, tmp_path, monkeypatch, number
):
    monkeypatch.setattr("facevae.data.pictures._AT_ONCE", 4)
    told = []

    def stop(_task, done, _total):
        told.append(done)
        if len(told) == 2:
            signal.raise_signal(number)

    with pytest.raises(Stopped) as stopped:
        load_faces([place / "faces"], CONFIG.size, cache=tmp_path, progress=stop)
    assert stopped.value.exit_code == 128 + number
    assert told == [4, 8]
    found = load_faces(
        [place / "faces"], CONFIG.size, cache=tmp_path, progress=lambda *a: told.append(a[1])
    )
    assert told[2] > 8
    np.testing.assert_array_equal(found.pixels, faces_of(place).pixels)


def test_a_command_that_is_stopped_while_it_converts_says_so(place, here, monkeypatch):
    load_square = conversion.load_square

    def stopping(*args):
        if not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return load_square(*args)

    stopped = []
    monkeypatch.setattr(conversion, "load_square", stopping)
    shutil.copytree(place / "faces", "faces")
    done = here("train", "faces", "--size", 32, code=143)
    assert done.stdout == ""
    assert "the same command goes on from here" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", [NetworkStage, PriorStage, FinishStage])
def test_a_stage_that_is_stopped_saves_first(place, tmp_path, monkeypatch, stage, number):
    step = stage.step

    def stopping(self, index):
        if index == 2:
            signal.raise_signal(number)
        return step(self, index)

    config = FINISHED if stage is FinishStage else TRAIN
    run = tiny_run(tmp_path / "run", faces_of(place), train=config)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "step", stopping)
        with pytest.raises(Stopped) as stopped:
            train(run, Ear())
    assert stopped.value.signal_number == number
    ear = Ear()
    bundle = train(run, ear)
    name = {NetworkStage: "network", PriorStage: "prior", FinishStage: "finish"}[stage]
    assert any(f"going on with the {name} after step 3" in notice for notice in ear.notices)
    check_same(place, bundle, "finished" if stage is FinishStage else "whole")


# ---------------------------------------------------------------- two at once


def test_a_run_and_a_cache_are_one_process_s_alone_until_it_ends_however(place, tmp_path):
    from test_files import end, start_holder

    faces = faces_of(place)
    folder, _ = dataset.converted(
        dataset.find_data([place / "faces"]), CONFIG.size, tmp_path / "cache"
    )
    use = {
        tmp_path / "run": lambda: train(tiny_run(tmp_path / "run", faces), Ear()),
        folder: lambda: load_faces([place / "faces"], CONFIG.size, cache=tmp_path / "cache"),
    }
    for held, begin in use.items():
        holder = start_holder(held)
        try:
            with pytest.raises(FacevaeError, match="in use by another facevae") as caught:
                begin()
            in_one_line(caught, held)
        finally:
            end(holder)  # by SIGKILL
        begin()
