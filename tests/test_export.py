"""ONNX files give what torch gives, say what they are, and nothing about this machine."""

import io
import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import ATTRIBUTES, CONFIG, differing, tensors_of, tiny_bundle, with_texture

from facevae.cli import main
from facevae.errors import ModelError, UsageError
from facevae.latent_space.edits import plan_edit
from facevae.latent_space.latents import decode, encode_pixels, latents_of_seeds
from facevae.models.bundle import load, save
from facevae.networks import prior
from facevae.system.runtime import face_noise

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from facevae.sharing import export  # noqa: E402 - what it is about is there

NAMES = ("encoder", "decoder", "prior")


def command(*arguments):
    """Run the command line within this process; returns its exit code, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["facevae", "export", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder, what the command returned, and all that it said."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    model = folder.parent / "tiny.safetensors"
    save(with_texture(tiny_bundle()), model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "SAMPLING_STEPS", 2)  # of 25, which take the exporter their time
        code, out, err = command(model, "--onnx", "-o", folder, "--json")
    assert code == 0, err
    return folder, json.loads(out), err


def run(folder, name, given):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options)
    return session.run(None, {session.get_inputs()[0].name: given.numpy()})


@pytest.mark.parametrize("count", [1, 5])
def test_each_file_gives_what_torch_gives_for_any_batch(exported, count, monkeypatch):
    folder, bundle = exported[0], with_texture(tiny_bundle())
    monkeypatch.setattr(prior, "SAMPLING_STEPS", 2)
    noise = face_noise(list(range(count)), CONFIG.latent_dim)
    (latents,) = run(folder, "prior", noise)
    expected = latents_of_seeds(bundle, list(range(count)))
    np.testing.assert_allclose(latents, expected, atol=1e-4)
    (images,) = run(folder, "decoder", expected)
    np.testing.assert_allclose(images, decode(bundle.vae, expected, 1.0), atol=1e-4)
    pixels = (255 * torch.rand(count, CONFIG.size, CONFIG.size, 3)).byte().numpy()
    mean, logvar = run(folder, "encoder", torch.from_numpy(pixels).movedim(-1, 1) / 255)
    np.testing.assert_allclose(mean, encode_pixels(bundle, pixels), atol=1e-4)
    assert logvar.shape == mean.shape


def test_the_command_says_what_it_wrote_and_how_far_it_is_from_torch(exported):
    folder, values, said = exported
    assert values["outputs"] == [
        str(folder / f) for f in (*(f"{n}.onnx" for n in NAMES), "model.json")
    ]
    assert set(values["max_differences"]) == set(NAMES)
    assert all(0 <= d < 1e-3 for d in values["max_differences"].values())
    # nothing of the exporter's own
    assert {line.split(":")[0] for line in said.splitlines()} <= {"model", "Exporting", *NAMES}
    assert {path.name for path in folder.iterdir()} == {p.split("/")[-1] for p in values["outputs"]}


def test_the_readmes_program_samples_faces_without_torch(exported, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (program,) = (block for block in programs if "onnxruntime" in block)
    monkeypatch.chdir(exported[0].parent)
    values = {}
    exec(program, values)
    assert values["images"].shape == (16, 3, CONFIG.size, CONFIG.size)
    assert 0 <= values["images"].min() < values["images"].max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_each_file_says_what_it_is_and_nothing_of_this_machine(exported, name):
    folder, values, _ = exported
    proto = onnx.load(folder / f"{name}.onnx")
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", export.OPSET)]
    texts = {p.key: p.value for p in proto.metadata_props}
    assert texts["model"] == values["model"]["name"]
    assert texts["terms"] == "for tests"
    assert json.loads(texts["attributes"]) == list(ATTRIBUTES)
    assert json.loads(texts["config"])["latent_dim"] == CONFIG.latent_dim
    assert json.loads(texts["provenance"])["epochs"] == 3
    written = (folder / f"{name}.onnx").read_bytes()
    assert b".py" not in written


def test_the_decoder_draws_the_texture_that_is_asked_for(tmp_path):
    bundle = with_texture(tiny_bundle(kind="gaussian"))
    save(bundle, tmp_path / "model.safetensors")
    code, _, err = command(
        tmp_path / "model.safetensors", "--onnx", "--texture", 0.3, "-o", tmp_path / "onnx"
    )
    assert code == 0, err
    latents = face_noise([1, 2], CONFIG.latent_dim)
    (images,) = run(tmp_path / "onnx", "decoder", latents)
    np.testing.assert_allclose(images, decode(bundle.vae, latents, 0.3), atol=1e-4)
    assert json.loads((tmp_path / "onnx" / "model.json").read_text())["texture"] == 0.3


def test_the_sheet_has_what_arithmetic_needs(exported):
    sheet = json.loads((exported[0] / "model.json").read_text())
    bundle = tiny_bundle()
    directions = [a["direction"] for a in sheet["attributes"]]
    np.testing.assert_allclose(directions, bundle.directions, atol=1e-6)
    interactions = [a["interactions"] for a in sheet["attributes"]]
    assert np.shape(interactions) == bundle.interactions.shape
    np.testing.assert_allclose([a["row"] for a in sheet["axes"]], bundle.axes.rows, atol=1e-6)
    np.testing.assert_allclose([a["offset"] for a in sheet["axes"]], bundle.axes.offsets, atol=1e-6)
    assert [a["name"] for a in sheet["attributes"]] == list(ATTRIBUTES)
    np.testing.assert_allclose(sheet["latents"]["mean"], bundle.latent_mean, atol=1e-6)
    # the README's formula makes the edit that keeps nothing
    latent = torch.randn(CONFIG.latent_dim)
    z = latent.numpy()
    for attribute in sheet["attributes"]:
        eta = np.array(attribute["direction"])
        for axis, step in zip(sheet["axes"], attribute["interactions"], strict=True):
            place = np.dot(axis["row"], z) - axis["offset"]
            eta += np.clip(place, -2.5, 2.5) * np.array(step)
        edit = plan_edit(bundle, [attribute["name"]], ["none"])
        expected = edit.apply(latent[None], torch.ones(1, 1))[0] - latent
        np.testing.assert_allclose(eta, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["normal", "gaussian"])
def test_other_priors_are_exported_too(tmp_path, kind):
    bundle = tiny_bundle(kind=kind)
    part = export._parts(bundle, 1.0)[2]
    export._export(part, tmp_path / "prior.onnx", {})
    noise = face_noise([1, 2, 3], CONFIG.latent_dim)
    (latents,) = run(tmp_path, "prior", noise)
    np.testing.assert_allclose(latents, bundle.prior(noise).detach(), atol=1e-5)


def test_a_file_that_does_not_do_as_torch_does_is_not_left(tmp_path):
    class Wrong(torch.nn.Module):
        def forward(self, noise):
            # what it does depends on something that an exporter cannot see
            return noise + (0 if torch.compiler.is_exporting() else 1)

    bundle = tiny_bundle(kind="normal")
    bundle.prior = Wrong()
    with pytest.raises(ModelError, match=r"prior\.onnx: its latents differ from torch's by 1"):
        export._export(export._parts(bundle, 1.0)[2], tmp_path / "prior.onnx", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_it_says_how_to_get_it(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=r"pip install 'facevae\[onnx\]'"):
        export.require_onnx()


# ---------------------------------------------------------------- the model file


def test_a_model_is_written_at_half_precision(tmp_path):
    before, after = tmp_path / "tiny.safetensors", tmp_path / "deep" / "half.safetensors"
    save(tiny_bundle(), before)
    assert command(before, "--half", "-o", after)[:2] == (0, f"{after}\n")
    assert after.stat().st_size < 0.7 * before.stat().st_size
    a, b = tensors_of(load(before)), tensors_of(load(after))
    for name in ("covariance", "interactions"):  # a product of what is stored, and float8
        rtol = 0.07 if name == "interactions" else 1e-3
        torch.testing.assert_close(a.pop(name), b.pop(name), rtol=rtol, atol=2e-3)
    assert differing({k: t.half() for k, t in a.items()}, {k: t.half() for k, t in b.items()}) == []
    assert load(after).provenance == load(before).provenance


def test_where_onnx_files_would_go_there_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tiny_bundle(kind="normal"), tmp_path / "tiny.safetensors")
    Path("plain").touch()
    code, _, err = command("tiny.safetensors", "--onnx", "-o", "plain")
    assert code == 2
    assert "plain: is a file" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--onnx, --half, or -o"),
        (("-o", "model.pt"), ".safetensors"),
        (("--onnx", "--half"), "--half"),
        (("--onnx", "-o", "tiny.safetensors"), "looks like a file"),
        (("-o", "tiny.safetensors"), "the model itself"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    save(tiny_bundle(kind="normal"), tmp_path / "tiny.safetensors")
    before = (tmp_path / "tiny.safetensors").read_bytes()
    code, out, err = command("tiny.safetensors", *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert said in err
    assert (tmp_path / "tiny.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]
