"""`attributes list` and `attributes learn`, by every way there is to teach."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_face
from tiny import ATTRIBUTES, CONFIG, TinyFeatures, tensors_of, tiny_bundle

from facevae.attributes import classifier
from facevae.attributes.directions import correlations, learn
from facevae.data.dataset import load_faces
from facevae.data.images import load_square
from facevae.data.label_files import read_labels
from facevae.latent_space import judging, refining
from facevae.latent_space.latents import encode_pixels
from facevae.latent_space.learning import examples_of_faces
from facevae.models import hub
from facevae.models.bundle import load, save


@pytest.fixture
def run(here, monkeypatch):
    monkeypatch.delenv("FACEVAE_MODEL", raising=False)
    return here


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """`m.safetensors`; `with/` and `without/` hold eight faces each, `photos/` all of them, labelled."""
    monkeypatch.chdir(tmp_path)
    save(tiny_bundle(), tmp_path / "m.safetensors")
    for folder in ("with", "without", "photos"):
        (tmp_path / folder).mkdir()
    rows = []
    for i in range(16):
        picture = draw_face(i, 40, glasses=i % 2 == 0)
        picture.save(f"{'without' if i % 2 else 'with'}/{i}.png")
        picture.save(f"photos/{i}.png")
        rows.append(f"{i}.png,{int(i % 2 == 0)},{20 + i},word")
    Path("labels.csv").write_text("\n".join(["name,Spectacled,Years,Note", *rows]))
    return tmp_path


def names_of(path):
    return [attribute.name for attribute in load(Path(path)).attributes]


def entries():
    return {path.as_posix() for path in Path().rglob("*") if "cache" not in path.parts}


# ---------------------------------------------------------------- list


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_has_every_attribute_its_figures_and_what_goes_along(run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    done = run("attributes", "list", "m.safetensors")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    words = done.stdout.split()
    assert set(ATTRIBUTES) <= set(words)
    assert "75%" in words
    assert done.stdout.count("not") >= 3, "the others are not measured"
    bundle = tiny_bundle()
    _, joint = correlations(bundle.scorers, bundle.latent_covariance)
    i, j = divmod(int((joint - torch.eye(4)).abs().argmax()), 4)
    assert abs(joint[i, j]) > 0.2
    assert f"{float(joint[i, j]):+.1f}" in words


def test_a_list_for_programs_has_every_figure(run):
    values = json.loads(run("attributes", "list", "m.safetensors", "--json").stdout)
    assert values["model"] == {"name": "m.safetensors", "path": "m.safetensors"}
    bundle = tiny_bundle()
    spreads, joint = correlations(bundle.scorers, bundle.latent_covariance)
    assert [record["name"] for record in values["attributes"]] == list(ATTRIBUTES)
    for i, (record, attribute) in enumerate(
        zip(values["attributes"], bundle.attributes, strict=True)
    ):
        assert set(record) == {
            "name",
            "num_positives",
            "num_negatives",
            "accuracy",
            "correlation",
            "continuous",
            "unit",
            "method",
            "spread",
            "correlations",
        }
        assert record["num_positives"] == attribute.num_positives
        assert record["accuracy"] == attribute.accuracy
        assert record["spread"] == pytest.approx(float(spreads[i]), abs=1e-3)
        assert set(record["correlations"]) == set(ATTRIBUTES) - {ATTRIBUTES[i]}
        for name, value in record["correlations"].items():
            assert value == pytest.approx(float(joint[i, ATTRIBUTES.index(name)]), abs=1e-3)


def test_a_model_without_attributes_says_how_it_gets_some(run):
    bundle = tiny_bundle()
    bundle.attributes, bundle.directions, bundle.scorers = [], None, None
    bundle.interactions = None
    save(bundle, Path("bare.safetensors"))
    done = run("attributes", "list", "bare.safetensors")
    assert done.stdout == ""
    assert "knows no attributes; see `facevae attributes learn --help`" in done.stderr
    assert (
        json.loads(run("attributes", "list", "bare.safetensors", "--json").stdout)["attributes"]
        == []
    )


def test_the_model_in_the_package_is_listed(run):
    values = json.loads(run("attributes", "list", "--json").stdout)
    assert values["model"]["name"] == "default"
    for record in values["attributes"]:
        assert 0.5 < record["accuracy"] <= 1, record["name"]
        assert record["spread"] > 0


@pytest.mark.parametrize("model", ["nowhere", "labels.csv", "photos"])
def test_what_is_no_model_is_not_listed(run, model):
    done = run("attributes", "list", model, code=1)
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {model}: ")


# ---------------------------------------------------------------- learn, from photos


SORTED = ("attributes", "learn", "m.safetensors", "--name", "Spectacles", "--with", "with")


def test_photos_with_and_without_teach_an_attribute(run):
    before = Path("m.safetensors").read_bytes()
    done = run(*SORTED, "--without", "without", "-o", "new.safetensors")
    assert done.stdout == "new.safetensors\n"
    assert "facevae attributes list new.safetensors" in done.stderr
    assert Path("m.safetensors").read_bytes() == before
    found, old = load(Path("new.safetensors")), tiny_bundle()
    assert names_of("new.safetensors") == [*ATTRIBUTES, "Spectacles"]
    sides = []
    for folder in ("with", "without"):
        paths = sorted(Path(folder).iterdir())
        pixels = np.stack([load_square(path, CONFIG.size) for path in paths])
        mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
        sides.append(encode_pixels(old, np.concatenate([pixels, mirrored])).mean(0))
    torch.testing.assert_close(found.directions[-1], sides[0] - sides[1], rtol=1e-3, atol=1e-4)
    # all else is as it was
    kept, same = tensors_of(found), tensors_of(old)
    per_attribute = ("directions", "scorers", "interactions")
    for name, tensor in same.items():
        part = kept[name][: len(tensor)] if name in per_attribute else kept[name]
        assert part.equal(tensor), name
    assert found.provenance == old.provenance


def test_without_o_a_models_own_file_learns(run):
    done = run(*SORTED, "--without", "without", "--json")
    values = json.loads(done.stdout)
    assert set(values) == {"model", "outputs", "learned", "refined", "not_refined", "skipped"}
    assert values["refined"] is None
    assert (values["outputs"], values["learned"]) == (["m.safetensors"], ["Spectacles"])
    assert names_of("m.safetensors") == [*ATTRIBUTES, "Spectacles"]
    # and knows it at once, by the way
    assert run("arith", "photos/3.png", "-a", "spectacles", "-m", "m.safetensors").stdout


def test_a_runs_folder_learns_in_its_model(run):
    save(tiny_bundle(), Path("run/model.safetensors"))
    done = run("attributes", "learn", "run", *SORTED[3:])
    assert done.stdout == "run/model.safetensors\n"
    assert names_of("run/model.safetensors") == [*ATTRIBUTES, "Spectacles"]
    assert [path.name for path in Path("run").iterdir()] == ["model.safetensors"]


def test_without_those_that_lack_it_the_average_face_does(run):
    run(*SORTED, "-o", "new.safetensors")
    found = load(Path("new.safetensors")).attributes[-1]
    assert (found.num_positives, found.num_negatives) == (8, 1)


def test_photos_and_folders_repeat_and_what_cannot_be_read_is_named(run):
    Path("with/torn.png").write_bytes(b"no picture")
    done = run(
        *SORTED, "--with", "photos/1.png", "--without", "without", "--without", "photos/0.png"
    )
    assert "left out: with/torn.png: not a picture" in done.stderr
    found = load(Path("m.safetensors")).attributes[-1]
    assert (found.num_positives, found.num_negatives) == (9, 9)


def test_an_attribute_is_taught_again_in_place_of_itself(run):
    run(*SORTED)
    run("attributes", "learn", "m.safetensors", "--name", "Smiling", "--with", "with")
    assert sorted(names_of("m.safetensors")) == sorted([*ATTRIBUTES, "Spectacles"])


def test_the_papers_way_is_there_to_compare(run):
    run(*SORTED, "--without", "without", "--method", "mean")
    assert load(Path("m.safetensors")).attributes[-1].method == "mean"
    done = run("arith", "photos/3.png", "-a", "Spectacles", "-m", "m.safetensors", "--json")
    assert json.loads(done.stdout)["kept"] == []


def test_half_precision_stays_half(run):
    save(tiny_bundle(), Path("half.safetensors"), half=True)
    run("attributes", "learn", "half.safetensors", *SORTED[3:])
    found = load(Path("half.safetensors"))
    assert found.half
    assert len(found.attributes) == 5
    run(*SORTED)
    assert not load(Path("m.safetensors")).half


# ---------------------------------------------------------------- learn, from labels


def test_labelled_photos_teach_all_that_their_table_has(run):
    Path("photos/torn.png").write_bytes(b"no picture")
    with Path("labels.csv").open("a") as file:
        file.write("\ntorn.png,1,30,word\nnobody.png,1,30,word")
    command = ("attributes", "learn", "m.safetensors", "photos", "--labels", "labels.csv")
    done = run(*command, "--json")
    values = json.loads(done.stdout)
    assert values["learned"] == ["Spectacled", "Years"]
    assert [s.partition(":")[0] for s in values["skipped"]] == ["photos/torn.png"]
    assert "left out: the column Note" in done.stderr
    marks, years = load(Path("m.safetensors")).attributes[-2:]
    assert (marks.num_positives, marks.num_negatives, marks.continuous) == (8, 8, False)
    assert years.continuous
    assert years.unit == pytest.approx(np.arange(16).std(), rel=1e-5)


def test_several_tables_are_taken_together(run):
    Path("more.csv").write_text("name,Scar\n" + "".join(f"{i}.jpg,{i % 3 % 2}\n" for i in range(9)))
    base = ("attributes", "learn", "m.safetensors", "photos")
    done = run(*base, "--labels", "labels.csv", "--labels", "more.csv", "--json")
    assert json.loads(done.stdout)["learned"] == ["Spectacled", "Years", "Scar"]
    assert load(Path("m.safetensors")).attributes[-1].num_positives == 3


@pytest.fixture
def trained(tmp_path):
    """The model as one that was trained on `photos/`, which is in the cache."""
    faces = load_faces([tmp_path / "photos"], CONFIG.size, cache=tmp_path / "cache")
    bundle = tiny_bundle()
    bundle.provenance["fingerprint"] = faces.fingerprint
    save(bundle, tmp_path / "m.safetensors")
    examples = examples_of_faces(bundle, faces, read_labels(tmp_path / "labels.csv"))
    return learn(examples, bundle.latent_covariance)


@pytest.mark.parametrize("data", [(), ("photos",)])
def test_the_training_set_teaches_with_its_own_held_out_faces(run, trained, data):
    done = run("attributes", "learn", "m.safetensors", *data, "--labels", "labels.csv")
    assert "learning from the model's training set" in done.stderr
    found = load(Path("m.safetensors"))
    attributes, directions, scorers = trained
    assert found.attributes[-2:] == attributes
    assert attributes[0].num_positives + attributes[0].num_negatives < 16
    torch.testing.assert_close(found.directions[-2:], directions)
    torch.testing.assert_close(found.scorers[-2:], scorers)


def test_what_is_learned_from_labels_may_be_refined(run, trained, monkeypatch):
    """By a classifier that is trained on the faces, here a tiny one, and a few of them."""
    monkeypatch.setattr(classifier, "load_image_features", TinyFeatures)
    monkeypatch.setattr(judging, "_FEWEST", 5)
    monkeypatch.setattr(refining, "_STEPS", 3)
    monkeypatch.setattr(judging.Judge, "why_blind", lambda *_: "")
    # so few faces show nothing: losses and effects before, losses after, effects after
    measured = iter([(2.0, 0.5), (2.0, 0.25), (1.0, 0), (1.0, 0), (1.0, 0.75), (1.0, 0.4)])
    monkeypatch.setattr(judging.Judge, "measured", lambda *_: next(measured))
    command = ("attributes", "learn", "m.safetensors", "--labels", "labels.csv", "--refine")
    done = run(*command, "--json")
    values = json.loads(done.stdout)
    assert values["refined"] == {"Spectacled": [0.5, 0.75], "Years": [0.25, 0.4]}
    assert values["not_refined"] == {}
    assert "succeed: Spectacled 50% → 75%\n" in done.stderr
    assert "standard deviations: Years +0.25 → +0.40\n" in done.stderr
    assert "warning: no labels say Male, Smiling, Eyeglasses: " in done.stderr
    directions = load(Path("m.safetensors")).directions[-2:]
    assert not torch.allclose(directions, trained[1], rtol=1e-3)
    measured = iter([(2.0, 0.99), (2.0, 0.25), (3.0, 0.75)])
    done = run(*command, "--json")
    assert json.loads(done.stdout)["not_refined"] == {
        "Spectacled": "its edits do enough already",
        "Years": "it would not help",
    }
    assert "not refined, since its edits do enough already: Spectacled\n" in done.stderr
    assert "not refined, since it would not help: Years\n" in done.stderr


def test_other_photos_than_the_training_set_are_read_anew(run, trained):
    assert len(trained[0]) == 2
    done = run("attributes", "learn", "m.safetensors", "with", "--labels", "labels.csv", "--json")
    assert "training set" not in done.stderr
    assert json.loads(done.stdout)["learned"] == ["Years"], "all of them wear spectacles"


def test_a_folder_of_ffhqs_features_teaches(run):
    Path("features").mkdir()
    for i in range(16):
        face = {
            "smile": i / 16,
            "headPose": {"pitch": 0.0, "roll": 0.0, "yaw": float(i - 8)},
            "gender": "male" if i % 3 else "female",
            "age": 30 + i,
            "facialHair": {"moustache": 0.0, "beard": 0.0, "sideburns": 0.0},
            "glasses": "NoGlasses" if i % 2 else "ReadingGlasses",
            "hair": {"bald": 0.0},
            "makeup": {"eyeMakeup": False, "lipMakeup": False},
            "accessories": [],
        }
        Path(f"features/{i}.json").write_text(json.dumps([{"faceAttributes": face}]))
    done = run("attributes", "learn", "m.safetensors", "photos", "--labels", "features", "--json")
    assert json.loads(done.stdout)["learned"] == ["Eyeglasses", "Male", "Age", "Smile", "Yaw"]


def test_of_few_photos_and_of_a_name_that_was_taken_one_is_told(run):
    learn = partial(run, "attributes", "learn", "m.safetensors", "-o", "new.safetensors")
    done = learn("--name", "smile", "--with", "with")
    assert "warning: smile: from fewer than 10 faces" in done.stderr
    assert "warning: --attr smile meant Smiling before" in done.stderr
    done = learn("--name", "Ears", "--with", "photos")
    assert "warning" not in done.stderr
    done = learn("--name", "Smiling", "--with", "photos")
    assert "warning: Smiling: replaced, the model had an attribute of that name" in done.stderr


def test_attributes_that_labels_cannot_teach_are_named(run):
    rows = [f"{i}.png,{i % 2},0,{i}\n" for i in range(16)]
    Path("mixed.csv").write_text("name,Happy,Sad,Height\n" + "".join(rows))
    learn = partial(run, "attributes", "learn", "m.safetensors", "photos", "-o", "new.safetensors")
    done = learn("--labels", "mixed.csv")
    assert "warning: not learned, since labelled faces do not differ in it" in done.stderr
    assert "latents: Sad\n" in done.stderr
    assert "Height: fewer than" not in done.stderr


def test_where_hardly_a_labelled_face_is_without_it_one_is_told(run):
    Path("same.csv").write_text("name,Happy\n" + "".join(f"{i}.png,1\n" for i in range(16)))
    learn = partial(run, "attributes", "learn", "m.safetensors", "photos", "-o", "new.safetensors")
    said = learn("--labels", "same.csv").stderr
    assert "warning: Happy: fewer than 10 labelled faces are without it" in said


# ---------------------------------------------------------------- what is refused


REFUSED = {
    (): "either --labels, or photos with --with",
    ("--labels", "labels.csv", "--with", "with"): "give either --labels",
    ("--without", "without"): "--with",
    ("--with", "with"): "--name",
    ("--with", "with", "--name", ""): "--name",
    ("--with", "with", "--name", " _ "): "--name",
    ("--with", "with", "--name", "big,ears"): "--name",
    ("--with", "with", "--name", "None"): "--name",
    ("--with", "with", "--name", "all"): "--name",
    ("photos", "--with", "with", "--name", "X"): "photos: DATA is for --labels; give photos with",
    ("--labels", "labels.csv", "--name", "X"): "--name",
    ("--labels", "labels.csv", "--without", "without"): "--without",
    ("--labels", "labels.csv"): "training set is not on this machine",
    ("--with", "with", "--name", "X", "-o", "out.png"): "out.png",
    ("--with", "with", "--name", "X", "-o", "out"): "out",
    ("--with", "with", "--name", "X", "--method", "median"): "median",
    ("--with", "with", "--name", "X", "--refine"): "--refine: does not go with --with",
    ("--labels", "labels.csv", "--refine", "--method", "mean"): "--method mean; leave one",
}
FAILED = {
    ("photos", "--labels", "nowhere.csv"): "nowhere.csv",
    ("photos", "--labels", "photos/1.png"): "photos/1.png",
    ("photos", "--labels", "photos"): "photos",
    ("photos", "--labels", "others.csv"): "none of the faces has a label in others.csv",
    ("nowhere", "--labels", "labels.csv"): "nowhere",
    ("empty", "--labels", "labels.csv"): "empty",
    ("photos", "--labels", "alike.csv"): "nothing to learn",
    ("photos", "--labels", "labels.csv", "--refine"): "too few to refine directions with",
    ("--with", "nowhere", "--name", "X"): "nowhere",
    ("--with", "empty", "--name", "X"): "empty",
    ("--with", "with", "--without", "empty", "--name", "X"): "empty",
    ("--with", "labels.csv", "--name", "X"): "labels.csv",
    ("--with", "with/0.png", "--without", "photos/0.png", "--name", "X"): "nothing to learn",
}


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [*((a, s, 2) for a, s in REFUSED.items()), *((a, s, 1) for a, s in FAILED.items())],
)
def test_what_cannot_be_learned_is_one_line_and_nothing_is_lost(run, arguments, said, code):
    Path("empty").mkdir()
    Path("others.csv").write_text("name,A\nx.png,1\ny.png,0\n")
    Path("alike.csv").write_text("name,A\n1.png,1\n2.png,1\n".replace("1\n", "37.5\n"))
    before, model = entries(), Path("m.safetensors").read_bytes()
    done = run("attributes", "learn", "m.safetensors", *arguments, code=code)
    assert done.stdout == ""
    assert said in done.stderr
    if "median" not in arguments:  # which the parser of options refuses, in a frame
        assert done.stderr.splitlines()[-1].startswith("error: ")
    assert entries() == before
    assert Path("m.safetensors").read_bytes() == model


@pytest.mark.parametrize("model", ["default", ""])
def test_the_model_in_the_package_is_never_written(run, model):
    path = hub.locate("default").path
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    for _ in range(2):
        done = run("attributes", "learn", model, *SORTED[3:], "--no-align", code=2)
        assert "default: cannot be changed; name a file to write with -o" in done.stderr
        save(tiny_bundle(), Path("default/model.safetensors"))  # another of that name, here
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_the_model_in_the_package_is_taught_into_another_file(run):
    done = run(
        "attributes", "learn", "default", *SORTED[3:], "--no-align", "-o", "mine.safetensors"
    )
    assert done.stdout == "mine.safetensors\n"
    assert names_of("mine.safetensors")[-1] == "Spectacles"
    assert names_of("mine.safetensors")[:-1] == names_of(hub.locate("default").path)
    shown = run("attributes", "list", "mine.safetensors").stdout
    assert re.search(r"Spectacles\W+not measured", shown)


def test_a_model_that_cannot_be_written_stays_and_says_so(run):
    Path("taken.safetensors").mkdir()
    Path("taken.safetensors/mine").touch()
    before = entries()
    done = run(*SORTED, "-o", "taken.safetensors", code=2)
    assert done.stderr.startswith("error: taken.safetensors: ")
    Path("file").touch()
    done = run(*SORTED, "-o", "file/m.safetensors", code=1)
    assert "file/m.safetensors: cannot be written there" in done.stderr
    assert entries() - {"file"} == before
