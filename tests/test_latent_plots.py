import pytest
import torch
from test_curves import share_of

from facevae.charts.latent_plots import draw_histograms
from facevae.charts.plots import save

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("num_dims", [1, 2, 60])
def test_histograms_of_any_number_of_dimensions_are_drawn(tmp_path, num_dims):
    latents = torch.randn(300, num_dims, generator=torch.Generator().manual_seed(0))
    save(draw_histograms(latents), tmp_path / "latents.png")
    blue, orange = (31, 119, 180), (255, 127, 14)  # matplotlib's tab:blue and tab:orange
    assert share_of(tmp_path / "latents.png", blue) > 0.01
    assert share_of(tmp_path / "latents.png", orange) > 0


def test_without_latents_near_0_only_the_density_is_drawn(tmp_path):
    save(draw_histograms(torch.tensor([[9.0, 0.1], [-8.0, 0.2]])), tmp_path / "latents.png")
    assert share_of(tmp_path / "latents.png", (255, 127, 14)) > 0


def test_narrow_latents_make_higher_histograms_than_wide_ones(tmp_path):
    shares = []
    for scale in (0.2, 1.0):
        rng = torch.Generator().manual_seed(0)
        latents = scale * torch.randn(2000, 1, generator=rng)
        save(draw_histograms(latents), tmp_path / "latents.png")
        shares.append(share_of(tmp_path / "latents.png", (31, 119, 180)))
    # both have the same area, but the axes end at the top of the higher one
    assert shares[0] < shares[1]
