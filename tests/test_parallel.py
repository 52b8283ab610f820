"""Several processes train one model: forked ones, and those of torchrun."""

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_face
from tiny import CONFIG, TRAIN, Ear, tensors_of, tiny_run
from torch import nn

from facevae.config import STAGES
from facevae.data.batches import Batches
from facevae.data.dataset import load_faces
from facevae.errors import DataError, FacevaeError, ProcessError, RunError, Stopped, UsageError
from facevae.models.bundle import load
from facevae.networks.prior import FlowPrior, GaussianPrior
from facevae.networks.vae import VAE
from facevae.stages import adversary, critic, flow_matching, network_stage, projected
from facevae.stages.adversary import FinishStage
from facevae.stages.flow_matching import PriorStage
from facevae.stages.network_stage import NetworkStage
from facevae.system import parallel
from facevae.training import prior_fit
from facevae.training.training import follow, train

CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
pytestmark = [
    pytest.mark.skipif(FORK is None, reason="no fork on this system"),
    pytest.mark.usefixtures("quick_features"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(count: int, work: Callable) -> list:
    """What `work()` returns or raises in each process of a group of `count`."""
    port = free_port()

    def one(rank: int, pipe) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            with parallel.joined(CPU):
                pipe.send(work())
        except Exception as error:  # noqa: BLE001 - any error is sent back
            is_picklable = isinstance(error, FacevaeError) or len(error.args) == 1
            pipe.send(error if is_picklable else traceback.format_exc())

    pipes = [FORK.Pipe(duplex=False) for _ in range(count)]
    processes = [FORK.Process(target=one, args=(i, pipes[i][1])) for i in range(count)]
    for process in processes:
        process.start()
    try:
        return [receive.recv() if receive.poll(60) else "silent" for receive, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("parallel")
    (root / "faces").mkdir()
    for i in range(48):
        draw_face(i, CONFIG.size).save(root / "faces" / f"{i:03}.png")
    return load_faces([root / "faces"], CONFIG.size, cache=root / "cache")


@pytest.fixture(autouse=True)
def _plainly(monkeypatch):
    """Train in float32, in which only the order of sums differs, and without plots, which are slow."""
    for module in (network_stage, flow_matching, adversary, critic, projected, prior_fit):
        monkeypatch.setattr(module, "training_precision", lambda _: nullcontext())
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def numbers(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.items()}


# batch norm takes away what a bias before it adds: its gradient is the noise of rounding alone,
# which Adam makes as large as any other
IDLE = tuple(
    f"{part}.convolutions.{i + shift}.{kind}"
    for part in ("encoder", "decoder")
    for i in range(0, 3 * len(CONFIG.filters) - (part == "decoder"), 3)
    for shift, kind in ((0, "bias"), (1, "running_mean"))
)
# and of the decoder's, those that its texture began with
IDLE += ("textured.levels.0.0.bias", "textured.levels.0.1.running_mean")


def assert_close(found: dict, wanted: dict) -> None:
    """Compare up to rounding, which may move single activations across the kink of a function."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if not name.endswith(IDLE):
            error, size = (np.sqrt(np.square(x).mean()) for x in (found[name] - value, value))
            assert error < 0.02 * size + 1e-3, name


# ---------------------------------------------------------------- the same steps as one process


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"r_loss_factor": 500.0, "ema_images": 0}, {"batch_size": 11}]
)
def test_steps_of_several_processes_are_those_of_one(faces, count, changes):
    config = dataclasses.replace(TRAIN, **changes)

    def steps() -> tuple[dict, np.ndarray]:
        torch.manual_seed(3)
        batches = Batches(faces, config.batch_size, config.seed, CPU)
        stage = NetworkStage(VAE(CONFIG), batches, config)
        terms = [stage.step(index) for index in range(4)]
        return numbers(stage.state()), torch.stack(terms).numpy()

    wanted, terms = steps()
    for found, their_terms in together(count, steps):
        assert_close(found, wanted)
        np.testing.assert_allclose(their_terms, terms, rtol=1e-3)


def test_a_process_without_a_gpu_of_its_own_is_told_what_to_do(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="LOCAL_RANK"), parallel.joined(torch.device("cuda")):
        pytest.fail("joined")


@pytest.mark.parametrize("device", [CPU, torch.device("cuda:0")], ids=str)
def test_a_process_that_has_failed_alone_does_not_wait_for_the_others(monkeypatch, device):
    """NCCL would wait for them when it shuts down, while they wait for this process."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    left = []
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(parallel.dist, "barrier", lambda: None)
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: left.append(device.type))
    with parallel.joined(device):
        pass
    assert left.pop() == device.type
    with pytest.raises(DataError), parallel.joined(device):
        raise DataError("no faces")
    assert left == ([] if device.type == "cuda" else ["cpu"])


def test_a_flow_is_fitted_alike():
    def steps() -> dict:
        draw = torch.Generator().manual_seed(8)
        torch.manual_seed(3)
        mean = torch.randn(300, CONFIG.latent_dim, generator=draw)
        prior = FlowPrior(CONFIG.latent_dim, 32, 1)
        stage = PriorStage(prior, mean, torch.full_like(mean, -3.0), epochs=20, seed=5)
        for index in range(4):
            stage.step(index)
        return numbers(stage.state())

    wanted = steps()
    for found in together(2, steps):
        assert_close(found, wanted)


@pytest.mark.parametrize("batch_size", [16, 11])
def test_a_decoder_is_finished_alike(faces, batch_size):
    config = dataclasses.replace(TRAIN, batch_size=batch_size)

    def steps() -> tuple[dict, np.ndarray]:
        torch.manual_seed(3)
        batches = Batches(faces, config.batch_size, config.seed, CPU)
        prior = GaussianPrior(CONFIG.latent_dim)
        prior.fit(torch.randn(50, CONFIG.latent_dim), torch.zeros(50, CONFIG.latent_dim))
        stage = FinishStage(VAE(CONFIG), prior, batches, config)
        terms = [stage.step(index) for index in range(3)]
        assert stage.inputs().keys() >= {"fitted.vae.encoder.mean.weight", "fitted.prior.mean"}
        return numbers(stage.state()), torch.stack(terms).numpy()

    wanted, terms = steps()
    for found, their_terms in together(2, steps):
        assert_close(found, wanted)
        np.testing.assert_allclose(their_terms, terms, rtol=1e-3)


def test_shares_are_of_all_and_of_nothing_twice(faces):
    def own() -> tuple:
        return range(11)[parallel.share(11)], Batches(faces, 11, 0, CPU)(2).numpy()

    parts = together(3, own)
    assert [i for rows, _ in parts for i in rows] == [*range(11)]
    whole = Batches(faces, 11, 0, CPU)(2)
    np.testing.assert_array_equal(np.concatenate([images for _, images in parts]), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_takes_its_statistics_from_the_whole_batch(dtype):
    features = torch.randn(7, 4, 3, 5, generator=torch.Generator().manual_seed(0)) * 3 + 20

    def normalise() -> tuple:
        norm = nn.Sequential(nn.BatchNorm2d(4))
        nn.init.uniform_(norm[0].weight, 1, 2)
        nn.init.uniform_(norm[0].bias, 1, 2)
        parallel.synchronise_norms(norm, CPU)
        own = features[parallel.share(7)].to(dtype).requires_grad_()
        out = norm(own)
        assert out.dtype == dtype
        weights = torch.linspace(-1, 1, features.numel()).view_as(features)
        loss = (out.float().square() * weights[parallel.share(7)]).flatten(1).sum(1)
        parallel.mean(loss, 7).backward()
        parallel.average_gradients(norm.parameters())
        # each process's backward is of the loss of all, once for each of them
        gradient = own.grad.float() / parallel.size()
        held = [*norm[0].buffers(), norm[0].weight.grad, norm[0].bias.grad]
        return out.detach().float().numpy(), gradient.numpy(), [t.numpy() for t in held]

    def seeded() -> tuple:
        torch.manual_seed(2)
        return normalise()

    out, gradient, held = seeded()
    parts = together(2, seeded)
    tolerance = {"rtol": 1e-3, "atol": 1e-4 if dtype == torch.float32 else 0.05}
    np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), out, **tolerance)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), gradient, **tolerance)
    for _, _, theirs in parts:
        for found, wanted in zip(theirs, held, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0.02, atol=tolerance["atol"])


