"""The page of a run: complete, self-contained, and honest about what is missing."""

import json
import re
import shutil

import pytest
from PIL import Image

from botnet.cli import main
from botnet.report.write import write_page
from tests.support import classification, recipes

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def detector_run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    recipe = recipes.write_recipe(folder / "recipe.yaml", digits, folder / "run")
    assert main(["fit", "--config", str(recipe)]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    classification.write_images(folder / "train")
    classification.write_images(folder / "val", count=3, seed=1)
    recipe = classification.write_recipe(folder / "recipe.yaml", folder, folder / "run")
    assert main(["fit", "--config", str(recipe)]) == 0
    return folder / "run"


def text_of(page):
    """The page's text, and the kinds of its images."""
    html = page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:image/|#)[^"]*"', html)  # no network, no other file
    return html, re.findall(r'src="data:image/(\w+);base64,', html)


def test_a_detector(detector_run, tmp_path, capsys):
    assert main(["report", str(detector_run), "--output", str(tmp_path / "out")]) == 0
    assert "report.html" in capsys.readouterr().out
    html, images = text_of(tmp_path / "out" / "report.html")
    metrics = json.loads((detector_run / "metrics.json").read_text())
    for kind in ("box", "mask"):
        assert f"{metrics[kind]['AR100']:.3f}" in html
        assert f"Confusion, {kind}" in html
    for name in ("COCO metrics", "By class", "Worst images", "seven", "no error at a score of at least"):
        assert name in html
    assert images.count("png") >= 5
    assert images.count("jpeg") >= 1


def test_a_run_on_the_root_of_a_data_set(detector_run, digits, tmp_path):
    shutil.copytree(detector_run, tmp_path / "run")
    config = recipes.yaml.safe_load((detector_run / "config.yaml").read_text())
    settings = config["data"]["init_args"]
    settings |= dict.fromkeys(("train_instances", "train_images", "val_instances", "val_images"))
    settings["root"] = str(digits)
    (tmp_path / "run" / "config.yaml").write_text(recipes.yaml.safe_dump(config))
    html, _ = text_of(write_page([tmp_path / "run"], tmp_path))
    assert "Worst images" in html
    assert 'class="missing"' not in html
    settings["root"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.yaml").write_text(recipes.yaml.safe_dump(config))
    html, _ = text_of(write_page([tmp_path / "run"], tmp_path))
    assert "gone: no such folder" in html


def test_the_numbers_are_those_of_the_validation(detector_run):
    from botnet.detection.coco import CocoInstances
    from botnet.report.detection import _results, _truth
    from botnet.report.scores import TASKS, score

    config = recipes.yaml.safe_load((detector_run / "config.yaml").read_text())
    data = config["data"].get("init_args", config["data"])
    instances = CocoInstances(data["val_instances"])
    metrics = json.loads((detector_run / "metrics.json").read_text())
    for kind, task in TASKS.items():
        scores = score(_truth(instances), _results(detector_run / f"results_{task}.json", instances), kind)
        for name, value in scores.numbers.items():
            assert value == pytest.approx(metrics[kind][name], abs=1e-12)


def test_a_classifier(classifier_run, tmp_path):
    html, images = text_of(write_page([classifier_run], tmp_path))
    assert "Most frequent confusions" in html
    assert "Worst classes" in html
    assert len(images) >= 3
    rows = (classifier_run / "confusion.csv").read_text().splitlines()
    assert rows[0] == "class,predicted,images"
    assert sum(int(row.rpartition(",")[2]) for row in rows[1:]) == 9


def test_what_is_missing_is_said(detector_run, classifier_run, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(detector_run, torn)
    (torn / "results_bbox.json").write_text("[{}]")
    old = tmp_path / "old"
    shutil.copytree(classifier_run, old)
    (old / "confusion.csv").unlink()
    html, _ = text_of(write_page([torn, old, tmp_path / "nothing"], tmp_path))
    assert "results_bbox.json is broken" in html
    assert "confusion.csv does not exist" in html
    assert "nothing holds no run" in html
    assert html.count("<h2") == 3  # one run alone is named by the title


def test_names_are_escaped(detector_run, tmp_path):
    folder = tmp_path / "<b>bold"
    folder.mkdir()
    html, _ = text_of(write_page([folder], tmp_path))
    assert "<b>bold" not in html
    assert "&lt;b&gt;" in html


def test_a_worst_image_that_is_gone_is_named(detector_run, tmp_path):
    config = recipes.yaml.safe_load((detector_run / "config.yaml").read_text())
    data = config["data"].get("init_args", config["data"])
    copy = tmp_path / "run"
    shutil.copytree(detector_run, copy)
    (tmp_path / "images").mkdir()
    data["val_images"] = str(tmp_path / "images")
    (copy / "config.yaml").write_text(recipes.yaml.safe_dump(config))
    html, images = text_of(write_page([copy], tmp_path))
    assert "Not drawn: " in html
    assert "no such image" in html
    assert "jpeg" not in images


def test_a_large_picture_is_made_smaller():
    import base64
    import io

    from botnet.visualize.embed import embedded_picture

    data = base64.b64decode(embedded_picture(Image.new("RGB", (4000, 1000))).partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (1100, 275)
