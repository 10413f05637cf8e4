"""A classifier's run from its recipe to its pictures, its resumption, and what it refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import timm
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from PIL import Image
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from botnet.classification import ClassificationModule, create_classifier, load_classifier
from botnet.cli import main
from botnet.errors import ConfigError
from botnet.layers import MHSA2d
from botnet.training.global_batch import GlobalBatch
from botnet.training.task import parameter_groups
from tests.support.classification import (
    CLASSES,
    data_module,
    module_of,
    trainer_of,
    write_images,
    write_recipe,
)
from tests.support.tiny import Stopped, differing, end_at

pytestmark = pytest.mark.long


# ---- a run


def test_a_run_writes_its_files(run):
    _, folder = run
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert (folder / "config.yaml").is_file()
    assert (folder / "curves.png").is_file()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["epoch"], metrics["step"]) == (1, 3)
    assert metrics["top1"] == metrics["model"]["top1"]
    assert metrics["top5"] == 100.0  # of three classes
    assert list(metrics["model"]["per_class"]) == list(CLASSES)
    assert np.mean(list(metrics["model"]["per_class"].values())) == pytest.approx(metrics["top1"])
    with Image.open(folder / "pictures" / "predictions.png") as sheet:
        assert np.asarray(sheet).std() > 10


def test_names_may_have_brackets(tmp_path, capsys):
    classes = ("[old] cat", "dog")
    for split in ("train", "val"):
        write_images(tmp_path / split, classes)
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path, tmp_path / "exp[/v2]")
    assert main(["fit", "--config", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert "exp[/v2]/metrics.json" in shown
    assert "[old]" in shown


def test_the_pictures_come_from_all_over_the_validation_images(images):
    module = module_of(pictures=3)
    trainer_of().validate(module, data_module(images, val_batch_size=2), verbose=False)
    assert [truth for _, truth, _, _ in module.shown] == list(CLASSES)


def test_validate_gives_the_numbers_of_the_run(run):
    recipe, folder = run
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert main(["validate", "--config", str(recipe), "--ckpt_path", str(checkpoint)]) == 0
    of_run = json.loads((folder / "metrics.json").read_text())
    again = json.loads((folder / "validate" / "metrics.json").read_text())
    assert again == of_run  # the epoch and the step of the checkpoint, too


@pytest.mark.parametrize(
    ("hook", "step", "by", "epoch"),
    [
        ("on_train_end", 3, None, 1),  # killed when its last checkpoint was written, but not its metrics
        ("on_train_batch_end", 2, "stop", 0),  # as max_time does
    ],
)
def test_metrics_are_those_of_the_last_step(hook, step, by, epoch, images, tmp_path):
    run = tmp_path / "run"
    path = write_recipe(tmp_path / "recipe.yaml", images, run)
    recipe = yaml.safe_load(path.read_text())
    recipe["trainer"] |= {"check_val_every_n_epoch": 5}
    stopped = {**recipe, "trainer": recipe["trainer"] | {"callbacks": end_at(hook, step, by)}}
    path.write_text(yaml.safe_dump(stopped))
    if by is None:
        with pytest.raises(Stopped):
            main(["fit", "--config", str(path)])
        assert not (run / "metrics.json").exists()
        path.write_text(yaml.safe_dump(recipe))
        assert main(["fit", "--config", str(path), "--ckpt_path", "last"]) == 0
    else:
        assert main(["fit", "--config", str(path)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["epoch"], metrics["step"]) == (epoch, step)
    assert (run / "pictures").is_dir()
    assert not (run / "validate").exists()


def test_a_sanity_check_writes_no_metrics(images, tmp_path):
    module = module_of()
    trainer = trainer_of(
        default_root_dir=tmp_path, num_sanity_val_steps=2, check_val_every_n_epoch=5, max_epochs=1
    )
    trainer.fit(module, data_module(images))
    assert module.evaluated is None
    assert not (tmp_path / "metrics.json").exists()


KILLED = """
import os, signal, sys
from lightning.pytorch.callbacks import Callback
from botnet.cli import main

class Kill(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)

sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_resumes_bit_for_bit(images, tmp_path):
    """kill -9 in the second epoch: weights, average and momentum end as those of an uninterrupted run."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    model = {"mixup": 0.2, "cutmix": 1.0, "drop_rate": 0.2, "drop_path_rate": 0.1, "model": "botnet_s1_tiny"}
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}

    def fit(name, kill_at=-1, *more):
        recipe = write_recipe(
            tmp_path / f"{name}.yaml", images, tmp_path / name, model, rand_augment="rand-m10-n2"
        )
        arguments = [
            "fit",
            "--config",
            recipe,
            "--trainer.max_epochs",
            "2",
            "--trainer.callbacks",
            "killed.Kill",
        ]
        command = [sys.executable, "-m", "killed", *arguments, "--save_minutes", "0", *more]
        return subprocess.run(
            [str(part) for part in command], env=environment | {"KILL_AT": str(kill_at)}, cwd=tmp_path
        ).returncode

    assert fit("whole") == 0
    assert fit("killed", 5) == -signal.SIGKILL
    assert fit("killed", -1, "--ckpt_path", "last") == 0
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "killed")
    )
    assert one["global_step"] == two["global_step"] == 6
    assert one["averaging_state"]["n_averaged"] == 6
    assert differing(one["state_dict"], one["current_model_state"])  # the average and the weights
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert differing(one[part], two[part]) == []
    states = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, two))
    for mine, other in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(mine["momentum_buffer"], other["momentum_buffer"])


FROZEN = """
import sys
from torch import nn
from botnet.classification import ClassificationModule
from botnet.cli import main

class Frozen(ClassificationModule):
    def on_train_epoch_start(self):
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_do_what_one_does(images, tmp_path):
    """Norms frozen: they would see the images of one process only. 9 validation images do not divide by 2."""
    (tmp_path / "frozen.py").write_text(FROZEN)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    for devices in (1, 2):
        recipe = write_recipe(
            tmp_path / f"{devices}.yaml",
            images,
            tmp_path / str(devices),
            {"model": "botnet_s1_tiny"},
            batch_size=4 // devices,
            val_batch_size=2,
        )
        text = recipe.read_text().replace("botnet.classification.ClassificationModule", "frozen.Frozen")
        recipe.write_text(text)
        options = ["--trainer.devices", str(devices), "--trainer.strategy", "ddp"] if devices > 1 else []
        command = [sys.executable, str(tmp_path / "frozen.py"), "fit", "--config", str(recipe), *options]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in "12"
    )
    assert one.keys() == two.keys()
    assert not one["model.bn1.running_mean"].any()  # frozen
    assert one["model.layer1.0.bn3.weight"].any()  # it starts at 0: all of the network has learnt
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-7, msg=name)
    numbers = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in "12"]
    one, two = (found["model"] for found in numbers)
    assert (one["top1"], one["per_class"]) == (two["top1"], two["per_class"])
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


# ---- its parts


def test_learning_rate_at_chosen_steps():
    """Table 9: 100 epochs of 1251 steps, 5 of them rising from 0 to 0.4, then half a cosine."""
    total, warmup = 125_100, 6_255
    expected = {
        0: 0.0,
        1_251: 0.08,
        6_255: 0.4,
        6_255 + 118_845 // 3: 0.3,  # cos(60 degrees) = 1/2
        125_099: 0.0,
    }
    rates = {step: 0.4 * ClassificationModule.rate(step, total, warmup) for step in expected}
    assert rates == pytest.approx(expected, abs=2e-5)


