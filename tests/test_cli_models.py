"""`info`, `cache`, help and version."""

import dataclasses
import json
import subprocess
import sys

import pytest
from tiny import ATTRIBUTES, CONFIG, tiny_bundle

from facevae.faces.framing import FFHQ
from facevae.models.bundle import load, save

COMMANDS = (
    "train",
    "reconstruct",
    "sample",
    "morph",
    "arith",
    "align",
    "report",
    "export",
    "info",
    "cache",
    "pull",
    "push",
)
HEAVY = (
    "torch",
    "numpy",
    "PIL",
    "safetensors",
    "huggingface_hub",
    "matplotlib",
    "jinja2",
    "av",
    "onnx",
    "pyarrow",
)
ATTRIBUTE_COMMANDS = ("attributes list", "attributes learn")

HELP = """
import contextlib, io, json, sys
from facevae.cli import main
texts = []
for command in sys.argv[1:]:
    out, sys.argv = io.StringIO(), ["facevae", *command.split()]
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, command
    texts.append(out.getvalue())
loaded = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"texts": texts, "loaded": loaded}))
"""


@pytest.fixture(scope="module")
def helped():
    """What each `--help` prints, by command, and all that was imported meanwhile."""
    commands = (*COMMANDS, "attributes", *ATTRIBUTE_COMMANDS)
    asked = ["--help", *(f"{command} --help" for command in commands), "--version"]
    done = subprocess.run(
        [sys.executable, "-c", HELP, *asked], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    return dict(zip(asked, found["texts"], strict=True)), found["loaded"]


def test_help_and_version_load_nothing_heavy(helped):
    assert set(helped[1]) & set(HEAVY) == set()
    assert "typer" in helped[1]


def test_help_names_every_command_and_gives_examples_of_each(helped):
    texts = helped[0]
    for command in (*COMMANDS, *ATTRIBUTE_COMMANDS):
        assert command.split()[0] in texts["--help"]
        assert f"facevae {command}" in texts[f"{command} --help"].split("Examples", 1)[1]


@pytest.mark.parametrize("command", COMMANDS[1:5])
def test_commands_that_use_a_model_have_the_common_options(helped, command):
    text = helped[0][f"{command} --help"]
    for option in ("--model", "--device", "--output", "--json", "--quiet"):
        assert option in text


def test_the_version_is_that_of_the_package(helped):
    from importlib.metadata import version

    assert helped[0]["--version"].strip() == version("facevae")


def test_a_command_that_is_not_there_is_a_usage_error(facevae):
    done = facevae("dream", code=2)
    assert done.stdout == ""
    assert "dream" in done.stderr


# ---------------------------------------------------------------- info


def test_info_tells_all_that_a_model_is(facevae, tmp_path):
    path = tmp_path / "run" / "model.safetensors"
    bundle = dataclasses.replace(tiny_bundle(), framing=FFHQ)
    save(bundle, path)
    values = json.loads(facevae("info", "run", "--json").stdout)
    assert values["model"] == {"name": "run", "path": "run/model.safetensors"}
    assert values["num_bytes"] == path.stat().st_size
    assert values["config"] == json.loads(json.dumps(CONFIG.to_dict()))
    assert values["prior"] == bundle.prior_config.to_dict()
    assert values["framing"] == FFHQ.to_dict()
    assert values["provenance"] == bundle.provenance
    assert values["attributes"] == [dataclasses.asdict(a) for a in bundle.attributes]
    assert [a["name"] for a in values["attributes"]] == list(ATTRIBUTES)
    assert values["num_parameters"]["vae"] == sum(p.numel() for p in bundle.vae.parameters())

    done = facevae("info", FACEVAE_MODEL="run")
    for text in ("for tests", "left_eye", "extent"):
        assert text in done.stdout
    assert "4 attributes; see `facevae attributes list run`" in done.stderr


def test_the_embedded_model_is_small_sound_and_says_where_it_comes_from(facevae):
    values = json.loads(facevae("info", "default", "--json", FACEVAE_MODEL="nowhere").stdout)
    assert values["model"]["name"] == "default"
    assert values["num_bytes"] <= 45e6
    assert values["provenance"]["complete"]
    assert values["provenance"]["num_train"] > values["provenance"]["num_held_out"] > 0
    assert values["provenance"]["terms"]
    assert values["attributes"]


# ---------------------------------------------------------------- cache


def test_the_cache_is_listed_and_cleared_entry_by_entry(facevae, faces_folder, tmp_path):
    from facevae.data.dataset import load_faces

    cache = tmp_path / "elsewhere"
    for size in (32, 64):
        load_faces([faces_folder], size, cache=cache)
    listed = json.loads(facevae("cache", "--json", "--cache-dir", cache).stdout)["entries"]
    assert [e["size"] for e in listed] == [32, 64]
    for entry in listed:
        assert entry["num_faces"] == 48
        assert entry["num_bytes"] >= 48 * 3 * entry["size"] ** 2
        assert entry["sources"] == [str(faces_folder)]
    cleared = facevae("cache", "--clear", listed[0]["key"], "--cache-dir", cache)
    assert cleared.stdout == f"{listed[0]['folder']}\n"
    assert [p.name for p in (cache / "faces").iterdir()] == [listed[1]["key"]]
    facevae("cache", "--clear", "all", FACEVAE_CACHE=str(cache))
    assert list((cache / "faces").iterdir()) == []


def test_an_unfinished_entry_says_of_which_data_it_is(facevae, faces_folder, tmp_path):
    from facevae.data.dataset import load_faces

    faces = load_faces([faces_folder], 32, cache=tmp_path / "cache")
    assert len(faces.train) > 40
    del faces
    (folder,) = (tmp_path / "cache" / "faces").iterdir()
    (folder / "index.json").unlink()
    (entry,) = json.loads(facevae("cache", "--json").stdout)["entries"]
    assert (entry["sources"], entry["complete"]) == ([str(faces_folder)], False)
    assert "(unfinished)" in facevae("cache", COLUMNS="300").stdout


def test_half_of_a_model_has_a_name_of_its_own(facevae, tmp_path):
    save(tiny_bundle(), tmp_path / "tiny.safetensors")
    for name in ("tiny-half.safetensors", "tiny-half-1.safetensors"):
        assert facevae("export", "tiny.safetensors", "--half").stdout == f"{name}\n"
    assert load(tmp_path / "tiny-half.safetensors").half
    (tmp_path / "tiny.safetensors").rename(tmp_path / "model.safetensors")
    assert facevae("export", ".", "--half").stdout == f"{tmp_path.name}-half.safetensors\n"


def test_a_model_is_not_written_under_a_name_that_says_nothing_of_it(facevae, tmp_path):
    for name in ("h", "h.png"):
        done = facevae("export", "tiny.safetensors", "--half", "-o", name, code=2)
        assert done.stderr.startswith(f"error: {name}: a model is a .safetensors file")
    assert "say what to write" in facevae("export", "tiny.safetensors", code=2).stderr
    textured = facevae("export", "tiny.safetensors", "--half", "--texture", 0.5, code=2)
    assert "--texture 0.5: is for ONNX" in textured.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("h")]


def test_a_cache_entry_that_is_not_there_cannot_be_cleared(facevae):
    done = facevae("cache", "--clear", "nothing", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: --clear nothing: ")


def test_an_empty_cache_is_said_to_be_empty(facevae):
    done = facevae("cache")
    assert done.stdout == ""
    assert "nothing" in done.stderr


def test_help_shows_what_stands_in_brackets(facevae):
    assert "user/repo(@revision)" in facevae("info", "--help").stdout
