"""The attention picture: exact weights, the right cell, and files that show them."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from botnet.cli import main
from botnet.errors import ConfigError
from botnet.layers import MHSA2d
from botnet.visualize.attention import (
    attention_layers,
    attention_picture,
    attention_sheet,
    probe_attention,
)
from tests.support import oracle
from tests.support.classification import picture, weights_file
from tests.support.detection import write_detector


@pytest.mark.parametrize(
    ("position", "content"), [("relative", True), ("relative", False), ("absolute", True), (None, True)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_weights_are_the_reference_softmax(position, content, stride):
    """The formula in float64 loops, with values that pick out each key's weight."""
    torch.manual_seed(0)
    layer = MHSA2d(12, 2, stride, position, content, feat_size=(3, 3)).double()
    nn.init.normal_(layer.qkv.weight)
    x = torch.randn(2, 12, 2, 3, dtype=torch.float64)  # 6 cells, heads of width 6
    # Values that pick out one cell each: with them a head's output is its row of the softmax.
    tables = [table.detach().numpy() for table in layer.pos_embed.parameters()] if position else []
    expected = np.stack([_softmax(layer, x, tables, cell) for cell in range(6)], 2)
    cells = torch.tensor([4, 0, 5])
    weights = layer.attention_weights(x, cells)
    assert weights.shape == (2, 2, 3, 6)
    torch.testing.assert_close(weights, torch.from_numpy(expected)[:, :, cells])
    # What the layer itself computes from its values is these weights' mean.
    if stride == 1:
        values = layer.qkv(x)[:, 24:].unflatten(1, (2, 6)).flatten(3)  # B, heads, d, N
        out = (layer.attention_weights(x, torch.arange(6)) @ values.transpose(2, 3)).transpose(2, 3)
        torch.testing.assert_close(layer(x), out.reshape(2, 12, 2, 3))


def _softmax(layer, x, tables, cell):
    """One row of each head's softmax (B, heads, N), by loops over the keys."""
    batch, dim, height, width = x.shape
    weight, d = layer.qkv.weight.detach().numpy()[:, :, 0, 0], dim // layer.heads
    y, z = divmod(cell, width)
    rows = np.zeros((batch, layer.heads, height * width))
    for b in range(batch):
        for head in range(layer.heads):
            w_q, w_k = (weight[part * dim + head * d :][:d] for part in range(2))
            query = w_q @ x[b, :, y, z].numpy() / np.sqrt(d)
            for key in range(height * width):
                row, column = divmod(key, width)
                logit = query @ (w_k @ x[b, :, row, column].numpy()) if layer.content else 0.0
                if layer.position == "relative":
                    logit += query @ oracle.relative_row(tables[0], row - y, height)
                    logit += query @ oracle.relative_row(tables[1], column - z, width)
                elif layer.position == "absolute":
                    logit += query @ oracle.absolute_row(tables[0], row, height)
                    logit += query @ oracle.absolute_row(tables[1], column, width)
                rows[b, head, key] = np.exp(logit)
    return rows / rows.sum(-1, keepdims=True)


def test_the_probe_records_the_first_layer_until_the_context_ends():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), MHSA2d(8, 2, feat_size=(4, 6)), MHSA2d(8, 4, feat_size=(4, 6)))
    x = torch.randn(1, 3, 4, 6)
    with probe_attention(model) as (probe,), torch.inference_mode():
        model(x)
        weights, cell = probe.weights(0.99, 0.5)
    assert cell == (3, 3)
    assert probe.layer is model[1]
    expected = model[1].attention_weights(model[0](x), torch.tensor([3 * 6 + 3]))
    torch.testing.assert_close(weights, expected.reshape(2, 4, 6))
    before = probe.map
    model(x)
    assert probe.map is before
    with pytest.raises(ConfigError, match="no BoT block"), probe_attention(nn.Sequential()):
        pass