def test_a_run_follows_the_schedule(run):
    """3 steps, 1.5 of them warm-up: 0, 2/3 of the way up, then a third of the way down the cosine."""
    recipe, folder = run
    watch = ["--trainer.callbacks", "lightning.pytorch.callbacks.LearningRateMonitor"]
    other = folder.parent / "watched"
    assert main(["fit", "--config", str(recipe), "--trainer.default_root_dir", str(other), *watch]) == 0
    with (other / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        rates = [float(row["lr-SGD/pg1"]) for row in csv.DictReader(file) if row["lr-SGD/pg1"]]
    assert rates == pytest.approx([0.0, 0.05 / 1.5, 0.05 * 0.5 * (1 + 0.5)])


class Optimisation(L.Callback):
    """Rate, momentum and decay of every optimiser step; a checkpoint after the second one."""

    def __init__(self, path=None):
        self.path, self.seen = path, []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        group = optimizer.param_groups[0]
        self.seen.append([group["lr"], group["momentum"], group["weight_decay"]])

    def on_train_batch_end(self, trainer, *_):
        if self.path is not None and trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("within", [True, False])
def test_a_resumed_run_follows_its_recipe(within, images, tmp_path, log):
    """Not the checkpoint, neither within an epoch nor between two; changes are logged."""
    path, common = tmp_path / "run.ckpt", {"limit_val_batches": 0}
    old = {"learning_rate": 0.4, "momentum": 0.9, "weight_decay": 1e-4, "warmup_epochs": 0.0}
    new = {"learning_rate": 0.004, "momentum": 0.5, "weight_decay": 1e-2, "warmup_epochs": 2.0}
    trainer = trainer_of(callbacks=[Optimisation(path)], **common)
    trainer.fit(module_of(**old), data_module(images))
    if not within:
        trainer.save_checkpoint(path)
    assert "the recipe differs" not in log.text
    watch = Optimisation()
    trainer_of(callbacks=[watch], max_epochs=2, **common).fit(
        module_of(**new), data_module(images), ckpt_path=path
    )
    first = 2 if within else 3
    assert watch.seen == [pytest.approx([0.004 * step / 6, 0.5, 1e-2]) for step in range(first, 6)]
    assert "learning_rate 0.004 (was 0.4)" in log.text
    assert "momentum 0.5 (was 0.9)" in log.text
    assert "weight_decay 0.01 (was 0.0001)" in log.text
    assert "warmup_epochs 2.0 (was 0.0)" in log.text


def test_a_resumed_run_without_changes_reports_none(images, tmp_path, log):
    path, watch = tmp_path / "run.ckpt", Optimisation()
    for callback, more in ((Optimisation(path), {}), (watch, {"ckpt_path": path})):
        trainer_of(callbacks=[callback], limit_val_batches=0).fit(
            module_of(warmup_epochs=1.0), data_module(images), **more
        )
    assert watch.seen == [pytest.approx([0.4 * 2 / 3, 0.9, 1e-4])]
    assert "the recipe differs" not in log.text


def test_a_run_resumed_with_another_batch_keeps_its_place_in_the_schedule(images, tmp_path, log):
    """One of two epochs done in 3 steps of 4 images; the other takes 6 steps of 2, at half the rate."""
    path, watch = tmp_path / "run.ckpt", Optimisation()
    trainer = trainer_of(max_epochs=1, limit_val_batches=0)
    trainer.fit(module_of(warmup_epochs=2.0), data_module(images))
    trainer.save_checkpoint(path)
    callbacks = [watch, GlobalBatch(4, "linear")]
    trainer_of(callbacks=callbacks, max_epochs=2, limit_val_batches=0).fit(
        module_of(warmup_epochs=2.0), data_module(images, batch_size=2), ckpt_path=path
    )
    assert [rate for rate, *_ in watch.seen] == pytest.approx([0.2 * step / 12 for step in range(6, 12)])
    assert "learning_rate 0.2 (was 0.4)" in log.text


@pytest.mark.parametrize("name", ["botnet_s1_tiny", "test_vit", "test_efficientnet"])
def test_only_kernels_decay(name):
    model = create_classifier(name, 10, 64)
    decayed, spared = parameter_groups(model, 1e-4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {id(p) for group in (decayed, spared) for p in group["params"]} == set(names)
    attention = tuple(name for name, m in model.named_modules() if isinstance(m, MHSA2d))
    expected = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not (attention and name.startswith(attention))
    }
    assert {names[id(p)] for p in decayed["params"]} == expected
    assert all(p.ndim > 1 for p in decayed["params"])
    assert not {"cls_token", "pos_embed"} & expected


def test_adamw_takes_the_step_of_its_formula(images):
    """The first: the sign of the gradient times the rate, and the decay of kernels times the rate."""

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.before = {
                name: (p.detach().clone(), p.grad.clone()) for name, p in module.model.named_parameters()
            }

        def on_train_batch_end(self, trainer, module, *_):
            after = dict(module.model.named_parameters())
            for name, (value, gradient) in self.before.items():
                decay = 0.1 if value.ndim > 1 else 0.0
                expected = value - 0.01 * (decay * value + gradient / (gradient.abs() + 1e-8))
                torch.testing.assert_close(after[name].detach(), expected, msg=name)
            self.compared = len(self.before)

    watch, module = (
        Watch(),
        module_of(optimizer="adamw", learning_rate=0.01, weight_decay=0.1, warmup_epochs=0),
    )
    trainer_of(callbacks=[watch], limit_train_batches=1, limit_val_batches=0).fit(module, data_module(images))
    assert watch.compared > 10


def test_adamw_resumes_bit_for_bit_and_only_with_itself(images, tmp_path, capsys):
    def fit(name, *more, callbacks=None):
        recipe = write_recipe(
            tmp_path / f"{name}.yaml", images, tmp_path / name, {"optimizer": "adamw", "learning_rate": 1e-3}
        )
        if callbacks:
            content = yaml.safe_load(recipe.read_text())
            content["trainer"]["callbacks"] = callbacks
            recipe.write_text(yaml.safe_dump(content))
        return main(["fit", "--config", str(recipe), "--save_minutes", "0", *more])

    assert fit("whole") == 0
    with pytest.raises(Stopped):
        fit("run", callbacks=end_at("on_train_batch_start", 2))
    assert fit("run", "--ckpt_path", "last", "--model.optimizer", "sgd") == 2
    assert "trained by adamw, not by sgd; resume it with --model.optimizer adamw" in capsys.readouterr().err
    assert fit("run", "--ckpt_path", "last") == 0
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "run")
    )
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        assert differing(one[part], two[part]) == []
    assert "exp_avg_sq" in one["optimizer_states"][0]["state"][0]


