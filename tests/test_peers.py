"""What docs/peers.md says of projects that are installed here."""

import re
from collections.abc import Callable
from pathlib import Path

import bottleneck_transformer_pytorch
import pytest
import timm
import torch
import transformers
from bottleneck_transformer_pytorch.bottleneck_transformer_pytorch import Attention
from einops import EinopsError
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import nn

from botnet.layers import MHSA2d
from tests.support.saved import saved_bytes

ROOT = Path(__file__).parents[1]
DIM, HEADS = 32, 2

# The layer of each project for square maps of this side.
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "botnet": lambda side: MHSA2d(DIM, HEADS, feat_size=(side, side)),
    "timm": lambda side: BottleneckAttn(DIM, num_heads=HEADS, feat_size=(side, side)),
    "lucidrains": lambda side: Attention(
        dim=DIM, heads=HEADS, dim_head=DIM // HEADS, fmap_size=(side, side), rel_pos_emb=True
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_only_this_layer_takes_maps_of_another_size(name):
    layer = LAYERS[name](8)
    assert layer(torch.randn(1, DIM, 8, 8)).shape == (1, DIM, 8, 8)
    other = torch.randn(1, DIM, 6, 11)
    if name == "botnet":
        assert layer(other).shape == other.shape
    else:
        # timm's asserts the size, lucidrains' is told by einops that the cells do not fit.
        with pytest.raises((AssertionError, EinopsError)):
            layer(other)


@pytest.mark.parametrize("name", LAYERS)
def test_only_this_layer_keeps_no_logits_of_all_pairs(name):
    side = 40
    all_pairs = HEADS * side**4 * 4  # bytes
    kept = saved_bytes(LAYERS[name](side), torch.randn(1, DIM, side, side))
    if name == "botnet":
        assert kept < all_pairs / 5
    else:
        assert kept > all_pairs


def test_timms_botnets_take_one_size_and_have_weights():
    net = timm.create_model("botnet26t_256").eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 256, 256)).shape == (1, 1000)
        with pytest.raises(AssertionError):
            net(torch.randn(1, 3, 224, 224))
    assert "botnet26t_256.c1_in1k" in timm.list_pretrained("botnet*")


def test_the_hub():
    assert callable(timm.models.push_to_hf_hub)
    assert issubclass(transformers.RfDetrForObjectDetection, transformers.utils.PushToHubMixin)
    assert not hasattr(bottleneck_transformer_pytorch.BottleStack, "push_to_hub")


def test_every_row_of_the_readmes_table_has_its_proof():
    row = r"^\| \[(.+?)\]\(docs/peers\.md#([\w-]+)\) \|(?: [y-] \|){6}$"
    table = re.findall(row, (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    proofs = re.findall(r"^## (.+)$", (ROOT / "docs" / "peers.md").read_text(), flags=re.MULTILINE)
    assert [name for name, _ in table] == proofs
    assert len(table) > 8
