"""Every recipe is the row of the paper that it names, and runs."""

import pytest
import torch
import yaml

from botnet.cli import main
from botnet.detection import mask_rcnn
from botnet.paper.rows import RECIPES, rows
from tests.support.recipes import whole

pytestmark = pytest.mark.long

COCO = {name: row for name, row in rows().items() if row.family == "coco"}
# One of each kind of network and of each way to inherit.
SAMPLED = ["table2/r50-12-epochs", "table4/bot50-absolute", "table7/r50-bot-c4-c5", "table6/bot50-1024"]


def test_every_row_has_its_recipe_and_every_recipe_its_row():
    files = {
        str(file.relative_to(RECIPES / "coco").with_suffix(""))
        for file in (RECIPES / "coco").glob("*/*.yaml")
    }
    assert files == set(COCO)
    assert {table: sum(name.startswith(f"table{table}/") for name in files) for table in range(2, 9)} == {
        2: 8, 3: 6, 4: 5, 5: 6, 6: 6, 7: 5, 8: 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", COCO)
def test_a_recipe_is_its_row(name):
    recipe, facts = whole(COCO[name].recipe), COCO[name].facts
    detector = recipe["model"]["init_args"]["detector"]["init_args"]
    data = recipe["data"]["init_args"]
    assert recipe["row"] == name
    assert recipe["global_batch"] == 64
    assert recipe["trainer"]["precision"] == "bf16-mixed"
    assert recipe["trainer"]["sync_batchnorm"]
    assert recipe["trainer"]["max_epochs"] == facts["epochs"]
    assert recipe["trainer"]["max_epochs"] % recipe["trainer"]["check_val_every_n_epoch"] == 0
    assert data["jitter"] == facts["jitter"]
    assert data["canvas"] == facts["canvas"]
    assert detector["backbone"] == facts["network"]
    depth = next((d for d in ("101", "152", "200") if d in facts["network"]), "50")
    # The ResNet that lends its weights is as deep as the network.
    assert detector["weights"] == (None if depth == "200" else f"resnet{depth}.tv_in1k")
    header = COCO[name].recipe.read_text().split("base:")[0]
    assert f"box AP {facts['box']}" in header
    assert f"mask AP {facts['mask']}" in header


@pytest.mark.parametrize("network", sorted({row.facts["network"] for row in COCO.values()}))
def test_every_backbone_makes_a_detector(network):
    with torch.device("meta"):
        detector = mask_rcnn(network, 80, canvas=1024)
    shapes = [level.shape[-1] for level in detector.fpn.norms.parameters()]
    assert shapes == [256] * 10


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SAMPLED else pytest.mark.slow) for name in COCO],
)
def test_a_recipe_trains_and_evaluates(name, coco_by, tmp_path, capsys):
    options = {
        "data.init_args.train_instances": coco_by / "instances_train.json",
        "data.init_args.train_images": coco_by / "images",
        "data.init_args.val_instances": coco_by / "instances_val.json",
        "data.init_args.val_images": coco_by / "images",
        "data.init_args.canvas": 128,
        "data.init_args.batch_size": 2,
        "data.init_args.num_workers": 0,
        "global_batch": 2,
        "model.init_args.detector.init_args.weights": "null",
        "model.init_args.pictures": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.logger": "false",
        "trainer.enable_checkpointing": "false",
        "trainer.default_root_dir": tmp_path / "run",
    }
    arguments = [f"--{option}={value}" for option, value in options.items()]
    assert main(["fit", "--config", str(COCO[name].recipe), *arguments]) == 0
    assert "mask metrics on the validation images" in capsys.readouterr().out
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["row"] == name
    assert kept["base"] is None


@pytest.mark.parametrize("masks", [True, False])
def test_the_recipe_for_fine_tuning_trains_and_predicts(masks, digits, tmp_path):
    """Its schedule, its average and its augmentation, with another backbone of timm's in the second run."""
    run = tmp_path / "run"
    options = {
        "data.root": digits,
        "data.canvas": 128,
        "data.masks": masks,
        "data.num_workers": 0,
        "model.detector.backbone": "botnet_tiny" if masks else "botnet26t_256",
        "model.detector.weights": "null",
        "model.detector.fpn_channels": 16,
        "model.detector.box_channels": 32,
        "model.detector.mask_channels": 16,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.default_root_dir": run,
    }
    arguments = [f"--{option}={value}" for option, value in options.items()]
    assert main(["fit", "--config", "recipes/finetune.yaml", *arguments]) == 0
    kept = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    settings = kept["botnet"]["settings"]
    assert (settings["cosine"], settings["ema_decay"], settings["learning_rate"]) == (True, 0.998, 0.005)
    assert kept["averaging_state"]["n_averaged"] == 2  # 8 images
    assert any(name.startswith("Patience") for name in kept["callbacks"])
    found = tmp_path / "found"
    best = str(run / "checkpoints" / "best.ckpt")
    assert main(["predict", best, str(digits / "val"), "--output", str(found), "--device", "cpu"]) == 0
    assert list(found.glob("*.json"))