def test_blocks_are_chosen_by_name_and_each_is_shown():
    torch.manual_seed(0)
    model = timm.create_model("botnet_tiny", num_classes=3, img_size=64).eval()
    names = ["layer4.0", "layer4.1", "layer4.2"]
    assert list(attention_layers(model)) == names
    with probe_attention(model, "all") as probes, probe_attention(model, names[1]) as (second,):
        model(torch.randn(1, 3, 64, 96))
    assert [probe.name for probe in probes] == names
    assert probes[0].title == "layer4.0, stage c5, map of 4 x 6 cells"
    assert probes[1].title == second.title == "layer4.1, stage c5, map of 2 x 3 cells"
    assert torch.equal(second.map, probes[1].map)
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    sheet = np.asarray(attention_sheet(image, probes, 0.5, 0.5))
    rows = [np.asarray(attention_sheet(image, [probe], 0.5, 0.5)) for probe in probes]
    np.testing.assert_array_equal(sheet, np.concatenate(rows))
    with (
        pytest.raises(ConfigError, match=r"--block c5: the BoT blocks are layer4\.0, .*; or give all"),
        probe_attention(model, "c5"),
    ):
        pass


def test_the_picture_is_bright_where_the_attention_is():
    image = torch.full((3, 60, 90), 200, dtype=torch.uint8)
    weights = torch.full((2, 4, 6), 1e-4)
    weights[0, 1, 4] = weights[1, 3, 0] = 1
    sheet = np.asarray(attention_picture(image, weights, (2, 2)).convert("L")).astype(float)
    panel = (sheet.shape[1] - 2 * 6) // 3
    assert panel == 320
    for head, (row, column) in enumerate([(1, 4), (3, 0)], start=1):
        pixels = sheet[26:, head * (panel + 6) :][:, :panel]
        cells = pixels[: 212 // 4 * 4, :318].reshape(4, 53, 6, 53).mean((1, 3))
        cells[2, 2] = 0  # where the query's cell is outlined
        assert np.unravel_index(cells.argmax(), cells.shape) == (row, column)


@pytest.mark.parametrize("pixel", [None, (50, 20)])
def test_the_command_draws_every_image(pixel, tmp_path):
    weights = weights_file(tmp_path / "w.pth", "botnet_tiny", 3)
    (tmp_path / "images").mkdir()
    for number in range(2):
        picture(number, (100, 60)).save(tmp_path / "images" / f"{number}.jpg")
    call = ["predict", "botnet_tiny", str(tmp_path / "images"), "--weights", str(weights), "--attention"]
    call += ["--size", "96", "--output", str(tmp_path / "out"), "--device", "cpu"]
    if pixel:
        call += ["--pixel", *map(str, pixel)]
    assert main(call) == 0
    drawn = sorted((tmp_path / "out" / "attention").iterdir())
    assert [path.name for path in drawn] == ["0.png", "1.png"]
    assert Image.open(drawn[0]).size == (5 * 320 + 4 * 6, 26 + 320 + 26)  # the image and four heads


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("detector") / "last.ckpt")


@pytest.mark.long
def test_the_attention_of_a_detector_is_drawn_on_its_canvas(detector, tmp_path, capsys):
    picture(1, (100, 60)).save(tmp_path / "a.jpg")
    call = ["predict", str(detector), str(tmp_path / "a.jpg"), "--attention", "--device", "cpu"]
    out = tmp_path / "out"
    assert main([*call, "--output", str(out), "--pixel", "99", "30", "--block", "all"]) == 0
    drawn = Image.open(out / "attention" / "a.png")
    assert drawn.size == (5 * 320 + 4 * 6, 3 * (26 + 320 + 26))
    pixels = np.asarray(drawn)[52:, :320]
    assert pixels[:185].mean() > 40  # the image, 128 x 77 of 128 pixels
    assert main([*call, "--output", str(tmp_path / "other"), "--pixel", "100", "30"]) == 2
    assert "100 x 60 pixels, none at 100 30" in capsys.readouterr().err
    assert main([*call, "--output", str(tmp_path / "other"), "--block", "layer4.0"]) == 2
    assert "--block layer4.0: the BoT blocks are backbone.layer4.0, " in capsys.readouterr().err
    assert main([*call, "--output", str(tmp_path / "third"), "--crop", "1"]) == 2
    assert "--crop is for classifiers" in capsys.readouterr().err


def test_a_pixel_outside_the_crop_is_refused(tmp_path, capsys):
    weights = weights_file(tmp_path / "w.pth", "botnet_tiny", 3)
    picture(1, (100, 60)).save(tmp_path / "a.jpg")
    call = ["predict", "botnet_tiny", str(tmp_path / "a.jpg"), "--weights", str(weights), "--attention"]
    assert main([*call, "--pixel", "1", "1", "--size", "96", "--output", str(tmp_path / "out")]) == 2
    assert "pixel (1, 1) of its 100 x 60 is outside the centre crop" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
