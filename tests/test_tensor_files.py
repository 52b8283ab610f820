import pytest
import torch
from tiny import differing

from facevae.errors import ModelError
from facevae.models.tensor_files import load_state, save_state


def test_a_state_comes_back_exactly_with_its_values(tmp_path):
    path = tmp_path / "state.safetensors"
    tensors = {"a": torch.randn(3, 2), "b.step": torch.tensor(7.0), "c": torch.arange(3)}
    save_state(path, tensors, {"step": 12, "key": "x"})
    found, metadata = load_state(path)
    assert differing(tensors, found) == []
    assert (metadata["step"], metadata["key"]) == (12, "x")


def test_a_damaged_state_is_refused_by_name(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.randn(100)}, {"step": 1, "key": ""})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="sound") as caught:
        load_state(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_state_with_changed_numbers_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.zeros(100)}, {"step": 1, "key": ""})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="a damaged state"):
        load_state(path)