def test_mixed_and_smoothed_loss_is_timms(images):
    """timm smooths the targets while it mixes them, here the loss does: the same."""

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if index == 0:
                np.random.seed(5)  # noqa: NPY002
                mix = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=3)
                mixed, target = mix(batch[0].clone(), batch[1])
                twin = timm.create_model("test_resnet", num_classes=3).train()
                twin.load_state_dict(module.model.state_dict())
                self.expected = SoftTargetCrossEntropy()(twin(mixed), target)
                np.random.seed(5)  # noqa: NPY002

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if index == 0:
                torch.testing.assert_close(outputs["loss"].detach(), self.expected.detach())
                self.compared = True

    watch = Watch()
    module = module_of(mixup=0.2, cutmix=1.0, label_smoothing=0.1)
    trainer_of(callbacks=[watch], limit_val_batches=0).fit(module, data_module(images))
    assert watch.compared


def test_another_batch_scales_the_rate_and_the_decay_of_the_average():
    module = module_of(learning_rate=1.6, ema_decay=0.9999)
    module.scale_batch(1 / 16)
    assert module.learning_rate == pytest.approx(0.1)
    assert module.ema_decay**16 == pytest.approx(0.9999)  # after as many images


def test_regularisation_reaches_the_network():
    module = module_of(model="botnet_s1_tiny", drop_rate=0.4, drop_path_rate=0.2)
    assert module.model.drop_rate == 0.4
    rates = [m.drop_prob for m in module.model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)


def test_position_tables_are_made_for_the_images():
    """Stride 16: 4 cells at 64 px, and tables of 2 x 4 - 1 offsets."""
    for name, module in create_classifier("botnet_s1_tiny", 3, 64).named_modules():
        if isinstance(module, MHSA2d):
            assert module.pos_embed.height_rel.shape[0] == 7, name
    assert create_classifier("test_vit", 3, 64).patch_embed.img_size == (64, 64)


