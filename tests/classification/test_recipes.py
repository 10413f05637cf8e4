"""Every recipe for ImageNet is the row of the paper that it names, and runs."""

from pathlib import Path

import pytest
import torch
import yaml

from botnet.classification import ClassificationModule
from botnet.classification.checkpoint import create_classifier
from botnet.cli import main
from botnet.layers import MHSA2d
from botnet.paper.rows import RECIPES, rows
from botnet.training.task import parameter_groups
from tests.support.classification import write_images
from tests.support.recipes import whole

pytestmark = pytest.mark.long

ROWS = {name: row for name, row in rows().items() if row.family == "imagenet"}
FILES = {
    str(file.relative_to(RECIPES / "imagenet").with_suffix("")): file
    for file in sorted((RECIPES / "imagenet").glob("*/*.yaml"))
}
# One of each base, and of each kind of network.
SAMPLED = ["table9/bot-s1-50", "table10/r50", "scaled/senet50", "figure5/efficientnet-b0"]
EFFICIENTNET = [224, 240, 260, 300, 380, 456, 528, 600]  # px, Tan and Le 2019


def test_every_row_has_its_recipe_and_every_recipe_its_row():
    assert {name for name in FILES if not name.startswith("figure5/")} == set(ROWS)
    baselines = {f"figure5/efficientnet-b{i}" for i in range(8)}
    baselines |= {f"figure5/{name}" for name in ("vit-b16-384", "deit-small", "deit-base", "deit-base-384")}
    assert {name for name in FILES if name.startswith("figure5/")} == baselines


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_is_its_row(name):
    recipe, facts = whole(FILES[name]), ROWS[name].facts
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    assert recipe["row"] == name
    assert model["model"] == facts["network"]
    assert recipe["global_batch"] == facts["batch"]
    assert recipe["trainer"]["max_epochs"] == facts["epochs"]
    assert recipe["trainer"]["max_epochs"] % recipe["trainer"]["check_val_every_n_epoch"] == 0
    assert model["weight_decay"] == facts["weight_decay"]
    assert data["image_size"] == facts["image_size"]
    assert model["learning_rate"] == pytest.approx(0.4 * facts["batch"] / 1024)
    assert (model["momentum"], model["warmup_epochs"]) == (0.9, 5)
    header = FILES[name].read_text().split("base:")[0]
    assert f"top-1 {facts['top1']}" in header
    assert "top5" not in facts or f"top-5 {facts['top5']}" in header
    assert "not measured here" in header


def test_what_each_setting_adds():
    """RandAugment, smoothing, dropout, stochastic depth, average of the weights."""

    def setting(name):
        recipe = whole(FILES[name])
        model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
        keys = ("label_smoothing", "drop_rate", "drop_path_rate", "ema_decay")
        return data.get("rand_augment"), *(model.get(key) for key in keys)

    assert setting("table9/bot50") == (None,) * 5
    assert setting("table10/bot50") == ("rand-m10-n2", 0.1, None, None, None)
    strong = "rand-m15-n2-mmax30"
    assert setting("scaled/t3") == ("rand-m10-n2", 0.1, 0.25, 0.0, 0.9999)
    assert setting("scaled/t5") == setting("scaled/senet152") == (strong, 0.1, 0.25, 0.0, 0.9999)
    assert setting("scaled/t7") == (strong, 0.1, 0.4, 0.0, 0.9999)
    assert setting("scaled/senet350") == (strong, 0.1, 0.4, 0.1, 0.9999)


def test_sizes_of_the_baselines():
    for number, size in enumerate(EFFICIENTNET):
        assert whole(FILES[f"figure5/efficientnet-b{number}"])["data"]["init_args"]["image_size"] == size
    assert whole(FILES["figure5/deit-base-384"])["data"]["init_args"]["image_size"] == 384


@pytest.mark.parametrize("name", FILES)
def test_every_recipe_builds_its_network(name):
    recipe = whole(FILES[name])
    model, size = recipe["model"]["init_args"], recipe["data"]["init_args"]["image_size"]
    drops = {key: model[key] for key in ("drop_rate", "drop_path_rate") if model.get(key)}
    with torch.device("meta"):
        network = create_classifier(model["model"], 1000, size, **drops)
    assert network.get_classifier().out_features == 1000
    assert getattr(network, "drop_rate", 0.0) == model.get("drop_rate", 0.0)
    for layer in network.modules():
        if isinstance(layer, MHSA2d) and model["model"].startswith("botnet_"):  # BoT-S1: stride 16
            assert layer.pos_embed.height_rel.shape[0] == 2 * (size // 16) - 1


@pytest.mark.parametrize(
    ("network", "decayed"),
    [
        # 25,557,032 parameters, less 53 norms of 26,560 channels and 1,000 biases
        ("resnet50", 25_557_032 - 2 * 26_560 - 1_000),
        # three 3x3 of 512 x 512 less; queries, keys and values in their place do not decay
        ("botnet50", 25_557_032 - 2 * 26_560 - 1_000 - 3 * 9 * 512 * 512),
        ("botnet_s1_50", 25_557_032 - 2 * 26_560 - 1_000 - 3 * 9 * 512 * 512),
    ],
)
def test_what_decays_in_tables_9_and_10(network, decayed):
    with torch.device("meta"):
        model = create_classifier(network, 1000, 224)
    kernels, rest = parameter_groups(model, 8e-5)
    assert sum(p.numel() for p in kernels["params"]) == decayed
    assert (kernels["weight_decay"], rest["weight_decay"]) == (8e-5, 0.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # steps of ImageNet's 1,281,167 images: 1,251 of 1,024, 313 of 4,096 (the last one smaller)
        ("table9/bot50", {0: 0, 1_251: 0.08, 6_255: 0.4, 6_255 + 59_423: 0.2, 125_099: 0}),
        ("table10/bot50", {0: 0, 313: 0.32, 1_565: 1.6, 1_565 + 30_518: 0.8, 62_599: 0}),
        ("scaled/t7", {0: 0, 313: 0.32, 1_565: 1.6, 1_565 + 53_993: 0.8, 109_549: 0}),
    ],
)
def test_learning_rate_of_each_setting(name, expected):
    recipe = whole(FILES[name])
    model, epochs = recipe["model"]["init_args"], recipe["trainer"]["max_epochs"]
    steps = epochs * -(-(1_281_167 // 1024) // (recipe["global_batch"] // 1024))
    warmup = model["warmup_epochs"] / epochs * steps
    rates = {s: model["learning_rate"] * ClassificationModule.rate(s, steps, warmup) for s in expected}
    assert rates == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        write_images(folder / split, size=(80, 70))
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SAMPLED else pytest.mark.slow) for name in FILES]
)
def test_a_recipe_trains_and_evaluates(name, images, tmp_path, capsys, log):
    options = {
        "data.init_args.train": images / "train",
        "data.init_args.val": images / "val",
        "data.init_args.image_size": 64,
        "data.init_args.batch_size": 2,
        "data.init_args.num_workers": 0,
        "global_batch": 4,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.limit_train_batches": 2,
        "trainer.limit_val_batches": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.logger": "false",
        "trainer.enable_checkpointing": "false",
        "trainer.default_root_dir": tmp_path / "run",
    }
    arguments = [f"--{option}={value}" for option, value in options.items()]
    assert main(["fit", "--config", str(FILES[name]), *arguments]) == 0
    assert "a step has 4 images: 1 device x 2 images x 2 passes" in log.text
    assert "on the validation images" in capsys.readouterr().out
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["row"] == (name if name in ROWS else None)
