import dataclasses
import json

import pytest
import torch
from tiny import CONFIG, TRAIN, tiny_bundle, tiny_run

from facevae.config import ModelConfig, TrainConfig
from facevae.data.dataset import load_faces
from facevae.errors import FacevaeError, RunError
from facevae.networks.vae import VAE
from facevae.training.run_folders import RunFolder, read_metrics
from facevae.training.runs import left_out, weights_digest

IDENTITY = {"model": {"size": 32, "filters": (8, 8)}, "train": {"seed": 0}, "data": "abc"}
RECORDS = [
    {"event": event, "step": step, "images": 16 * step, "seconds": 0.5 * step}
    for step in (1, 2)
    for event in ("steps", "epoch")
]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_folder_is_claimed_once_and_then_known_again(folder):
    folder.claim(IDENTITY, {"epochs": 3})
    folder.claim(IDENTITY, {"epochs": 5})
    kept = json.loads(folder.config.read_text())
    assert kept["epochs"] == 5
    assert kept["identity"]["model"]["filters"] == [8, 8]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": "xyz"}, "the faces' fingerprint was abc, now xyz"),
        ({"train": {"seed": 1}}, "`seed` was 0, now 1"),
        (
            {"model": {"size": 64, "filters": (16, 8)}},
            "filters was 8,8, now 16,8; `size` was 32, now 64",
        ),
    ],
)
def test_another_run_is_refused_with_what_differs_and_nothing_is_touched(folder, change, named):
    folder.claim(IDENTITY, {"epochs": 3})
    before = folder.config.read_bytes()
    with pytest.raises(RunError) as caught:
        folder.claim(IDENTITY | change, {"epochs": 3})
    assert named in str(caught.value)
    assert str(folder.path) in str(caught.value)
    assert folder.config.read_bytes() == before


def test_every_difference_is_named(folder):
    folder.claim(IDENTITY, {})
    with pytest.raises(RunError) as caught:
        folder.claim(IDENTITY | {"data": "xyz", "train": {"seed": 1}}, {})
    assert "fingerprint was" in str(caught.value)
    assert "`seed` was" in str(caught.value)


@pytest.mark.parametrize("text", ["[]", '{"epochs": 3}', '{"identity": 5}'])
def test_a_config_of_something_else_is_refused(folder, text):
    folder.path.mkdir()
    folder.config.write_text(text)
    with pytest.raises(RunError, match=r"config\.json: is not of a training run"):
        folder.claim(IDENTITY, {})
    assert folder.config.read_text() == text


def test_a_model_that_no_run_made_is_not_replaced(folder):
    folder.path.mkdir()
    folder.model.write_bytes(b"mine")
    with pytest.raises(RunError, match="holds a model"):
        folder.claim(IDENTITY, {})
    assert not folder.config.exists()


def test_records_after_a_step_are_forgotten_and_a_cut_off_line_too(folder):
    folder.path.mkdir()
    for step in (20, 40, 43):
        folder.record({"event": "steps", "step": step, "images": step, "seconds": 0.0})
    with folder.metrics.open("a") as file:
        file.write('{"event": "st')
    again = RunFolder(folder.path)
    assert again.recall("vae", 40) == {"step": 0, "images": 0}
    assert [r["step"] for r in again.records] == [20, 40]
    lines = again.metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 40]


@pytest.mark.parametrize(
    ("part", "step", "kept", "before"),
    [
        ("vae", 40, "vae", 0),
        ("prior", 20, "vae prior", 40),
        ("prior", 0, "vae", 40),
        ("finish", 5, "vae prior finish", 60),
        ("finish", 0, "vae prior", 60),
    ],
)
def test_a_part_of_a_run_that_goes_on_forgets_what_came_after_it(folder, part, step, kept, before):
    places = {"vae": ("steps", 40), "prior": ("prior", 60), "finish": ("finish", 65)}
    folder.path.mkdir()
    for event, end in places.values():
        folder.record({"event": event, "step": end, "images": end, "seconds": 0.0})
    epoch = {"event": "epoch", "stage": "finish", "step": 65, "images": 65, "seconds": 0.0}
    folder.record(epoch)
    whole = RunFolder(folder.path)
    whole.recall(part, places[part][1] - before, is_whole=True)
    assert whole.records == folder.records
    again = RunFolder(folder.path)
    assert again.recall(part, step) == {"step": before, "images": before}
    events = [places[name][0] for name in kept.split()] + ["epoch"] * ("finish" in kept)
    assert [r["event"] for r in again.records] == events


# ---------------------------------------------------------------- states


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((200,), value)}