def test_the_network_is_compiled_once(images, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    module = module_of(compile=True)
    trainer_of(limit_train_batches=1, limit_val_batches=1).fit(module, data_module(images))
    assert compiled == [module.model]
    assert all("_orig_mod" not in name for name in module.state_dict())


# ---- what is refused, and starting from other weights


def test_a_checkpoint_of_other_classes_is_refused(run, tmp_path, capsys):
    _, folder = run
    for split in ("train", "val"):
        write_images(tmp_path / split, ["cyan", "magenta"], count=4)
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path, tmp_path / "run")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert main(["fit", "--config", str(recipe), "--ckpt_path", str(checkpoint)]) == 2
    message = capsys.readouterr().err
    assert "has 3 classes (blue, green, red)" in message
    assert "the data have 2" in message
    assert "--model.init_from" in message


def test_validation_evaluates_the_weights_of_init_from(run, images, log):
    checkpoint = run[1] / "checkpoints" / "last.ckpt"
    module = module_of(init_from=checkpoint, ema_decay=0.5, pictures=0)
    trainer_of().validate(module, data_module(images), verbose=False)
    expected = load_classifier(checkpoint)[0].state_dict()
    for name, value in expected.items():
        assert torch.equal(module.model.state_dict()[name], value), name
    assert f"started from {checkpoint}: 3 of 3 classes known" in log.text


def test_the_command_warns_of_random_weights(run, images, tmp_path, log):
    _, folder = run
    recipe = str(write_recipe(tmp_path / "recipe.yaml", images, tmp_path / "run"))
    for more, expected in (
        ([], True),
        (["--model.init_args.init_from", str(folder / "checkpoints" / "last.ckpt")], False),
    ):
        assert main(["validate", "--config", recipe, *more]) == 0
        assert ("neither --ckpt_path nor" in log.text) == expected
        log.clear()
    metrics = json.loads((tmp_path / "run" / "validate" / "metrics.json").read_text())
    assert metrics["model"] == json.loads((folder / "metrics.json").read_text())["model"]


def test_a_checkpoint_has_its_own_weights(run, images):
    """The file that a resumed or validated run started from is not read again."""
    checkpoint = run[1] / "checkpoints" / "last.ckpt"
    stored = torch.load(checkpoint, weights_only=True)
    for call, weights in (("fit", "current_model_state"), ("validate", "state_dict")):
        module = module_of(init_from=Path("gone.ckpt"), ema_decay=0.9, label_smoothing=0.1, pictures=0)
        getattr(trainer_of(max_epochs=1), call)(module, data_module(images), ckpt_path=checkpoint)
        assert torch.equal(module.model.fc.weight, stored[weights]["model.fc.weight"])


def test_a_network_of_another_class_count_is_refused(images):
    with pytest.raises(ConfigError, match="has 5 classes, the data have 3"):
        trainer_of().fit(module_of(num_classes=5), data_module(images))
    with pytest.raises(ConfigError, match="the classes come with the data"):
        trainer_of().fit(module_of(), data_module(images).train_dataloader())


def test_what_several_devices_cannot_do_is_refused(images):
    module, data = module_of(), data_module(images)
    for devices, strategy, message in (
        (2, FSDPStrategy(), "FSDPStrategy splits the classifier"),
        (10, DDPStrategy(), "9 validation images are fewer than 10 devices"),
    ):
        module._trainer = SimpleNamespace(world_size=devices, strategy=strategy, datamodule=data)
        with pytest.raises(ConfigError, match=message):
            module.setup("fit")


def test_an_odd_batch_cannot_be_mixed(images):
    with pytest.raises(ConfigError, match="3 is odd"):
        trainer_of().fit(module_of(mixup=0.2), data_module(images, batch_size=3))


def test_lightnings_search_for_a_learning_rate(images, tmp_path):
    search = LearningRateFinder(num_training_steps=4, mode="linear")
    module = module_of(learning_rate=0.05)
    trainer_of(callbacks=[search], default_root_dir=tmp_path).fit(module, data_module(images))
    found = search.optimal_lr
    assert len(found.results["lr"]) > 2
    assert module.learning_rate == (found.suggestion() or 0.05)
