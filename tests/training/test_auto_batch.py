"""The batch that is found: the largest that fits, the rate that follows, the same number when resumed."""

import copy

import pytest
import torch
import yaml

from botnet.cli import main
from botnet.detection import CocoDataModule, DetectionModule
from botnet.errors import ConfigError
from botnet.training import auto_batch
from botnet.training.auto_batch import find_batch_size, kept_batch_size, largest, try_step
from botnet.training.memory import step_bytes
from tests.support.classification import trainer_of
from tests.support.detector import small_detector
from tests.support.recipes import write_recipe
from tests.support.tiny import Stopped, differing, end_at, fit

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("room", "most", "expected"), [(0, 100, 1), (1, 100, 1), (7, 100, 4), (8, 100, 8), (99, 6, 4), (99, 0, 1)]
)
def test_the_largest_power_of_two_that_fits(room, most, expected):
    asked = []
    assert largest(lambda images: asked.append(images) or images <= room, most) == expected
    assert all(images <= 2 * expected for images in asked)  # nothing far too large is tried


@pytest.fixture
def parts(digits):
    """A detector's module, its data and a trainer that knows both."""
    files = {
        f"{split}_{kind}": digits / path
        for split in ("train", "val")
        for kind, path in (("instances", f"instances_{split}.json"), ("images", split))
    }
    data = CocoDataModule(**files, canvas=64, batch_size="auto", num_workers=0)
    module = DetectionModule(small_detector(num_classes=data.num_classes, canvas=64))
    trainer = trainer_of()
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=data)
    return trainer, module, data


def test_a_trial_leaves_the_module_as_it_was(parts, monkeypatch):
    """The trials of a GPU, made on the CPU; memory runs out at four images."""
    trainer, module, data = parts
    for name in ("set_per_process_memory_fraction", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    before, changed = copy.deepcopy(module.state_dict()), []

    def run_out(trainer, module, batch):
        images, targets = batch
        assert len(images) == len(targets)
        if len(images) == 4:
            raise torch.OutOfMemoryError
        try_step(trainer, module, batch)
        changed.append(len(differing(dict(module.state_dict()), dict(before))))

    monkeypatch.setattr(auto_batch, "try_step", run_out)
    assert auto_batch._tried(trainer, module, data, most=8) == 2
    assert len(changed) == 1
    assert min(changed) > 50  # the trial was real: it has changed weights and statistics
    assert differing(dict(module.state_dict()), dict(before)) == []
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_cpu_gives_a_quarter_of_its_memory_to_the_estimate(parts, monkeypatch):
    trainer, module, data = parts
    two, four = (step_bytes(module.detector.backbone, (images, 3, 64, 64)) for images in (2, 4))
    for memory, expected in ((0, 1), (4 * two, 2), (4 * four - 1, 2), (4 * four, 4), (1e15, 8)):
        monkeypatch.setattr(auto_batch, "total_memory", lambda device, memory=memory: memory)
        assert find_batch_size(trainer, module, data) == expected  # there are eight images
    monkeypatch.setattr(auto_batch, "total_memory", lambda device: None)
    with pytest.raises(ConfigError, match="the memory of cpu is not known; give a number"):
        find_batch_size(trainer, module, data)


def test_all_devices_take_the_smallest_number(parts, monkeypatch):
    trainer, module, data = parts
    monkeypatch.setattr(auto_batch, "_is_small", lambda trainer, module, images: images <= 8)
    monkeypatch.setattr(auto_batch, "greatest", lambda trainer, value: max(value, -4))  # another found 4
    assert find_batch_size(trainer, module, data) == 4


def test_the_rate_follows_and_a_resumed_run_keeps_the_batch(digits, tmp_path, log, monkeypatch):
    recipe, run = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run"), tmp_path / "run"
    content = yaml.safe_load(recipe.read_text())
    content["data"]["init_args"]["batch_size"] = "auto"
    content["global_batch"] = 8
    stopped = content | {"trainer": content["trainer"] | {"callbacks": end_at("on_train_batch_start", 3)}}
    recipe.write_text(yaml.safe_dump(stopped))
    monkeypatch.setattr(auto_batch, "_is_small", lambda trainer, module, images: images <= 2)
    with pytest.raises(Stopped):
        fit(recipe, "--save_minutes", "0")
    assert "data.batch_size auto: 2 images at once on each device" in log.text
    assert "0.25 times its learning rate" in log.text
    path = run / "checkpoints" / "last.ckpt"
    assert kept_batch_size(path) == 2
    assert torch.load(path, weights_only=True)["botnet"]["settings"]["learning_rate"] == 0.01 / 4
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["data"]["init_args"]["batch_size"], config["batch_rule"]) == (2, "linear")

    # In the middle of the epoch, on a machine with more memory.
    recipe.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(auto_batch, "_is_small", lambda trainer, module, images: True)
    assert fit(recipe, "--ckpt_path", "last") == 0
    last = torch.load(path, weights_only=True)
    assert (last["global_step"], last["botnet"]["batch_size"]) == (4, 2)
    assert main(["validate", "--config", str(recipe), "--ckpt_path", "last"]) == 0  # it needs no batch