def test_a_batch_that_is_too_small_for_all_is_refused(faces):
    first, second = together(2, lambda: Batches(faces, 1, 0, CPU).size)
    assert isinstance(first, RunError)
    assert "batches of 1: too small for 2 processes; raise --batch-size" in str(first)
    assert isinstance(second, ProcessError)
    assert str(second) == f"process 1: {first}"


# ---------------------------------------------------------------- what they say to each other


def test_the_lead_tells_the_others():
    def told() -> tuple:
        lead = parallel.is_lead()
        tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(7)} if lead else {}
        held = parallel.tensors_from_lead(tensors, CPU)
        return parallel.from_lead("news" if lead else None), numbers(held)

    for news, held in together(3, told):
        assert news == "news"
        np.testing.assert_array_equal(held["a"], [[0, 3], [1, 4], [2, 5]])
        assert held["b"] == 7


@pytest.mark.parametrize("asked", [0, 1])
def test_all_stop_after_the_same_step(asked):
    def stopped() -> tuple[int, int]:
        accord = parallel.Accord(CPU)
        for step in range(10_000):
            wanted = step >= 5 and parallel.rank() == asked
            if number := accord(signal.SIGTERM if wanted else 0):
                return step, number
        return -1, 0

    first, second = together(2, stopped)
    assert first == second
    assert first[0] >= 5
    assert first[1] == signal.SIGTERM


