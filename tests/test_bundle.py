import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CONFIG, differing, tensors_of, tiny_bundle, with_texture

from facevae.attributes.interactions import no_axes
from facevae.config import ModelConfig, PriorConfig
from facevae.errors import FacevaeError, ModelError
from facevae.faces.framing import FFHQ, POINTS
from facevae.latent_space.latents import decode, latents_of_seeds
from facevae.models.bundle import load, save
from facevae.models.formats import FORMAT
from facevae.networks.prior import NormalPrior, fitted_gaussian
from facevae.networks.texture import Texture


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save(tiny_bundle(), path)
    return path


def parts_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), dict(file.metadata())


def rewritten(path: Path, *, metadata=None, **values: object) -> None:
    """Set JSON `values` in the metadata of the model at `path`, or replace all of its metadata."""
    tensors, texts = parts_of(path)
    texts |= {key: json.dumps(value) for key, value in values.items()}
    save_file(tensors, path, texts if metadata is None else metadata)


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as stored before format 10: a covariance, and whole matrices, not triangles."""
    side = len(tensors["latents.mean"])
    changed = {"latents.covariance": 7 * torch.eye(side), **tensors}
    for name in ("latents.covariance", "prior.factor", "prior.whitening.factor"):
        if name not in tensors:
            continue
        triangle = tensors[name].tolist()
        side = next(n for n in range(1, 999) if n * (n + 1) // 2 == len(triangle))
        matrix = torch.zeros(side, side)
        for i in range(side):
            for j in range(i + 1):
                matrix[i, j] = triangle.pop(0)
                if "covariance" in name:
                    matrix[j, i] = matrix[i, j]
        changed[name] = matrix
    return changed


def refusal(path: Path) -> str:
    """The one-line error that refuses the model at `path`, without the path it starts with."""
    with pytest.raises(ModelError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("kind", ["flow", "gaussian", "normal"])
def test_a_model_comes_back_exactly_as_it_was_saved(tmp_path, kind):
    bundle = dataclasses.replace(tiny_bundle(kind=kind), framing=FFHQ)
    save(bundle, tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors")
    assert differing(tensors_of(bundle), tensors_of(found)) == []
    for name in ("config", "prior_config", "framing", "attributes", "provenance"):
        assert getattr(found, name) == getattr(bundle, name), name
    assert latents_of_seeds(found, [1, 2]).equal(latents_of_seeds(bundle, [1, 2]))
    assert not found.vae.training


def test_a_model_without_attributes_and_framing_comes_back(tmp_path):
    bundle = dataclasses.replace(
        tiny_bundle(),
        framing=None,
        attributes=[],
        directions=None,
        scorers=None,
        interactions=None,
    )
    save(bundle, tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors")
    assert (found.framing, found.attributes) == (None, [])
    assert (found.directions, found.scorers, found.interactions) == (None, None, None)


def test_a_model_whose_directions_are_the_same_for_every_face_comes_back(tmp_path):
    bundle, path = tiny_bundle(), tmp_path / "a.safetensors"
    bundle.axes, bundle.interactions = no_axes(CONFIG.latent_dim), bundle.interactions[:, :0]
    save(bundle, path)
    assert not {"axes.rows", "axes.offsets", "interactions"} & parts_of(path)[0].keys()
    assert differing(tensors_of(load(path)), tensors_of(bundle)) == []


def test_a_model_with_a_fitted_prior_holds_no_second_covariance(tmp_path):
    for kind in ("flow", "gaussian", "normal"):
        bundle, path = tiny_bundle(kind=kind), tmp_path / f"{kind}.safetensors"
        save(bundle, path)
        assert ("latents.covariance" in parts_of(path)[0]) == (kind == "normal")
    fitted, drawn = tiny_bundle(kind="gaussian"), torch.randn(200_000, CONFIG.latent_dim)
    torch.testing.assert_close(
        torch.cov(fitted.prior(drawn).T), fitted.latent_covariance, rtol=0.03, atol=0.03
    )


def test_a_model_knows_whether_it_was_stored_at_half_precision(tmp_path):
    path = tmp_path / "a.safetensors"
    for half in (True, False):
        save(tiny_bundle(), path, half=half)
        assert load(path).half is half
        types = {n: t.dtype for n, t in load_file(path).items() if t.is_floating_point()}
        assert types.pop("interactions") == (torch.float8_e4m3fn if half else torch.float32)
        assert set(types.values()) == {torch.float16 if half else torch.float32}


def test_half_precision_keeps_what_edits_and_distances_are_made_of(tmp_path):
    bundle, path = tiny_bundle(), tmp_path / "half.safetensors"
    save(bundle, path, half=True)
    found = load(path)
    for name in ("directions", "scorers", "latent_mean"):
        torch.testing.assert_close(
            getattr(found, name), getattr(bundle, name), rtol=1e-3, atol=1e-5, msg=name
        )
    # a product of two numbers that are each off by 0.05 %
    torch.testing.assert_close(
        found.latent_covariance, bundle.latent_covariance, rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(found.axes.rows, bundle.axes.rows, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.interactions, bundle.interactions, rtol=0.07, atol=2e-3)
    assert found.attributes == bundle.attributes


def test_what_half_precision_cannot_hold_is_not_stored(tmp_path):
    bundle, path = tiny_bundle(kind="normal"), tmp_path / "a.safetensors"
    bundle.latent_covariance[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"latents\.covariance .*--half"):
        save(bundle, path, half=True)
    assert list(tmp_path.iterdir()) == []
    save(bundle, path)
    assert load(path).latent_covariance.equal(bundle.latent_covariance)
    bundle.latent_covariance[0, 0] = 1
    bundle.interactions[1, 1, 1] = 1e3
    with pytest.raises(ModelError, match=r"interactions .*--half"):
        save(bundle, tmp_path / "b.safetensors", half=True)


def test_the_spread_is_the_root_of_the_variances():
    bundle = tiny_bundle()
    torch.testing.assert_close(bundle.latent_spread.square(), bundle.latent_covariance.diag())


def test_half_precision_keeps_faces_within_one_level_at_half_the_bytes(tmp_path):
    bundle = tiny_bundle(ModelConfig(32, 64, (32, 32)))
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save(bundle, whole)
    save(bundle, half, half=True)
    found = load(half)
    assert {t.dtype for n, t in tensors_of(found).items() if "num_batches" not in n} == {
        torch.float32
    }
    pictures = [decode(b.vae, latents_of_seeds(b, list(range(16)))) for b in (bundle, found)]
    assert pictures[0].std(0).mean() > 0.02, "the faces should differ for this to mean anything"
    assert (pictures[0] - pictures[1]).abs().max() <= 1 / 255
    assert half.stat().st_size < 0.6 * whole.stat().st_size


def test_saving_replaces_the_old_model_and_leaves_nothing_beside_it(saved):
    save(tiny_bundle(kind="normal"), saved)
    assert load(saved).prior_config.kind == "normal"
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_as_one(tmp_path, zipped):
    path = tmp_path / "model.pt"
    weights = tiny_bundle().vae.state_dict()
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    assert "pickle" in refusal(path)


def test_a_file_of_latents_is_no_model_and_no_pickle(tmp_path):
    np.savez(tmp_path / "faces.npz", latents=np.zeros((2, 5)))
    assert "not a model" in refusal(tmp_path / "faces.npz")


def test_a_sound_model_is_no_pickle_whatever_the_length_of_its_header(tmp_path):
    # a safetensors file begins with its header's length, and 19,280 is spelt "PK"
    bundle, path = tiny_bundle(), tmp_path / "model.safetensors"
    bundle.provenance["note"] = ""
    for _ in range(2):
        save(bundle, path)
        header = int.from_bytes(path.read_bytes()[:8], "little")
        bundle.provenance["note"] += "x" * (int.from_bytes(b"PK", "little") - header)
    assert path.read_bytes()[:2] == b"PK"
    assert load(path).provenance == bundle.provenance


def test_a_missing_tensor_is_named(saved):
    tensors, texts = parts_of(saved)
    del tensors["vae.encoder.mean.weight"]
    save_file(tensors, saved, texts)
    assert refusal(saved) == "tensor vae.encoder.mean.weight is missing"


def test_a_surplus_tensor_is_named(saved):
    tensors, texts = parts_of(saved)
    save_file({**tensors, "vae.encoder.third": torch.zeros(2)}, saved, texts)
    assert refusal(saved) == "tensor vae.encoder.third is not known"


def test_a_misshapen_tensor_is_named_with_both_shapes(saved):
    tensors, texts = parts_of(saved)
    tensors["latents.mean"] = torch.zeros(CONFIG.latent_dim + 1)
    save_file(tensors, saved, texts)
    text = refusal(saved)
    assert "latents.mean" in text
    assert f"({CONFIG.latent_dim + 1},)" in text
    assert f"({CONFIG.latent_dim},)" in text


NEW = ("latents.covariance", "directions", "scorers", "interactions", "axes.offsets")


@pytest.mark.parametrize("name", NEW)
def test_what_edits_need_may_not_be_missing(saved, name):
    save(tiny_bundle(kind="normal"), saved)
    tensors, texts = parts_of(saved)
    del tensors[name]
    save_file(tensors, saved, texts)
    assert refusal(saved) == f"tensor {name} is missing"


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("shape", [(), (8,), (4, 7), (8, 4), (5, 8), (7, 7), (1, 8, 8)])
def test_what_edits_need_may_not_be_misshapen(saved, name, shape):
    save(tiny_bundle(kind="normal"), saved)
    tensors, texts = parts_of(saved)
    tensors[name] = torch.ones(shape)
    save_file(tensors, saved, texts)
    assert refusal(saved).startswith(f"tensor {name} has shape {shape}, ")


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_edits_need_may_not_be_infinite(saved, name, value):
    save(tiny_bundle(kind="normal"), saved)
    tensors, texts = parts_of(saved)
    tensors[name].view(-1)[1] = value
    save_file(tensors, saved, texts)
    assert refusal(saved) == f"tensor {name} holds numbers that are not finite"


OF_ATTRIBUTES = ("directions", "scorers", "interactions", "axes.rows", "axes.offsets")


@pytest.mark.parametrize("name", OF_ATTRIBUTES)
def test_directions_of_no_attribute_are_not_known(saved, name):
    tensors, texts = parts_of(saved)
    for other in set(OF_ATTRIBUTES) - {name}:
        del tensors[other]
    save_file(tensors, saved, texts | {"attributes": "[]"})
    assert refusal(saved) == f"tensor {name} is not known"


def test_a_factor_whose_covariance_overflows_is_refused(saved):
    tensors, texts = parts_of(saved)
    tensors["prior.whitening.factor"][0] = 1e30
    save_file(tensors, saved, texts)
    assert refusal(saved) == "the prior's factor holds numbers that are too large"


def test_the_covariance_of_the_latents_outlives_the_prior(tmp_path):
    bundle = tiny_bundle()
    before = bundle.latent_covariance
    bundle.set_prior(NormalPrior(), PriorConfig())
    assert bundle.latent_covariance.equal(before)
    save(bundle, tmp_path / "normal.safetensors")
    assert load(tmp_path / "normal.safetensors").latent_covariance.equal(before)
    bundle.set_prior(tiny_bundle(kind="gaussian").prior, PriorConfig("gaussian"))
    assert bundle.mean_covariance is None


def test_all_of_a_model_goes_to_a_device():
    for kind in ("flow", "normal"):
        bundle = tiny_bundle(kind=kind).to(torch.device("meta"))
        parts = [bundle.axes.rows, bundle.axes.offsets, bundle.mean_covariance, bundle.latent_mean]
        parts += [bundle.directions, bundle.scorers, bundle.interactions]
        parts += [*bundle.vae.state_dict().values(), *bundle.prior.state_dict().values()]
        assert {t.device.type for t in parts if t is not None} == {"meta"}


@pytest.mark.parametrize("shape", [(), (0, 8), (2, 7), (2, 8, 1), (3, 8)])
def test_axes_may_not_be_misshapen(saved, shape):
    tensors, texts = parts_of(saved)
    tensors["axes.rows"] = torch.ones(shape)
    save_file(tensors, saved, texts)
    assert "has shape" in refusal(saved)


def test_a_covariance_of_no_faces_is_refused(saved):
    save(tiny_bundle(kind="normal"), saved)
    tensors, texts = parts_of(saved)
    tensors["latents.covariance"][9] = -1  # the last of the fourth row, which is on the diagonal
    save_file(tensors, saved, texts)
    assert "latents.covariance" in refusal(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved, value):
    tensors, texts = parts_of(saved)
    tensors["vae.decoder.dense.bias"][3] = value
    save_file(tensors, saved, texts)
    text = refusal(saved)
    assert "vae.decoder.dense.bias" in text
    assert "finite" in text


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(saved, dtype):
    tensors, texts = parts_of(saved)
    tensors["vae.decoder.dense.bias"] = tensors["vae.decoder.dense.bias"].to(dtype)
    save_file(tensors, saved, texts)
    assert "vae.decoder.dense.bias" in refusal(saved)


def test_another_format_number_says_to_upgrade(saved):
    rewritten(saved, format=FORMAT + 1)
    text = refusal(saved)
    assert f"format {FORMAT + 1}" in text
    assert "upgrade" in text


@pytest.mark.parametrize("kind", ["flow", "gaussian", "normal"])
def test_a_model_of_a_format_before_held_whole_matrices(tmp_path, kind):
    bundle, path = tiny_bundle(kind=kind), tmp_path / "a.safetensors"
    if fitted := fitted_gaussian(bundle.prior):
        fitted.factor.copy_(torch.randn(fitted.factor.shape).tril())
    assert not bundle.latent_covariance.diag().eq(bundle.latent_covariance).all()
    save(bundle, path)
    tensors, texts = parts_of(path)
    path = tmp_path / "earlier.safetensors"  # not where the tensors are read from
    save_file(whole(tensors), path, texts)
    refused = "its configuration calls for" if kind == "normal" else "is not known"
    assert refused in refusal(path)
    save_file(whole(tensors), path, {**texts, "format": "9"})
    assert differing(tensors_of(load(path)), tensors_of(bundle)) == []
    tensors.setdefault("latents.covariance", torch.zeros(36))
    save_file(tensors, path, {**texts, "format": "9"})
    assert "its configuration calls for" in refusal(path)


def test_a_model_of_a_format_before_is_what_all_of_them_were(saved):
    tensors, texts = parts_of(saved)
    save_file(whole(tensors), saved, {**texts, "format": "9"})
    config = json.loads(parts_of(saved)[1]["config"])
    prior = json.loads(parts_of(saved)[1]["prior"])
    before = load(saved)
    assert prior.pop("guided_until") == 1
    for number in (4, 5, 6):
        rewritten(saved, format=number, config=config, prior=prior)
        assert load(saved).prior_config == before.prior_config
    assert prior.pop("guidance") == 1
    rewritten(saved, format=3, config=config, prior=prior)
    again = load(saved)
    assert (again.config, again.prior_config) == (before.config, before.prior_config)
    assert config.pop("residual_blocks") == 0
    assert prior.pop("residual") is False
    rewritten(saved, format=2, config=config, prior=prior)
    again = load(saved)
    assert (again.config, again.prior_config) == (before.config, before.prior_config)


def test_a_residual_model_comes_back_as_it_was(tmp_path):
    bundle = tiny_bundle(dataclasses.replace(CONFIG, residual_blocks=1))
    save(bundle, tmp_path / "residual.safetensors")
    again = load(tmp_path / "residual.safetensors")
    assert again.config == bundle.config
    assert differing(tensors_of(again), tensors_of(bundle)) == []


def test_a_finished_decoder_comes_back_with_its_texture(tmp_path):
    bundle, path = with_texture(tiny_bundle()), tmp_path / "finished.safetensors"
    save(bundle, path)
    again = load(path)
    assert differing(tensors_of(again), tensors_of(bundle)) == []
    latents = torch.zeros(1, bundle.config.latent_dim)
    made, wanted = (b.vae.decode(latents, 1.0) for b in (again, bundle))
    torch.testing.assert_close(made, wanted)
    tensors, texts = parts_of(path)
    missing = next(name for name in tensors if ".textured." in name)
    del tensors[missing]
    save_file(tensors, path, texts)
    assert missing in refusal(path)


def _as_in(version: int, num_blocks: int, tensors: dict) -> dict:
    """The tensors of a current model as a file of an earlier format version stores them."""
    old = {}
    for name, tensor in tensors.items():
        before, is_of_blocks, after = name.partition(".textured.blocks.")
        level, number, rest = after.split(".", 2) if is_of_blocks else ("", "-1", "")
        if ".textured.mends." in name or int(number) >= num_blocks:
            continue
        numbered = version >= 8 or not is_of_blocks
        old[name if numbered else f"{before}{is_of_blocks}{level}.{rest}"] = tensor
    return whole(old)


DEEP = dataclasses.replace(CONFIG, filters=(8, 8, 8, 8))


@pytest.mark.parametrize(("version", "num_blocks"), [(5, 0), (6, 1), (7, 1), (8, 2)])
def test_a_texture_of_an_earlier_format_has_blocks_that_add_nothing_yet(
    tmp_path, version, num_blocks
):
    bundle, path = with_texture(tiny_bundle(DEEP)), tmp_path / "finished.safetensors"
    save(bundle, path)
    tensors, texts = parts_of(path)
    old = _as_in(version, num_blocks, tensors)
    assert len(old) < len(tensors)
    path = tmp_path / "earlier.safetensors"  # not where the tensors are read from
    save_file({n: t for n, t in old.items() if n != "latents.covariance"}, path, texts)
    assert (".textured.mends." if version == 8 else ".textured.blocks.") in refusal(path)
    save_file(old, path, {**texts, "format": f"{version}"})
    latents = torch.ones(1, bundle.config.latent_dim)
    again = load(path)
    with torch.no_grad():
        for blocks in bundle.vae.decoder.textured.blocks:
            for block in blocks[num_blocks:]:
                for parameter in block.layers[-1].parameters():
                    parameter.zero_()
        for mend in bundle.vae.decoder.textured.mends:
            for parameter in mend.layers[-1].parameters():
                parameter.zero_()
        for texture in (0.4, 1.0):
            made, wanted = (b.vae.decode(latents, texture) for b in (again, bundle))
            torch.testing.assert_close(made, wanted)
    # what they add can be learned
    again.vae.requires_grad_().decode(latents, 1.0).mean().backward()
    textured = again.vae.decoder.textured
    assert len(textured.mends) == 2
    for block in (*textured.mends, *(b for blocks in textured.blocks for b in blocks)):
        assert block.layers[-1].weight.grad.abs().max() > 0
    save(again, path)
    assert differing(tensors_of(load(path)), tensors_of(again)) == []


def test_blocks_that_a_file_lacks_take_no_memory_before_the_rest_is_sound(tmp_path, monkeypatch):
    bundle, path = with_texture(tiny_bundle()), tmp_path / "finished.safetensors"
    save(bundle, path)
    tensors, texts = parts_of(path)
    config = json.loads(texts["config"]) | {"filters": [2048] * len(bundle.config.filters)}
    new = (".textured.blocks.", ".textured.mends.")
    old = {name: t for name, t in tensors.items() if not any(part in name for part in new)}
    old["latents.covariance"] = torch.eye(bundle.config.latent_dim)
    save_file(old, path, {**texts, "format": "5", "config": json.dumps(config)})
    for begin in ("begin_blocks", "begin_mends"):
        monkeypatch.setattr(Texture, begin, lambda *_: pytest.fail("before it is known"))
    assert "its configuration calls for" in refusal(path)


def test_metadata_that_are_not_json_are_refused(saved):
    tensors, texts = parts_of(saved)
    save_file(tensors, saved, texts | {"config": "{size: 32"})
    assert "not JSON" in refusal(saved)


@pytest.mark.parametrize("key", ["prior", "framing", "attributes", "provenance"])
def test_missing_metadata_are_named(saved, key):
    texts = parts_of(saved)[1]
    del texts[key]
    rewritten(saved, metadata=texts)
    assert key in refusal(saved)


def sound(**changes: object) -> dict:
    return {**CONFIG.to_dict(), **changes}


ONE = {"name": "A", "num_positives": 1, "num_negatives": 1, "accuracy": None}
PRIOR = PriorConfig().to_dict()
NEEDS_ATTRIBUTE = "attribute A: needs a name, two counts, a unit and held-out figures"
UNSOUND = {
    "a field that is not known": ({"config": sound(depth=3)}, "ModelConfig needs exactly"),
    "a missing field": ({"config": {"size": 32}}, "ModelConfig needs exactly"),
    "a size that is no size": ({"config": sound(size=33)}, "size=33: must be"),
    "a size that is no whole number": ({"config": sound(size=32.0)}, "size=32.0: must be"),
    "a size that is a list": ({"config": sound(size=[32])}, "size=(32,): must be"),
    "a latent_dim in words": ({"config": sound(latent_dim="8")}, "latent_dim=8: must be"),
    "filters that are no list": ({"config": sound(filters=8)}, "filters 8: needs"),
    "filters of nothing": ({"config": sound(filters=[])}, "filters (): needs"),
    "a dropout beyond numbers": ({"config": sound(dropout=10**400)}, "int too large"),
    "no dictionary": ({"config": [1, 2]}, "ModelConfig needs exactly"),
    "a prior that is not known": ({"prior": {**PRIOR, "kind": "vamp"}}, "prior vamp: must be"),
    "a prior without guidance": (
        {"prior": {k: v for k, v in PRIOR.items() if k != "guidance"}},
        "PriorConfig needs exactly",
    ),
    "a prior that is null": ({"prior": None}, "PriorConfig needs exactly"),
    "attributes that are a number": ({"attributes": 4}, "not iterable"),
    "attributes of nothing": ({"attributes": [{}] * 4}, "missing 3 required"),
    "attributes without names": ({"attributes": [{**ONE, "name": 5}] * 4}, "attribute 5: needs"),
    "attributes with words for counts": (
        {"attributes": [{**ONE, "num_positives": "x"}] * 4},
        NEEDS_ATTRIBUTE,
    ),
    "attributes with words for figures": (
        {"attributes": [{**ONE, "accuracy": "x"}] * 4},
        NEEDS_ATTRIBUTE,
    ),
    "attributes without a unit": ({"attributes": [{**ONE, "unit": None}] * 4}, NEEDS_ATTRIBUTE),
    "attributes with a unit beyond numbers": (
        {"attributes": [{**ONE, "unit": 10**400}] * 4},
        "int too large",
    ),
    "attributes learned in no known way": (
        {"attributes": [{**ONE, "method": "x"}] * 4},
        NEEDS_ATTRIBUTE,
    ),
    "attributes of the format before": (
        {"attributes": [{**ONE, "scale": 1.0}] * 4},
        "unexpected keyword argument 'scale'",
    ),
    "framing with one eye": ({"framing": {"left_eye": [0.5, 0.5]}}, "a framing needs"),
    "framing without places": ({"framing": dict.fromkeys(FFHQ.to_dict(), 5)}, "not iterable"),
    "framing in words": (
        {"framing": {key: ["a", "b", "c"] for key in FFHQ.to_dict()}},
        "could not convert string to float",
    ),
    "framing that is no dictionary": ({"framing": [1, 2]}, "a framing needs"),
    "framing that is an empty list": ({"framing": []}, "a framing needs"),
    "framing that is nought": ({"framing": 0}, "a framing needs"),
    "framing of the format before": (
        {"framing": {k: [0.5, 0.5, 0.1] for k in POINTS}},
        "a framing needs",
    ),
    "framing of no extent": ({"framing": {**FFHQ.to_dict(), "extent": 0}}, "extent must be"),
    "framing beyond numbers": (
        {"framing": {**FFHQ.to_dict(), "nose": [0.5, 10**400, 0.1]}},
        "int too large",
    ),
    "provenance that is a number": ({"provenance": 3}, "not iterable"),
}


@pytest.mark.parametrize(("values", "reason"), UNSOUND.values(), ids=UNSOUND.keys())
def test_unsound_metadata_are_refused(saved, values, reason):
    rewritten(saved, **values)
    text = refusal(saved)
    assert text.startswith("its metadata are not sound (")
    assert reason in text


def test_a_plain_safetensors_file_is_no_facevae_model(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    assert "not a facevae model" in refusal(path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    assert "not a sound safetensors file" in refusal(saved)


def test_random_bytes_are_refused(tmp_path):
    path = tmp_path / "noise.safetensors"
    path.write_bytes(random.Random(3).randbytes(5000))
    refusal(path)


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    assert "no such" in refusal(tmp_path / "nothing.safetensors")
    assert "no such" in refusal(tmp_path)


def test_a_config_that_claims_huge_sizes_allocates_nothing(saved):
    resource = pytest.importorskip("resource")
    huge = ModelConfig(256, 8192, (4096,) * 4)
    flow = {"kind": "flow", "width": 8192, "blocks": 64}
    flow |= {"residual": False, "guidance": 1.0, "guided_until": 1.0}
    rewritten(saved, config=huge.to_dict(), prior=flow)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "tensor" in refusal(saved)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, "one of these tensors alone holds over 500 MB"  # kilobytes, or bytes


def test_damage_anywhere_is_survived_or_refused_in_one_line(saved):
    sound_bytes = saved.read_bytes()
    header = 8 + int.from_bytes(sound_bytes[:8], "little")
    draw = random.Random(0)
    refused = []
    for round_ in range(300):
        data = bytearray(sound_bytes)
        # two of three in the header, where there is more to misunderstand
        place = draw.randrange(header if round_ % 3 else len(data))
        kind = draw.choice(("change", "cut", "insert", "repeat", "digit"))
        if kind == "change":
            data[place] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del data[place : place + draw.randint(1, 40)]
        elif kind == "insert":
            data[place:place] = draw.randbytes(draw.randint(1, 9))
        elif kind == "repeat":
            data[place:place] = data[place : place + 30]
        else:
            digits = [i for i in range(8, header) if data[i] in b"0123456789"]
            data[draw.choice(digits)] = draw.choice(b"0123456789-.")
        saved.write_bytes(data)
        try:
            load(saved)
        except FacevaeError as error:
            refused.append(str(error))
    assert len(refused) > 150
    for text in refused:
        assert text.startswith(f"{saved}: ")
        assert "\n" not in text


def test_the_model_in_the_package_opens_without_torchs_compiler():
    """Many operations on the meta device import the compiler, which takes two seconds."""
    program = (
        "import sys; from facevae.models.loading import load_model; load_model('default'); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
