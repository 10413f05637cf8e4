"""The layer for TorchScript computes what `MHSA2d` computes."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from botnet.layers import MHSA2d
from botnet.layers.torchscript import scriptable


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("position", "content"), [("relative", True), ("relative", False), ("absolute", True), (None, True)]
)
def test_equals_the_layer_at_any_size(stride: int, position: str | None, content: bool) -> None:
    torch.manual_seed(0)
    layer = MHSA2d(16, 2, stride=stride, position=position, content=content, feat_size=(5, 4)).double()
    nn.init.normal_(layer.qkv.weight)
    scripted = torch.jit.script(scriptable(nn.Sequential(layer)))
    for size in ((5, 4), (3, 2), (1, 1), (2, 4), (9, 7), (4, 13)):
        x = torch.randn(2, 16, *size, dtype=torch.float64)
        assert torch.allclose(scripted(x), layer(x), rtol=1e-9), size


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_pruned_tables_keep_their_axes() -> None:
    layer = MHSA2d(16, 2, feat_size=(4, 4)).double()
    nn.init.normal_(layer.qkv.weight)
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    expected = layer(x)
    prune.custom_from_mask(layer.pos_embed, "height_rel", torch.ones_like(layer.pos_embed.height_rel))
    assert torch.allclose(torch.jit.script(layer)(x), expected, rtol=1e-9)
