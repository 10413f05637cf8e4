"""The study of the mechanism: what its scripts count, repeat and measure."""

import csv
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import nn

from botnet.layers import MHSA2d
from botnet.models.complexity import multiply_adds, total

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import study  # noqa: E402
import study_detectors  # noqa: E402
import study_explorer  # noqa: E402
import study_report  # noqa: E402


def counts(name: str) -> tuple[int, int]:
    trunk = study.Reader(study.NETWORKS[name][1], 2).trunk
    return sum(p.numel() for p in trunk.parameters()), total(multiply_adds(trunk, (128, 128)))


def test_the_resnets_of_bots_size_have_its_counts():
    parameters, products = counts("bot")
    assert counts("resnet_params")[0] == pytest.approx(parameters, rel=0.01)
    assert counts("resnet_madds")[1] == pytest.approx(products, rel=0.01)
    # The nearest width: one step to either side is farther away.
    for name, which, goal in (("resnet_params", 0, parameters), ("resnet_madds", 1, products)):
        label, network = study.NETWORKS[name]
        off = abs(counts(name)[which] - goal)
        for step in (-4, 4):
            study.NETWORKS["beside"] = (
                label,
                replace(network, widths=(*network.widths[:3], network.widths[3] + step)),
            )
            try:
                assert abs(counts("beside")[which] - goal) > off
            finally:
                del study.NETWORKS["beside"]


def test_every_run_is_planned_once_and_a_first_table_comes_first():
    runs = study.planned()
    assert len(runs) == len(set(runs)) == 10 * 3 * 3 + 10
    assert {run[:2] for run in runs[:20]} == {(t, n) for t in ("cue", "direction") for n in study.NETWORKS}
    assert {run[2] for run in runs[:20]} == {0}


def test_a_finished_run_is_not_repeated_and_an_interrupted_one_leaves_no_row(tmp_path, monkeypatch):
    trained = []

    def train(*run):
        trained.append(run)
        if run == ("cue", "qk", 0) and trained.count(run) == 1:
            raise KeyboardInterrupt
        return nn.Linear(1, 1), dict.fromkeys(study.FIELDS[3:-2], 0.5)

    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(study, "pictures", lambda *_: None)
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(study, "commit", lambda: "abc")
    table, runs = tmp_path / "study.csv", [("cue", name, 0) for name in ("bot", "qk", "qr")]
    with pytest.raises(KeyboardInterrupt):
        study.run_all(runs, table)
    assert [row["network"] for row in study.read_rows(table)] == ["bot"]
    study.run_all(runs, table)
    assert trained == [runs[0], runs[1], runs[1], runs[2]]
    assert [row["network"] for row in study.read_rows(table)] == ["bot", "qk", "qr"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "study.csv"]


