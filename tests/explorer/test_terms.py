"""The numbers on the page against the layer itself, in all three terms of its logits."""

import base64
import json

import numpy as np
import pytest
import torch
from torch import nn

from botnet.errors import DataError
from botnet.explorer import terms
from botnet.explorer.terms import Rounded, block_terms, most_moved
from botnet.layers import MHSA2d
from botnet.visualize.attention import AttentionProbe
from tests.support.explorer import attention_by_terms


def peaked(dim, heads, stride, position, content, size) -> MHSA2d:
    """A layer in float64 whose attention is far from even."""
    layer = MHSA2d(dim, heads, stride, position, content, feat_size=size).double()
    nn.init.normal_(layer.qkv.weight, std=2 * dim**-0.5)
    return layer


def run(layer: MHSA2d, x: torch.Tensor) -> AttentionProbe:
    probe = AttentionProbe(layer, "layer4.0")
    probe.record(layer, (x,))
    return probe


def unpacked(block: dict, name: str) -> np.ndarray | None:
    """A term of the page, (heads, N, width)."""
    if block[name] is None:
        return None
    integers = np.frombuffer(base64.b64decode(block[name]["integers"]), "<i2")
    scales = np.array(block[name]["scales"])
    cells = block["height"] * block["width"]
    return integers.reshape(block["heads"], cells, -1) * scales[:, None, None]


def on_the_page(block: dict, mode: str) -> np.ndarray:
    """Softmax (heads, N, N) of all cells from what the page holds."""
    q, k, position = (unpacked(block, name) for name in ("queries", "keys", "position"))
    height, width = block["height"], block["width"]
    logits = np.zeros((block["heads"], height * width, height * width))
    if k is not None and mode != "position":
        logits += q @ k.transpose(0, 2, 1)
    if position is not None and mode != "content":
        for key in range(height * width):
            row, column = divmod(key, width)
            logits[..., key] += position[..., row] + position[..., height + column]
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("size", [(5, 8), (7, 3), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("position", "content"), [("relative", True), ("absolute", True), ("relative", False), (None, True)]
)
def test_each_term_gives_the_weights_of_the_layer_within_the_rounding(position, content, stride, size):
    torch.manual_seed(0)
    layer, x = (
        peaked(24, 3, stride, position, content, (4, 4)),
        torch.randn(1, 24, *size, dtype=torch.float64),
    )
    block = json.loads(json.dumps(block_terms(run(layer, x))))
    assert (block["height"], block["width"], block["stride"]) == (*size, stride)
    assert (block["keys"] is not None, block["position"] is not None) == (content, position is not None)
    assert 0 <= block["rounding"] < 0.01
    modes = ["both"] + ["content", "position"] * bool(content and position)
    for mode in modes:
        expected = attention_by_terms(layer, x, mode).numpy()
        np.testing.assert_allclose(
            on_the_page(block, mode), expected, rtol=np.expm1(2 * block["rounding"]), atol=0
        )
    if size != (1, 1):
        assert expected.max() * x[0, 0].numel() > 2


def test_the_bound_on_the_rounding_holds_and_is_not_far_above_it(monkeypatch):
    """Rounded so coarsely that the bound is nearly reached, in one of many draws."""
    monkeypatch.setattr(terms, "LEVELS", 40)
    reached = []
    for seed in range(60):
        torch.manual_seed(seed)
        layer, x = peaked(1, 1, 1, "relative", True, (1, 2)), torch.randn(1, 1, 1, 2, dtype=torch.float64)
        block = block_terms(run(layer, x))
        for mode in ("both", "content", "position"):
            change = np.abs(on_the_page(block, mode) / attention_by_terms(layer, x, mode).numpy() - 1).max()
            bound = np.expm1(2 * block["rounding"])
            assert change <= bound
            reached.append(change / bound)
    assert max(reached) > 0.3


def test_what_rounds_to_itself():
    rounded = Rounded.of(np.array([[[terms.LEVELS, -3.0]], [[0.0, 0.0]]]))
    np.testing.assert_array_equal(rounded.values, [[[terms.LEVELS, -3.0]], [[0.0, 0.0]]])
    assert most_moved(rounded, None, Rounded.of(np.zeros((2, 1, 2))), None) > 0


def test_three_blocks_at_512_pixels_fit_into_eight_megabytes():
    """Those of BoT50, with their share of the 8 MB that the picture and the page leave."""
    size = 0
    for stride, side in ((2, 32), (1, 16), (1, 16)):
        layer = MHSA2d(512, 4, stride, feat_size=(side, side))
        size += len(json.dumps(block_terms(run(layer, torch.randn(1, 512, side, side)))))
    assert size < 7_000_000


def test_attention_that_is_not_finite_is_refused():
    x = torch.full((1, 8, 2, 2), torch.nan)
    with pytest.raises(DataError, match=r"layer4\.0: .* not finite; .* earlier checkpoint"):
        block_terms(run(MHSA2d(8, 2, feat_size=(2, 2)), x))
