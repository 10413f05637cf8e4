"""Several devices do together what one does alone, each image once."""

import runpy
from pathlib import Path

import lightning.pytorch as L
import pytest
import yaml
from torch import nn

from botnet.detection import DetectionModule, mask_rcnn
from tests.support.recipes import DETECTOR

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def proof(digits, tmp_path_factory):
    """What scripts/ddp.py finds with three images: two on the first device, one on the second."""
    prove = runpy.run_path(str(ROOT / "scripts" / "ddp.py"))["prove"]
    return prove(
        digits / "instances_val.json", digits / "val", 64, "botnet_tiny", tmp_path_factory.mktemp("ddp")
    )


def test_a_step_on_two_devices_is_the_step_of_one(proof):
    assert proof["moved"] > 1e-3
    assert proof["apart"] < 1e-6


def test_validation_on_two_devices_is_that_of_one(proof):
    assert proof["records"] > 10
    assert proof["same"] == dict.fromkeys(
        ("metrics.json", "results_bbox.json", "results_segm.json", "pictures"), True
    )


def test_every_norm_is_synchronised_when_the_recipe_asks():
    recipe = yaml.safe_load((ROOT / "botnet" / "recipes" / "coco" / "base.yaml").read_text())
    assert recipe["trainer"]["sync_batchnorm"] is True
    module = DetectionModule(mask_rcnn(num_classes=2, canvas=64, **DETECTOR))
    # What Lightning's DDP does before it wraps the module; the wrapper then asks for a GPU.
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", sync_batchnorm=True, logger=False)
    norms = [
        m
        for m in trainer.strategy._layer_sync.apply(module).modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    assert len(norms) > 20
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
