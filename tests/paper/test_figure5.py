"""Figure 5: its numbers are those of the papers, and its fronts are Pareto fronts."""

import csv
import json
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
from matplotlib import pyplot as plt
from PIL import Image

import botnet  # noqa: F401 - registers the networks with timm
from botnet.cli import main
from botnet.errors import DataError
from botnet.paper.figure5 import figure5, pareto_front, read_networks, read_steps

pytestmark = pytest.mark.long


@pytest.fixture
def measured(tmp_path):
    """Two settings as benchmarks/family.py writes them."""
    path = tmp_path / "family.json"
    seconds = {"T7": [2.0, 1.0, 9.0], "T7, reference attention": [3.0], "B7": [4.0], "DeiT-B-384": [5.0]}
    cases = {
        "float32, batch 2, CPU, headline": {
            "setting": "float32, batch 2, CPU",
            "batch": 2,
            "seconds": seconds,
        },
        "bfloat16, batch 1, CPU, small": {
            "setting": "bfloat16, batch 1, CPU",
            "batch": 1,
            "seconds": {"T3": [0.5]},
        },
    }
    path.write_text(json.dumps(cases))
    return path


def test_networks_are_in_timm_with_their_image_sizes():
    networks = {network.name: network for network in read_networks()}
    assert len(networks) == 9 + 8 + 1 + 3 + 2
    for network in networks.values():
        assert 76 < network.top1 < 85
        if network.network:
            assert timm.is_model(network.network)
            # timm trained its EfficientNets at other sizes.
            if not network.network.startswith("efficientnet"):
                assert timm.get_pretrained_cfg(network.network).input_size[1] == network.image_size
    assert networks["T7"].step_ms == 804.5
    assert networks["T7"].madds == pytest.approx(45.8, abs=0.05)  # as printed
    assert networks["SENet-152"].madds == pytest.approx(19.04, abs=0.005)
    assert networks["B7"].madds == 37


def test_the_front_holds_what_no_other_point_dominates():
    points = {
        "cheap": (1.0, 70.0),
        "better": (2.0, 80.0),
        "dearer and worse": (3.0, 75.0),
        "dearer and as good": (4.0, 80.0),
        "best": (5.0, 81.0),
        "as dear as best": (5.0, 79.0),
        "twin of cheap": (1.0, 70.0),
    }
    assert pareto_front(points) == ["cheap", "better", "best"]


def test_step_times_are_medians_per_image(measured):
    steps = read_steps(measured, read_networks())
    assert steps["float32, batch 2, CPU"] == {
        "T7": 1000.0,  # median 2 s, two images
        "B7": 2000.0,
        "B7-RA": 2000.0,
        "DeiT-B-384": 2500.0,
        "ViT-B/16": 2500.0,
    }
    assert steps["bfloat16, batch 1, CPU"] == {"T3": 500.0}


def test_pictures_and_table(measured, tmp_path, capsys):
    assert main(["report", "figure5", "--measured", str(measured), "--output", str(tmp_path / "out")]) == 0
    written = [Path(line.removesuffix(": written")) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == [
        "figure5_madds.png",
        "figure5_step_float32_batch_2_CPU.png",
        "figure5_step_bfloat16_batch_1_CPU.png",
        "figure5.csv",
    ]
    for path in written[:3]:
        assert Image.open(path).width > 800
    with written[3].open(newline="") as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(read_networks())
    t7, b7 = rows["T7"], rows["B7"]
    assert t7["M.Adds are"] == "counted"
    assert b7["M.Adds are"] == "printed"
    assert "Srinivas" in t7["reported by"]
    # T7 is as accurate as B7-RA and costs more multiply-adds.
    assert t7["G multiply-adds: on the Pareto front"] == "0"
    assert rows["B7-RA"]["G multiply-adds: on the Pareto front"] == "1"
    assert t7["ms an image, float32, batch 2, CPU"] == "1000"
    assert t7["ms an image, float32, batch 2, CPU: on the Pareto front"] == "1"
    assert rows["B7-RA"]["ms an image, float32, batch 2, CPU: on the Pareto front"] == "0"
    assert rows["T3"]["ms an image, float32, batch 2, CPU"] == ""


def test_no_name_overlaps_a_line(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    figure5(tmp_path)
    monkeypatch.undo()
    axes = drawn[0].axes[0]
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == {network.name for network in read_networks()}
    for line in axes.lines:
        corners = line.get_transform().transform(line.get_xydata())
        if line.get_linestyle() != "None":  # points between them, a pixel or less apart
            corners = [a + (b - a) * t for a, b in pairwise(corners) for t in np.linspace(0, 1, 1000)]
        for name, box in boxes.items():
            assert not any(box.contains(x, y) for x, y in corners), name
    for (name, one), (other, two) in combinations(boxes.items(), 2):
        assert not one.overlaps(two), (name, other)
    assert all(axes.bbox.contains(*corner) for box in boxes.values() for corner in box.corners())
    plt.close(drawn[0])


@pytest.mark.parametrize("content", [None, "nonsense", "[1]", '{"case": {"seconds": {"T7": []}}}'])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "family.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"family\.json.*make"):
        figure5(tmp_path / "out", path)
    assert not (tmp_path / "out").exists()