def test_a_finished_detector_is_not_trained_again(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(study_detectors, "commit", lambda script: "abc")
    monkeypatch.setattr(study_detectors, "CELLS_CSV", tmp_path / "cells.csv")
    monkeypatch.setattr(
        study_detectors,
        "cells_run",
        lambda data, *run: trained.append(run) or dict.fromkeys(study_detectors.CELLS_FIELDS[2:6], 1 / 3),
    )
    with pytest.raises(SystemExit, match=r"no blood cells here.*--only digits"):
        study_detectors.run_cells(tmp_path)
    (tmp_path / "test.json").touch()
    study_detectors.run_cells(tmp_path)
    planned = [(network, seed) for seed in range(3) for network in ("resnet_tiny", "botnet_tiny")]
    assert trained == planned
    study_detectors.run_cells(tmp_path)
    assert trained == planned
    rows = study.read_rows(tmp_path / "cells.csv")
    assert [(row["network"], int(row["seed"])) for row in rows] == planned
    assert {row["test_AP"] for row in rows} == {"0.3333"}


def test_gains_on_the_digits_are_of_the_same_seeds():
    def row(network, seed, ap):
        values = network, "wide", 6, seed, ap, ap, 1, "abc"
        return dict(zip(study_detectors.DIGITS_FIELDS, map(str, values), strict=True))

    rows = [row("resnet_tiny", 0, 0.2), row("botnet_tiny", 0, 0.25), row("resnet_tiny", 1, 0.3)]
    assert study_detectors.digits_table(rows).splitlines()[2:] == [
        "| 0.5-2.0 | 6 | 1 | 0.200 | 0.250 | +0.050 | 0.200 | 0.250 |"
    ]
    rows.append(row("botnet_tiny", 1, 0.2))
    assert "| 2 | 0.250 ± 0.071 | 0.225 ± 0.035 | +0.050, -0.100 |" in study_detectors.digits_table(rows)


def test_the_committed_rows_are_of_the_plan():
    with (ROOT / "docs" / "study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    done = [(row["task"], row["network"], int(row["seed"])) for row in rows]
    assert len(done) == len(set(done))
    assert set(done) <= set(study.planned())
    assert all(int(row["steps"]) == study.STEPS for row in rows)


def test_the_class_is_read_at_the_cell_of_the_object():
    torch.manual_seed(0)
    model = study.Reader(study.NETWORKS["bot"][1], 3).eval()
    pixels = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    box = [70, 5, 20, 24]  # its centre is (80, 17)
    assert study.cell(box) == (0, 2)
    objects = torch.tensor([[[*study.cell(box), 0, 0]], [[3, 1, 0, 0]]])
    logits, c5 = model(pixels, objects), model.c5(pixels)
    assert c5.shape == (2, 384, 4, 4)
    torch.testing.assert_close(logits[0, 0], model.head(c5[0, :, 0, 2]))
    torch.testing.assert_close(logits[1, 0], model.head(c5[1, :, 3, 1]))


def test_a_start_is_the_one_of_its_name():
    torch.manual_seed(0)
    for start, qkv, tables in (
        ("authors", 0.01, 24**-0.5),
        ("fan-in", 96**-0.5, 24**-0.5),
        ("timm", 96**-0.5, 1),
    ):
        layer = MHSA2d(96, 4, feat_size=(40, 40))
        study.start_attention(layer, start)
        assert layer.qkv.weight.std().item() == pytest.approx(qkv, rel=0.05)
        for table in layer.pos_embed.parameters():
            assert table.std().item() == pytest.approx(tables, rel=0.1)


def test_timms_start_has_timms_attention():
    """timm's layer does not scale the position term: the same attention has larger tables here."""
    torch.manual_seed(0)
    peer = BottleneckAttn(96, feat_size=(5, 5), num_heads=4, qk_ratio=1.0).eval()
    assert peer.pos_embed.height_rel.std().item() == pytest.approx(24**-0.5, rel=0.2)
    layer = MHSA2d(96, 4, feat_size=(5, 5))
    layer.load_state_dict(peer.state_dict())
    for table in layer.pos_embed.parameters():
        table.data *= 24**0.5
    x = torch.randn(2, 96, 5, 5)
    torch.testing.assert_close(layer(x), peer(x), rtol=1e-4, atol=1e-5)


def test_even_attention_has_an_entropy_of_one_and_no_spread():
    model = study.Reader(study.NETWORKS["bot"][1], 2)
    first = study.first_attention(model)
    nn.init.zeros_(first.qkv.weight)
    data = study.Pictures(torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8), torch.empty(0), [])
    entropy, spread = study.attention_state(model, data, 4)
    assert entropy == pytest.approx(1, abs=1e-5)
    assert spread == pytest.approx(0, abs=1e-5)


def test_sharp_attention_has_an_entropy_near_zero_and_a_large_spread():
    torch.manual_seed(0)
    model = study.Reader(study.NETWORKS["bot"][1], 2)
    study.first_attention(model).qkv.weight.data *= 12
    data = study.Pictures(torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8), torch.empty(0), [])
    entropy, spread = study.attention_state(model, data, 4)
    assert 0 < entropy < 0.3
    assert 20 < spread < 200


def test_cells_that_a_box_touches():
    box = [30.5, 64, 18, 16]  # columns 30.5 to 48.5, rows 64 to 80
    touched = study_report.touched(box, (8, 8)).view(8, 8)
    pixels = torch.zeros(256, 256)  # two to a pixel
    pixels[128:160, 61:97] = 1
    assert torch.equal(touched, nn.functional.max_pool2d(pixels[None], 32)[0] > 0)
    assert touched.sum() == 1 * 3


def test_the_receptive_field_of_a_single_convolution_is_its_window():
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 32, stride=32)

        def c5(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.conv(pixels)

    data = study.Pictures(torch.zeros(3, 3, 128, 128, dtype=torch.uint8), torch.empty(0), [])
    field = study_report.receptive_field(Single(), data)
    assert (field[:32, :32] > 0).all()
    assert field.sum() == pytest.approx(field[:32, :32].sum())
    away = study_report.distances()
    assert away[:32, :32].max() == pytest.approx(math.hypot(15.5, 15.5))


def test_mean_and_standard_deviation_over_seeds():
    assert study_report.shown([0.5, 0.7]) == "0.600 ± 0.141"
    assert study_report.shown([0.5]) == "0.500"


def test_the_explorer_shows_the_read_outs_answer_at_the_object():
    """As a detection, of the pixels that the study gives the network."""
    torch.manual_seed(0)
    model = study.Reader(study.NETWORKS["bot"][1], 2).eval()
    pixels = torch.randint(0, 256, (128, 128, 3), dtype=torch.uint8)
    told = study_explorer.Told(model, ["with zero", "with one"], [70, 5, 20, 24])
    found = told.predict(pixels.numpy(), threshold=0)
    scores = model(pixels.permute(2, 0, 1)[None], torch.tensor([[[0, 2]]]))[0, 0].softmax(-1)
    assert found.xyxy.tolist() == [[70, 5, 90, 29]]
    assert found.data["class_name"] == [["with zero", "with one"][int(scores.argmax())]]
    assert found.confidence == pytest.approx(scores.max().item(), rel=1e-5)
