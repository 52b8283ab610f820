import torch

from facevae.networks.blocks import GroupNorm


def test_a_norm_learns_of_features_that_want_no_gradient_however_they_lie_in_memory():
    """torch's own ends the process: 2.13, on a CPU, where they are channels last."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2, 32, 8, 8, generator=draw)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        norm = GroupNorm(2, 32)
        norm(features.contiguous(memory_format=memory_format)).square().sum().backward()
        found.append((norm.weight.grad, norm.bias.grad))
    assert found[0][0].abs().max() > 1
    torch.testing.assert_close(found[1], found[0])
