"""Devices are checked, and randomness depends on its key alone."""

import itertools

import pytest
import torch

from facevae.errors import UsageError
from facevae.system import runtime


def numbers(*key):
    return torch.randn(4, generator=runtime.generator(*key)).tolist()


def test_a_generator_depends_on_its_key_alone():
    torch.manual_seed(1)
    first = numbers(7, 0, 3)
    torch.manual_seed(2)
    numbers(8, 0, 3)
    assert numbers(7, 0, 3) == first


def test_generators_leave_the_global_one_alone():
    torch.manual_seed(1)
    expected = torch.rand(1).item()
    torch.manual_seed(1)
    numbers(5, 6)
    runtime.face_noise([1, 2], 3)
    assert torch.rand(1).item() == expected


def test_every_part_of_a_key_counts():
    keys = list(itertools.product((0, 1, 2**40), (0, 1, 2), (0, 1, 1000)))
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)


def test_no_two_uses_of_a_seed_share_their_numbers():
    # the key of a face, of a pass's order, of a step's mirrors; and a seed of more than 32 bits
    keys = [(5,), (5, 0), (5, 0, 0), (5, 1, 0), (5 + 2**32,), (5 + 2**32, 0, 0), (5 + 2**33, 0, 0)]
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)


def test_face_noise_depends_on_each_seed_alone():
    together = runtime.face_noise([3, 1, 2**63 - 1, 3], 6)
    assert together.shape == (4, 6)
    assert together.dtype == torch.float32
    assert together[0].equal(together[3])
    assert not together[0].equal(together[1])
    for row, seed in zip(together, [3, 1, 2**63 - 1], strict=False):
        assert runtime.face_noise([seed], 6)[0].equal(row)
    assert runtime.face_noise([], 6).shape == (0, 6)


def test_face_noise_is_standard_normal():
    noise = runtime.face_noise(list(range(400)), 50)
    # 20,000 numbers: five standard errors of their mean and of their variance
    assert abs(noise.mean().item()) < 5 / 20_000**0.5
    assert abs(noise.var().item() - 1) < 5 * (2 / 20_000) ** 0.5


def test_the_cpu_is_always_there():
    assert runtime.select_device("cpu") == torch.device("cpu")
    assert runtime.select_device("auto").type in ("cpu", "cuda", "mps")
    assert runtime.describe(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("name", ["", "gpu", "cuda:-1", "cuda:x", "CPU!"])
def test_what_is_no_device_is_refused_with_what_may_be_named(name):
    with pytest.raises(UsageError, match="must be auto, cpu, cuda, cuda:N or mps"):
        runtime.select_device(name)


@pytest.mark.parametrize("name", ["cpu:1", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused_with_what_is(name):
    with pytest.raises(UsageError, match=f"device={name}: not on this machine; it has cpu"):
        runtime.select_device(name)


def test_full_precision_asks_for_no_gradients_and_puts_everything_back():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        with runtime.full_precision():
            assert not torch.is_grad_enabled()
            assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
        assert torch.is_grad_enabled()
        assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    finally:
        matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has no such setting"
)
def test_full_precision_may_be_asked_for_by_a_program_that_has_chosen_its_precision_the_newer_way():
    cudnn = torch.backends.cudnn
    places = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32"
        with runtime.full_precision():
            assert [place.fp32_precision for place in places] == ["ieee"] * 3
        assert [place.fp32_precision for place in places] == ["tf32"] * 3
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def test_kernels_are_tried_while_a_model_trains_and_not_where_it_is_measured():
    cudnn = torch.backends.cudnn
    assert not cudnn.benchmark
    with runtime.kernels_by_trial():
        assert cudnn.benchmark
        with runtime.full_precision():
            assert not cudnn.benchmark
        assert cudnn.benchmark
    assert not cudnn.benchmark


def test_training_precision_is_left_at_its_end():
    with runtime.training_precision(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype in (torch.bfloat16, torch.float32)
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_the_environment_names_versions_and_the_device():
    found = runtime.environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert all(isinstance(value, str) and value for value in found.values())


END_ALLOCATION = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")


@pytest.mark.parametrize("name", END_ALLOCATION)
def test_a_failed_capture_is_over_for_the_allocator_too(monkeypatch, name):
    ended = []

    def end(device, pool):
        ended.append((device, pool))
        msg = "not currently recording to this pool"
        raise RuntimeError(msg)  # as where the allocator knows already

    for known in END_ALLOCATION:
        monkeypatch.delattr(torch._C, known, raising=False)
    monkeypatch.setattr(torch._C, name, end, raising=False)
    runtime._end_allocation(torch.device("cuda:1"), (0, 7))
    assert ended == [(1, (0, 7))]
