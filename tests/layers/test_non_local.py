"""The Non-Local block against its formula in loops."""

import pytest
import torch
from torch import nn

from botnet.layers.non_local import NonLocal2d


@pytest.mark.parametrize("project_values", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_equals_the_formula(project_values: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = NonLocal2d(8, project_values=project_values).double().eval()
    for p in block.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    q, k, v = (f(x).flatten(2) for f in (block.query, block.key, block.value))
    mean = torch.zeros_like(v)
    for b in range(2):
        for i in range(v.shape[-1]):
            weights = torch.stack([torch.exp(q[b, :, i] @ k[b, :, j]) for j in range(v.shape[-1])])
            for j, weight in enumerate(weights):
                mean[b, :, i] += weight / weights.sum() * v[b, :, j]
    expected = x + block.norm(block.proj(mean.unflatten(2, size)))
    assert torch.allclose(block(x), expected, rtol=1e-10)


def test_new_block_is_the_identity_and_gets_gradients() -> None:
    block = NonLocal2d(8)
    x = torch.randn(2, 8, 4, 6)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.norm.weight.grad.abs().sum() > 0


def test_widths_of_the_two_forms() -> None:
    assert NonLocal2d(16).proj.in_channels == 8
    assert NonLocal2d(16, project_values=False).proj.in_channels == 16
    with pytest.raises(ValueError, match="reduction of 2 does not divide the 7 channels"):
        NonLocal2d(7)
    with pytest.raises(ValueError, match="reduction of 0 does not divide the 8 channels"):
        NonLocal2d(8, reduction=0)
