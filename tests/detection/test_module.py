"""A run from its recipe to its pictures, its resumption, and what it refuses."""

import csv
import json
import pickle

import lightning.pytorch as L
import pytest
import torch
from PIL import Image
from torch import nn

from botnet.cli import main
from botnet.detection import CocoDataModule, DetectionModule, load_detector, mask_rcnn
from botnet.errors import DataError
from botnet.layers import MHSA2d
from botnet.training import parameter_groups
from tests.recipes import DETECTOR, write_recipe


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A finished run of one epoch: its recipe and its folder."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(folder / "recipe.yaml", digits, folder / "run")
    assert main(["fit", "--config", str(recipe)]) == 0
    return recipe, folder / "run"


def logged_steps(folder):
    steps = []
    for table in sorted(folder.glob("csv/version_*/metrics.csv")):
        with table.open(newline="") as file:
            steps += [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    return steps


def test_a_run_leaves_all_that_it_promises(run):
    _, folder = run
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (folder / "config.yaml").is_file()
    assert list((folder / "tensorboard").glob("events.*"))
    assert logged_steps(folder) == [0, 1]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["step"] == 2
    for kind in ("box", "mask"):
        assert len(metrics[kind]) == 12 + 1
        assert len(metrics[kind]["per_class"]) == 10
    assert isinstance(json.loads((folder / "results_segm.json").read_text()), list)
    pictures = sorted((folder / "pictures").iterdir())
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.width > 2 * 300  # truth and prediction side by side
    assert (folder / "curves.png").is_file()


def test_a_run_folder_is_not_used_twice(run, capsys):
    recipe, folder = run
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert main(["fit", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert str(folder) in message
    assert "--ckpt_path last" in message
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_run_goes_on_where_it_stopped(run):
    recipe, folder = run
    more = ["--trainer.max_epochs", "2", "--ckpt_path", "last"]
    assert main(["fit", "--config", str(recipe), *more]) == 0
    assert logged_steps(folder) == [0, 1, 2, 3]  # nothing done twice, no log lost
    assert json.loads((folder / "metrics.json").read_text())["step"] == 4


def test_callbacks_of_the_recipe_are_kept(digits, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run")
    watch = ["--trainer.callbacks", "lightning.pytorch.callbacks.LearningRateMonitor"]
    assert main(["fit", "--config", str(recipe), *watch]) == 0
    header = (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "lr-SGD" in header


def test_validate_gives_the_numbers_of_the_run(run):
    recipe, folder = run
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert main(["validate", "--config", str(recipe), "--ckpt_path", str(checkpoint)]) == 0
    of_run = json.loads((folder / "metrics.json").read_text())
    again = json.loads((folder / "validate" / "metrics.json").read_text())
    assert again["box"] == of_run["box"]
    assert again["mask"] == of_run["mask"]


def test_a_checkpoint_of_other_classes_is_refused(run, digits, tmp_path, capsys):
    _, folder = run
    for split in ("train", "val"):
        truth = json.loads((digits / f"instances_{split}.json").read_text())
        truth["categories"] = truth["categories"][:9]
        truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] < 10]
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(truth))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        digits,
        tmp_path / "run",
        train_instances=str(tmp_path / "instances_train.json"),
        val_instances=str(tmp_path / "instances_val.json"),
    )
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert main(["fit", "--config", str(recipe), "--ckpt_path", str(checkpoint)]) == 2
    message = capsys.readouterr().err
    assert "knows 10 classes" in message
    assert "the data have 9" in message


def test_train_and_val_must_have_the_same_categories(digits, tmp_path, capsys):
    truth = json.loads((digits / "instances_val.json").read_text())
    truth["categories"].reverse()
    for index, category in enumerate(truth["categories"]):
        category["id"] = index + 1
    other = tmp_path / "instances_val.json"
    other.write_text(json.dumps(truth))
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run", val_instances=str(other))
    assert main(["fit", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert str(other) in message
    assert "same categories" in message


def test_a_detector_of_another_class_count_is_refused(digits):
    data = CocoDataModule(
        *(digits / name for name in ("instances_train.json", "train", "instances_val.json", "val")),
        canvas=64,
        num_workers=0,
    )

    def trainer():
        return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)

    module = DetectionModule(mask_rcnn(num_classes=2, canvas=64, **DETECTOR))
    with pytest.raises(DataError, match=r"has 2 classes, .*instances_train\.json has 10"):
        trainer().fit(module, data)
    with pytest.raises(DataError, match="the classes come with the data"):
        trainer().fit(module, data.train_dataloader())


def test_fewer_images_than_a_batch_are_refused(digits, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run", batch_size=9)
    assert main(["fit", "--config", str(recipe)]) == 2
    assert "fewer than one batch of 9" in capsys.readouterr().err


def test_the_detector_comes_back_from_its_checkpoint(run):
    _, folder = run
    checkpoint = folder / "checkpoints" / "last.ckpt"
    detector, about = load_detector(checkpoint)
    assert about["class_names"][:3] == ["zero", "one", "two"]
    assert about["canvas"] == 64
    assert not detector.training
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in detector.state_dict().items():
        torch.testing.assert_close(value, stored[f"detector.{name}"])


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_a_checkpoint_that_holds_code_is_not_run(command, run, tmp_path, capsys):
    recipe, _ = run
    trap, evil = tmp_path / "sprung", tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "botnet": Trap(trap)}, evil)
    assert pickle.loads(pickle.dumps(Trap(tmp_path / "proof")))  # the trap itself works
    assert (tmp_path / "proof").exists()
    if command == "predict":
        image = tmp_path / "image.png"
        Image.new("RGB", (9, 9)).save(image)
        assert main(["predict", str(evil), str(image), "--output", str(tmp_path / "out")]) == 2
        assert "not executed" in capsys.readouterr().err
    else:
        with pytest.raises(pickle.UnpicklingError):
            main(["validate", "--config", str(recipe), "--ckpt_path", str(evil)])
    assert not trap.exists()


def test_other_files_are_no_checkpoints(tmp_path):
    with pytest.raises(DataError, match="no such checkpoint"):
        load_detector(tmp_path / "none.ckpt")
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(b"PK\x03\x04 not a whole file")
    with pytest.raises(DataError, match=r"torn\.ckpt cannot be read"):
        load_detector(torn)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(DataError, match="does not say which detector"):
        load_detector(foreign)


def test_learning_rate_at_chosen_steps():
    """[tpu]: 0.08, warm-up of 500 steps from 0.0067, a tenth at 2/3 and 8/9 of 22,500 steps."""
    module = DetectionModule(mask_rcnn(num_classes=2, canvas=64, **DETECTOR))
    expected = {
        0: 0.0067,
        250: 0.0067 + (0.08 - 0.0067) / 2,
        500: 0.08,
        14_999: 0.08,
        15_000: 0.008,
        19_999: 0.008,
        20_000: 0.0008,
        22_499: 0.0008,
    }
    rates = {step: 0.08 * module.rate(step, 22_500) for step in expected}
    assert rates == pytest.approx(expected)


def test_only_kernels_decay():
    detector = mask_rcnn(num_classes=2, canvas=64, **DETECTOR)
    decayed, spared = parameter_groups(detector, 1e-4)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0.0)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    assert {id(p) for group in (decayed, spared) for p in group["params"]} == set(names)
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    attention = [name for name, m in detector.named_modules() if isinstance(m, MHSA2d)]
    kernels = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    expected = {
        f"{name}.weight"
        for name, module in detector.named_modules()
        if isinstance(module, kernels) and not name.startswith(tuple(attention))
    }
    assert len(attention) > 0
    assert {names[id(p)] for p in decayed["params"]} == expected