def test_the_first_of_a_machine_goes_first(tmp_path):
    def enter() -> bool:
        with parallel.first_on_node():
            found = (tmp_path / "made").exists()
            time.sleep(0.2)
            (tmp_path / "made").touch()
            return found

    assert together(3, enter) == [False, True, True]


def test_a_process_that_fails_says_so_and_ends_the_others():
    def fail_one() -> None:
        if parallel.rank() == 1:
            msg = "disk: gone"
            raise DataError(msg)
        parallel.from_lead("news")
        parallel.average_gradients([_with_gradient()])

    first, second = together(2, fail_one)
    assert str(second) == "process 1: disk: gone"
    assert isinstance(first, RunError)
    assert "another process of this run has ended; the same command goes on" in str(first)


def _with_gradient() -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    return parameter


# ---------------------------------------------------------------- runs


def test_a_run_of_several_goes_on_with_fewer_and_ends_as_one(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_AGREED_MILLISECONDS", 0)  # at each step
    config = dataclasses.replace(TRAIN, stages=STAGES, finish_epochs=1)
    wanted = train(tiny_run(tmp_path / "one", faces, train=config), Ear())
    run = tiny_run(tmp_path / "run", faces, train=config)
    original = NetworkStage.step

    def stop_at_3(self: NetworkStage, index: int) -> torch.Tensor:
        if index == 3 and parallel.rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(self, index)

    def part(*, stops: bool) -> str:
        NetworkStage.step = stop_at_3 if stops else original
        try:
            if parallel.is_lead():
                ear = Ear()
                train(run, ear)
                return " ".join(ear.notices)
            return str(follow(run))
        except Stopped as stopped:
            return f"stopped by {stopped.signal_number}"

    assert together(3, lambda: part(stops=True)) == ["stopped by 15"] * 3
    first, second = together(2, lambda: part(stops=False))
    assert "going on with the network after step" in first
    assert second == "None"
    found = load(run.folder / "model.safetensors")
    assert_close(numbers(tensors_of(found)), numbers(tensors_of(wanted)))
    ear = Ear()
    train(run, ear)
    assert "nothing to do" in ear.notices[-1]
    assert together(2, lambda: part(stops=False)) == [ear.notices[-1], "None"]


def test_time_is_no_budget_for_several(faces, tmp_path):
    config = dataclasses.replace(TRAIN, max_seconds=60.0)
    run = tiny_run(tmp_path / "run", faces, train=config)

    def start() -> None:
        if parallel.is_lead():
            train(run, Ear())
        follow(run)

    first, _ = together(2, start)
    assert "--max-time is the time of one process; where several train, say --epochs" in str(first)


def test_torchrun_trains_and_a_lost_process_ends_it(faces_folder, facevae, tmp_path):
    options = ["--size", 32, "--latent-dim", 4, "--prior-epochs", 2, "--batch-size", 16]
    command = ["train", faces_folder, *options, "-o", "run"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    launched = [sys.executable, *launcher, str(free_port()), "-m", "facevae", *map(str, command)]
    environment = {**os.environ, "FACEVAE_CACHE": str(tmp_path / "cache"), "PYTHONWARNINGS": ""}
    process = subprocess.Popen(
        [*launched, "--epochs", "100000"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and "epoch" in metrics.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    (lost,) = (pid for pid in children_of(process.pid) if rank_of(pid) == "1")
    os.kill(lost, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0, err
    assert out == ""
    assert err.count("faces to train on") == 1
    assert err.count("another process of this run has ended; the same command goes on") == 1
    assert "Traceback" not in err.split("ChildFailedError")[0].split("torch/distributed")[0]
    known = json.loads(metrics.read_text().splitlines()[-1])["step"]
    facevae(*command, "--epochs", known // 3 + 2)
    assert load(tmp_path / "run" / "model.safetensors").provenance["complete"]


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def rank_of(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((v.decode() for v in variables if v.startswith(b"RANK=")), "").removeprefix("RANK=")
