from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import Ear

from facevae.config import ModelConfig, TrainConfig
from facevae.data.dataset import Faces
from facevae.networks.prior import FlowPrior, sample_latents
from facevae.stages.flow_matching import PriorStage
from facevae.training.prior_fit import GUIDANCES, _Draws, _warn_of_memorising, best_guidance
from facevae.training.run_folders import RunFolder

DIM = 4


def posteriors(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return mean, torch.full_like(mean, -6.0)


def test_what_a_flow_learns_by_heart_is_seen_on_other_faces():
    torch.manual_seed(0)
    train, held_out = posteriors(5, seed=1), posteriors(200, seed=2)
    flow = FlowPrior(DIM, 64, 1, residual=True)
    stage = PriorStage(flow, *train, epochs=60 * PriorStage.batch_size // 5, seed=0)
    stage.batch_size, stage.learning_rate, stage.ema_decay = 256, 3e-2, 0.9  # soon
    own, others = (_Draws(*found, seed=3) for found in (train, held_out))
    before = own.loss(flow), others.loss(flow)
    for index in range(stage.budget.num_steps):
        stage.step(index)
    assert own.loss(flow) < 0.9 * before[0]
    assert others.loss(flow) > before[1]


def test_a_flow_is_measured_alike_each_time_and_on_as_many_draws_of_few_faces():
    flow = FlowPrior(DIM, 16, 1, residual=True)
    flow.whitening.fit(*posteriors(100, seed=1))
    few, again = (_Draws(*posteriors(3, seed=2), seed=3) for _ in range(2))
    assert few.loss(flow) == few.loss(flow) == again.loss(flow)
    many = _Draws(*(part.repeat_interleave(500, 0) for part in posteriors(3, seed=2)), seed=3)
    assert many.loss(flow) == pytest.approx(few.loss(flow), rel=0.01)


def fields(colours: torch.Tensor, _: float = 0.0) -> torch.Tensor:
    """Images (N, 3, 32, 32) in [0, 1] of one colour each, decoded from latents (N, 3)."""
    return (0.5 + 0.1 * colours).clamp(0, 1).view(-1, 3, 1, 1).expand(-1, 3, 32, 32)


def test_a_flow_is_guided_so_that_samples_differ_as_much_as_faces_do():
    """Latents are colours, and the flow spreads them in proportion to its guidance."""
    flow = FlowPrior(3, width=8, blocks=1, residual=True).eval()
    learned = flow.velocity

    def velocity(points, times):
        with_gaussian = learned(points, times)
        return with_gaussian + (flow.guidance * 0.15) * points

    flow.velocity = velocity
    draw, found = torch.Generator().manual_seed(1), set()
    noise = torch.randn(2000, 3, generator=draw)
    for wanted in (1.2, 1.3, 1.4):
        colours = wanted * torch.randn(600, 3, generator=draw)
        pixels = (255 * fields(colours)).byte().permute(0, 2, 3, 1).numpy()
        faces = Faces(pixels, [str(i) for i in range(600)], np.arange(600), np.arange(0), [], "")
        model = ModelConfig(size=32, latent_dim=3, filters=(4,))
        run = SimpleNamespace(faces=faces, device=torch.device("cpu"), model=model)
        told = []
        work = SimpleNamespace(run=run, progress=lambda *which, told=told: told.append(which))
        chosen = best_guidance(work, flow, SimpleNamespace(decode=fields))
        assert {len(GUIDANCES)} == {total for _, _, total in told}
        assert told[-1][1] == len(GUIDANCES)
        assert flow.guidance == 1
        spread = {g: sample_latents(flow, noise, guidance=g).std().item() for g in GUIDANCES}
        least = min(abs(s - wanted) for s in spread.values())
        assert abs(spread[chosen] - wanted) < least + 0.05
        found.add(chosen)
    assert len(found) > 1


def warned(folder, held_out, **settings) -> list[str]:
    """The notices after the fit of a flow with these held-out losses."""
    folder, ear = RunFolder(folder), Ear()
    for i, loss in enumerate(held_out, start=1):
        place = {"event": "prior", "step": i, "images": 0, "seconds": 0.0, "latents": 100 * i}
        folder.record({**place, "flow_loss": 1.0})
        folder.record({**place, "flow_loss": 1.0, "held_out_flow_loss": loss})
    run = SimpleNamespace(train=TrainConfig(**settings))
    work = SimpleNamespace(run=run, folder=folder, listener=ear)
    _warn_of_memorising(work, num_latents=50)
    return ear.notices


def test_a_prior_that_memorises_is_told_of_with_what_to_do(tmp_path):
    (said,) = warned(tmp_path, [1.5, 1.4, 1.5])
    assert said.startswith(f"{tmp_path}: the prior begins to memorise its faces")
    assert "risen from 1.400 to 1.500; lower --prior-epochs, in another folder" in said
    assert said.endswith("(it was best after 4)")


def test_where_time_was_the_budget_epochs_are_named_first(tmp_path):
    (said,) = warned(tmp_path, [1.5, 1.4, 1.5], max_seconds=60.0)
    assert "; name --epochs instead of --max-time, and lower --prior-epochs" in said


@pytest.mark.parametrize("held_out", [[1.5, 1.401, 1.402], [1.5, 1.4, 1.3], [1.5], []])
def test_of_a_prior_that_does_not_nothing_is_told(tmp_path, held_out):
    assert warned(tmp_path, held_out) == []