def test_the_newest_state_is_the_one_to_go_on_from(folder):
    assert folder.load_state("network") is None
    for step in (1, 2, 3):
        folder.save_state("network", state(step), step)
    warnings = []
    found, step = folder.load_state("network", warn=warnings.append)
    assert (step, warnings) == (3, [])
    assert found["weights"].equal(state(3)["weights"])


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten", "one number", "the step"])
def test_a_damaged_state_gives_way_to_the_one_before_it_with_a_warning(folder, damage):
    folder.save_state("network", state(1), 1)
    folder.save_state("network", state(2), 2)
    newest = folder.path / "state" / "network.safetensors"
    data = newest.read_bytes()
    spoilt = {
        "cut": data[:-100],
        "emptied": b"",
        "overwritten": b"\xff" * len(data),
        "one number": data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
        "the step": data.replace(b'"step":"2"', b'"step":"3"'),
    }
    assert data not in spoilt.values()
    newest.write_bytes(spoilt[damage])
    warnings = []
    found, step = folder.load_state("network", warn=warnings.append)
    assert (found["weights"][0], step) == (1, 1)
    assert [str(newest) in warning for warning in warnings] == [True]


def test_where_both_states_are_damaged_it_is_said_once_that_the_stage_begins_anew(folder):
    for step in (1, 2):
        folder.save_state("network", state(step), step)
    for path in (folder.path / "state").iterdir():
        path.write_bytes(b"")
    warnings = []
    assert folder.load_state("network", warn=warnings.append) is None
    (said,) = warnings
    assert "network.safetensors" in said
    assert "network-earlier.safetensors" in said
    assert said.endswith(": the network begins anew, from its first step")


def test_a_state_of_the_same_name_from_other_weights_is_left_alone(folder):
    folder.save_state("prior", state(1), 1, key="those")
    assert folder.load_state("prior", key="these") is None
    assert folder.load_state("prior", key="those")[1] == 1


def test_stages_do_not_mix(folder):
    folder.save_state("network", state(1), 7)
    assert folder.load_state("prior") is None


# ---------------------------------------------------------------- identity


def test_a_digest_tells_weights_apart_to_the_last_bit():
    vae = VAE(CONFIG)
    before = weights_digest(vae)
    assert weights_digest(vae) == before
    with torch.no_grad():
        vae.decoder.dense.bias[0] = torch.nextafter(vae.decoder.dense.bias[0], torch.tensor(9.0))
    assert weights_digest(vae) != before


def test_a_run_is_the_same_whatever_its_epochs_but_not_with_other_settings(tmp_path, faces_folder):
    from dataclasses import replace

    from facevae.data.dataset import load_faces

    faces = load_faces([faces_folder], CONFIG.size, cache=tmp_path / "cache")
    plain = tiny_run(tmp_path, faces).identity()
    longer = tiny_run(tmp_path / "elsewhere", faces, train=replace(TRAIN, epochs=99))
    assert longer.identity() == plain
    for other in (
        tiny_run(tmp_path, faces, train=replace(TRAIN, seed=6)),
        tiny_run(tmp_path, faces, train=replace(TRAIN, learning_rate=1e-4)),
        tiny_run(tmp_path, faces, train=replace(TRAIN, r_loss_factor=1e4)),
        tiny_run(tmp_path, faces, model=ModelConfig(32, 9, (8, 8))),
        tiny_run(tmp_path, faces, init=tiny_bundle()),
    ):
        assert other.identity() != plain


def test_records_are_read_in_order_and_a_line_cut_off_at_the_end_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS) + '{"event": "st')
    assert read_metrics(path) == RECORDS


def test_damage_amid_the_records_is_named_with_its_line(tmp_path):
    path, line = tmp_path / "metrics.jsonl", json.dumps(RECORDS[0])
    path.write_text(f'{line}\n{{"step"\n{line}\n')
    with pytest.raises(FacevaeError, match="line 2 is damaged") as caught:
        read_metrics(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_run_from_before_there_was_a_setting_had_its_default(tmp_path, faces_folder):
    faces = load_faces([faces_folder], 32, cache=tmp_path / "cache")
    run = tiny_run(tmp_path / "run", faces)
    folder = RunFolder(run.folder)
    earlier = run.identity()
    del earlier["train"]["kl_weight"]
    folder.claim(earlier, run.about())
    folder.claim(run.identity(), run.about())

    another = tiny_run(tmp_path / "another", faces)
    folder = RunFolder(another.folder)
    folder.claim(earlier, another.about())
    other = tiny_run(another.folder, faces, train=dataclasses.replace(run.train, kl_weight=0.0))
    with pytest.raises(RunError, match=r"kl_weight was 1\.0, now 0\.0"):
        folder.check(other.identity())


def test_settings_of_a_stage_that_is_left_out_may_be_anything_and_stay_as_they_were(tmp_path):
    folder = RunFolder(tmp_path)
    known = {"train": {"seed": 0, "prior_epochs": 7}}
    folder.claim(known, {})
    asked = {"train": {"seed": 0, "prior_epochs": 100}}
    with pytest.raises(RunError, match="`prior_epochs` was 7, now 100"):
        folder.claim(asked, {})
    names = left_out(TrainConfig(stages=("finish",)))
    folder.claim(asked, {}, names)
    assert json.loads(folder.config.read_text())["identity"] == known
    with pytest.raises(RunError, match="`seed` was 0, now 1"):
        folder.claim({"train": {"seed": 1, "prior_epochs": 7}}, {}, names)
    assert left_out(TrainConfig()) == ()
