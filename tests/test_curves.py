import numpy as np
import pytest
import torch
from PIL import Image

from facevae.charts.curves import draw_curves, draw_figures, draw_kl, draw_prior
from facevae.charts.latent_plots import draw_histograms
from facevae.charts.plots import is_available, save

plt = pytest.importorskip("matplotlib.pyplot")
MAGENTA = (255, 0, 255)


def some_records(num_epochs: int = 3) -> list[dict]:
    found = []
    for epoch in range(1, num_epochs + 1):
        where = {"step": 10 * epoch, "images": 160 * epoch, "mse": 0.1 / epoch}
        for event in ("steps", "epoch"):
            more = {"psnr": 10.0 + epoch, "samples": f"samples-{epoch:04}.png"}
            found.append({"event": event, **where, "kl_nats": 5.0 * epoch, **more})
    return found


def share_of(path, colour) -> float:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return float((abs(pixels - colour).max(-1) < 12).mean())


def test_samples_are_pinned_along_the_curve(tmp_path):
    assert is_available()
    plain, pinned = tmp_path / "plain.png", tmp_path / "pinned.png"
    save(draw_curves(some_records(), tmp_path), plain)
    for epoch in (1, 3):
        Image.new("RGB", (128, 128), MAGENTA).save(tmp_path / f"samples-{epoch:04}.png")
    save(draw_curves(some_records(), tmp_path), pinned)
    assert share_of(plain, MAGENTA) == 0
    assert share_of(pinned, MAGENTA) > 0.005
    # a third picture between them fills more of the panel
    Image.new("RGB", (128, 128), MAGENTA).save(tmp_path / "samples-0002.png")
    save(draw_curves(some_records(), tmp_path), plain)
    assert share_of(plain, MAGENTA) > 1.3 * share_of(pinned, MAGENTA)


def test_samples_of_a_finish_are_not_pinned_along_the_divergence(tmp_path):
    records = some_records()
    for step in range(5):
        finish = {"event": "epoch", "stage": "finish", "step": 40 + step, "psnr": 14.0}
        records.append({**finish, "images": 10_000 * (step + 1), "samples": "finish.png"})
    Image.new("RGB", (128, 128), MAGENTA).save(tmp_path / "finish.png")
    save(draw_kl(records, tmp_path), tmp_path / "kl.png")
    assert share_of(tmp_path / "kl.png", MAGENTA) == 0


@pytest.mark.parametrize("num_epochs", [0, 1])
def test_curves_of_few_records_are_drawn(tmp_path, num_epochs):
    save(draw_curves(some_records(num_epochs), tmp_path), tmp_path / "curves.png")
    assert share_of(tmp_path / "curves.png", (255, 255, 255)) > 0.3


def test_drawing_leaves_no_figure_open_and_no_setting_changed(tmp_path):
    before = dict(plt.rcParams)
    save(draw_curves(some_records(), tmp_path), tmp_path / "curves.png")
    save(draw_histograms(torch.randn(50, 3)), tmp_path / "latents.png")
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "latents.png"]


def test_the_losses_of_a_finish_have_panels_of_their_own():
    place = {"step": 1, "images": 10, "seconds": 1.0}
    records = [{"event": "finish", **place, "generator_loss": 0.7, "mse": 0.1}]
    figure = draw_figures(records)
    drawn = {ax.get_ylabel(): [line.get_label() for line in ax.lines] for ax in figure.axes}
    assert drawn["finish: generator loss"] == ["finish"]
    assert drawn["mean squared error"] == ["finish"]


def test_losses_of_the_prior_are_drawn_over_the_latents_seen():
    place = {"event": "prior", "images": 10, "seconds": 1.0}
    steps = [{**place, "step": i, "latents": 1024 * i, "flow_loss": 1 / i} for i in (20, 40, 60)]
    steps[-1] |= {"train_flow_loss": 0.02, "held_out_flow_loss": 0.03}
    (axes,) = draw_prior(some_records() + steps).axes
    drawn = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
    }
    assert drawn == {
        "training steps": ([20480, 40960, 61440], [1 / 20, 1 / 40, 1 / 60]),
        "training faces": ([61440], [0.02]),
        "held-out faces": ([61440], [0.03]),
    }
