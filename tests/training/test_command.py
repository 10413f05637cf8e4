"""Recipes that build on recipes, batches on other machines, progress in lines, the validation at the end."""

import json
import logging
import os
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
import yaml

from botnet.cli import main
from botnet.detection import RCNN, DetectionModule
from botnet.errors import ConfigError
from botnet.training import progress as progress_module
from botnet.training.command import TrainingCLI
from botnet.training.finite_loss import FiniteLoss
from botnet.training.global_batch import GlobalBatch
from botnet.training.progress import BarProgress, LineProgress
from botnet.training.recipes import with_bases
from tests.support.recipes import DETECTOR
from tests.support.synchronisations import Synchronisations
from tests.support.tiny import (
    Stopped,
    TinyData,
    TinyModule,
    end_at,
    fit,
    learnt,
    logged_steps,
    write_tiny,
)

pytestmark = pytest.mark.long

# ---- recipes that build on recipes


def recipe(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_base_comes_before_what_builds_on_it(tmp_path):
    ground = recipe(tmp_path / "shared" / "ground.yaml", seed_everything=1)
    middle = recipe(tmp_path / "rows" / "middle.yaml", base="../shared/ground.yaml")
    top = recipe(tmp_path / "rows" / "top.yaml", base="middle.yaml")
    expanded = with_bases(["fit", "--trainer.max_epochs", "3", "--config", top, "--row", "x"])
    assert expanded[:3] == ["fit", "--trainer.max_epochs", "3"]
    assert expanded[9:] == ["--row", "x"]
    assert expanded[3:9:2] == ["--config"] * 3
    found = [os.path.realpath(path) for path in expanded[4:9:2]]
    assert found == [os.path.realpath(path) for path in (ground, middle, top)]


@pytest.mark.parametrize("spelt", ["--config={}", "-c={}", "--config {}", "-c {}", "-c{}"])
def test_every_spelling_of_config_is_understood(spelt, tmp_path):
    recipe(tmp_path / "base.yaml")
    top = recipe(tmp_path / "top.yaml", base=str(tmp_path / "base.yaml"))
    expanded = with_bases(spelt.format(top).split())
    assert expanded == ["--config", str(tmp_path / "base.yaml"), "--config", top]


def test_several_recipes_keep_their_order(tmp_path):
    base, one, two = (tmp_path / name for name in ("base.yaml", "one.yaml", "two.yaml"))
    recipe(base)
    expanded = with_bases(["-c", recipe(one), "-c", recipe(two, base="base.yaml")])
    assert expanded[1::2] == [str(one), str(base), str(two)]


def test_what_comes_later_overrides(tmp_path, capsys):
    base = write_tiny(tmp_path / "base.yaml", tmp_path / "run", max_epochs=5, log_every_n_steps=7)
    top = recipe(tmp_path / "top.yaml", base=base.name, trainer={"max_epochs": 4})
    with pytest.raises(SystemExit) as printed:
        fit(top, "--trainer.min_epochs", "2", "--print_config")
    assert printed.value.code == 0
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert (trainer["max_epochs"], trainer["min_epochs"], trainer["log_every_n_steps"]) == (4, 2, 7)


def test_a_missing_base_is_named(tmp_path):
    top = recipe(tmp_path / "top.yaml", base="nowhere.yaml")
    with pytest.raises(ConfigError, match=r"top\.yaml: its base .*nowhere\.yaml does not exist"):
        with_bases(["--config", top])


@pytest.mark.parametrize("circle", [1, 2, 3])
def test_a_circle_is_refused(circle, tmp_path):
    names = [f"{number}.yaml" for number in range(circle)]
    for number, name in enumerate(names):
        recipe(tmp_path / name, base=names[(number + 1) % circle])
    with pytest.raises(ConfigError, match="circle"):
        with_bases(["--config", str(tmp_path / names[0])])


def test_a_file_that_is_no_recipe_is_left_to_the_parser(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [")
    for path in ("missing.yaml", "broken.yaml"):
        given = ["--config", str(tmp_path / path)]
        assert with_bases(given) == given


# ---- weights


class NothingIsMade(TrainingCLI):
    def instantiate_classes(self):
        pass

    def _run_subcommand(self, subcommand):
        pass


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ([], True),
        (["--model.detector.freeze_c2", "false"], False),
        (["--model.detector.weights", "resnet50.tv_in1k"], False),
        (["--model.init_from", "other.ckpt"], False),
    ],
)
def test_random_weights_that_are_frozen_are_said(options, warned, tmp_path, log):
    words = ["--config", "recipes/finetune.yaml", "--trainer.default_root_dir", str(tmp_path / "run")]
    NothingIsMade(["fit", *words, "--model.detector.weights", "null", *options])
    assert ("freeze_c2 keeps stem and c2 at their random start" in log.text) == warned


# ---- loggers


@pytest.mark.parametrize("several", [False, True])
def test_a_logger_is_added_to_those_of_the_run(several, tmp_path):
    run, lines = tmp_path / "run", tmp_path / "lines.txt"
    logger = {"class_path": "tests.support.tiny.LineLogger", "init_args": {"file": str(lines)}}
    recipe = write_tiny(tmp_path / "tiny.yaml", run, logger=[logger] if several else logger, max_epochs=1)
    assert fit(recipe) == 0
    assert logged_steps(run, "train/square") == list(range(6))
    assert list((run / "tensorboard").iterdir())
    logged = lines.read_text().splitlines()
    assert [line.split()[0] for line in logged if "train/square" in line] == [str(step) for step in range(6)]
    assert any("val/score" in line for line in logged)


def test_lightning_recommends_no_other_products(tmp_path):
    lightning, records = logging.getLogger("lightning.pytorch.utilities.rank_zero"), []
    watch = logging.Handler()
    watch.emit = records.append
    lightning.addHandler(watch)
    try:
        L.Trainer(accelerator="cpu", default_root_dir=tmp_path)
    finally:
        lightning.removeHandler(watch)
    said = [record.getMessage() for record in records]
    assert any("GPU available" in line for line in said)
    assert not [line for line in said if "Tip" in line]


def test_no_logger_is_no_logger(tmp_path):
    run = tmp_path / "run"
    assert fit(write_tiny(tmp_path / "tiny.yaml", run, logger=False, max_epochs=1)) == 0
    assert not (run / "csv").exists()
    assert not (run / "tensorboard").exists()


# ---- the batch of the recipe on other machines


def devices(count, each, passes=1):
    data = TinyData()
    data.batch_size = each
    return SimpleNamespace(
        world_size=count,
        datamodule=data,
        accumulate_grad_batches=passes,
        is_global_zero=True,
    )


@pytest.mark.parametrize(
    ("images", "count", "each", "passes"), [(64, 8, 8, 1), (64, 1, 4, 16), (64, 2, 8, 4)]
)
def test_fewer_devices_take_several_passes(images, count, each, passes, log):
    trainer, module = devices(count, each), TinyModule()
    GlobalBatch(images).setup(trainer, module, "fit")
    assert trainer.accumulate_grad_batches == passes
    assert module.batch_factor == 1
    assert f"a step has {images} images" in log.text
    assert ("passes" in log.text) == (passes > 1)


@pytest.mark.parametrize(("images", "count", "each"), [(64, 3, 8), (64, 8, 16), (6, 1, 4)])
def test_a_batch_that_the_devices_cannot_make_up_is_refused(images, count, each):
    with pytest.raises(ConfigError, match=f"{images} images .* {count} device.*--batch_rule linear"):
        GlobalBatch(images).setup(devices(count, each), TinyModule(), "fit")


@pytest.mark.parametrize("images", [0, -4])
def test_a_batch_without_images_is_refused(images):
    with pytest.raises(ConfigError, match=f"images: {images} is not allowed"):
        GlobalBatch(images)


@pytest.mark.parametrize(("each", "passes"), [(0, 1), (4, 0)])
def test_a_step_without_images_is_refused(each, passes):
    with pytest.raises(ConfigError, match=f"batch_size {each} and .*accumulate_grad_batches {passes}"):
        GlobalBatch(8).setup(devices(1, each, passes), TinyModule(), "fit")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_epochs", -1, "which needs an end; set trainer.max_epochs"),
        ("max_epochs", -3, "max_epochs"),  # Lightning's own words
    ],
)
def test_a_run_without_end_is_refused_in_one_line(option, value, message, tmp_path, capsys):
    assert fit(write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", **{option: value})) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("botnet: ")
    assert message in said


def test_an_epoch_ends_with_a_complete_step(tmp_path):
    # 10 samples in steps of 4, as 2 passes of 2: two steps; the other two samples are left out.
    recipe = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", {"length": 10, "batch_size": 2})
    assert fit(recipe, "--global_batch", "4") == 0
    assert learnt(tmp_path / "run")["global_step"] == 2 * 2


def test_the_linear_rule(log):
    # 2 devices x 4 images instead of 64: an eighth of the rate, eight times the warm-up.
    trainer, module = devices(2, 4), TinyModule()
    GlobalBatch(64, "linear").setup(trainer, module, "fit")
    assert trainer.accumulate_grad_batches == 1
    assert module.batch_factor == 0.125
    assert "8 images" in log.text
    assert "not the recipe's 64" in log.text
    assert "0.125 times its learning rate" in log.text
    assert "a warm-up over as many images" in log.text
    GlobalBatch(64, "linear").setup(trainer, module, "fit")  # another fit of the same module
    assert module.batch_factor == 0.125
    GlobalBatch(64, "linear").setup(devices(4, 16), module, "fit")
    assert module.batch_factor == 1


@pytest.mark.parametrize(("count", "each", "passes"), [(8, 8, 1), (2, 8, 4)])
def test_the_linear_rule_is_not_mentioned_for_an_unchanged_batch(count, each, passes, log):
    trainer, module = devices(count, each, passes), TinyModule()
    GlobalBatch(64, "linear").setup(trainer, module, "fit")
    assert module.batch_factor == 1
    assert trainer.accumulate_grad_batches == passes
    assert "a step has 64 images" in log.text
    assert ("passes" in log.text) == (passes > 1)
    assert "linear" not in log.text


def test_passes_that_contradict_the_batch_are_refused():
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches 4 .* 32 images, not 64"):
        GlobalBatch(64).setup(devices(1, 8, passes=4), TinyModule(), "fit")
    GlobalBatch(64).setup(devices(1, 8, passes=8), TinyModule(), "fit")


def test_validation_ignores_the_global_batch():
    GlobalBatch(64).setup(devices(3, 8), TinyModule(), "validate")


def test_the_linear_rule_in_numbers_of_the_paper():
    # Detection: rate 0.08 after 500 steps from 0.0067, at 64 images. On 16 images, a quarter and 2000 steps.
    module = DetectionModule(RCNN(num_classes=2, canvas=64, **DETECTOR))
    GlobalBatch(64, "linear").setup(devices(4, 4), module, "fit")
    assert module.learning_rate == pytest.approx(0.02)
    assert module.warmup_steps == 2000
    assert module.warmup_learning_rate == pytest.approx(0.001675)
    assert module.learning_rate * module.rate(0, 90_000) == pytest.approx(0.001675)
    # Half-way up after 1000 steps: (0.001675 + 0.02) / 2.
    assert module.learning_rate * module.rate(1000, 90_000) == pytest.approx(0.0108375)
    assert module.learning_rate * module.rate(2000, 90_000) == pytest.approx(0.02)


# ---- progress in lines


def test_the_time_left_is_that_of_this_start(monkeypatch, log):
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    trainer = SimpleNamespace(
        is_global_zero=True,
        global_step=100,
        estimated_stepping_batches=210,
        callback_metrics={"train/loss": 0.5, "v": 1},
    )
    progress = LineProgress(seconds=20)
    progress.on_train_start(trainer, None)  # a run that resumes after 100 steps
    now[0], trainer.global_step = 1010.0, 102
    progress.on_train_batch_end(trainer)
    assert log.messages == []
    now[0], trainer.global_step = 1050.0, 110
    progress.on_train_batch_end(trainer)
    # 10 steps in 50 s: the other 100 take 500 s.
    assert log.messages == ["step 110/210  loss 0.500  8.3 min left"]


def test_the_bar_reads_the_losses_once_a_second(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    losses = {"train/loss": torch.tensor(0.5), "val/AP": torch.tensor(0.1)}
    trainer = SimpleNamespace(callback_metrics=losses, progress_bar_metrics={"val/AP": 0.1}, loggers=[])
    bar = BarProgress(seconds=1)
    assert bar.get_metrics(trainer, None) == {"val/AP": 0.1, "loss": 0.5}
    now[0], losses["train/loss"] = 0.9, torch.tensor(0.25)
    with Synchronisations() as counted:
        assert bar.get_metrics(trainer, None)["loss"] == 0.5
    assert counted.total == 0
    now[0] = 1.0
    assert bar.get_metrics(trainer, None)["loss"] == 0.25


def test_a_step_of_lightning_waits_for_a_gpu_once():
    """For the check of the loss; here with a bar that shows the losses."""
    found = []

    class Count(L.Callback):
        def on_train_batch_start(self, *_):
            self.counted = Synchronisations()
            self.counted.__enter__()

        def on_train_batch_end(self, *_):
            self.counted.__exit__(None, None, None)
            found.append(dict(self.counted.found))

    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[FiniteLoss(), BarProgress(seconds=1e9), Count()],
    )
    trainer.fit(TinyModule(), TinyData())
    # The module lists its samples itself; the bar has shown the losses of the first step.
    assert found[1:] == [{"tolist": 1, "aten._local_scalar_dense": 1}] * 5


# ---- the run's folder


def test_a_run_without_checkpoints(tmp_path):
    run = tmp_path / "run"
    assert fit(write_tiny(tmp_path / "tiny.yaml", run, enable_checkpointing=False, max_epochs=1)) == 0
    assert not list(tmp_path.rglob("*.ckpt"))
    assert (run / "csv").is_dir()


def test_a_refused_start_does_not_occupy_the_folder(tmp_path, capsys):
    recipe = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", max_epochs=1)
    assert fit(recipe, "--global_batch", "7") == 2
    assert "7 images" in capsys.readouterr().err
    assert (tmp_path / "run" / "csv").is_dir()  # by Lightning, before the batch was checked
    assert fit(recipe) == 0


# ---- the validation at the end


def metrics(folder):
    """Epoch and step of the metrics, and the batches that the evaluated weights were trained on."""
    content = json.loads((folder / "metrics.json").read_text())
    return content["epoch"], content["step"], content["tiny"]["batches"]


def best_step(run):
    return torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize(("trainer", "epoch", "step", "validations"), [
    ({"max_epochs": 3, "check_val_every_n_epoch": 2}, 3, 18, 2),
    ({"check_val_every_n_epoch": 5, "num_sanity_val_steps": 1}, 2, 12, 1),
    ({"check_val_every_n_epoch": None, "val_check_interval": 5}, 2, 12, 3),
    ({"val_check_interval": 4, "min_epochs": 2}, 2, 12, 3),
    ({"val_check_interval": "00:01:00:00"}, 2, 12, 1),
    ({"max_steps": 9}, 1, 9, 2),
    ({"max_steps": 9, "check_val_every_n_epoch": 5}, 1, 9, 1),
    ({"max_steps": 100}, 2, 12, 2),
    ({"callbacks": end_at("on_train_batch_end", 4, "stop"), "check_val_every_n_epoch": 2}, 0, 4, 1),
    ({"callbacks": end_at("on_train_epoch_end", 6, "stop"), "check_val_every_n_epoch": 2}, 1, 6, 1),
    ({"max_time": {"microseconds": 1}, "check_val_every_n_epoch": 2}, 0, 1, 1),
])  # fmt: skip
def test_a_run_ends_with_a_validation(trainer, epoch, step, validations, tmp_path, log):
    run = tmp_path / "run"
    assert fit(write_tiny(tmp_path / "tiny.yaml", run, model="TinyTask", **trainer)) == 0
    assert metrics(run) == (epoch, step, step)
    assert best_step(run) == step
    assert log.messages.count("validating 2 batches") == validations


def test_the_best_checkpoint_within_an_epoch_resumes_there(tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    assert fit(write_tiny(recipe, run, model="TinyTask", max_steps=4)) == 0
    assert fit(write_tiny(recipe, run, model="TinyTask"), "--ckpt_path", "best") == 0
    assert metrics(run) == (2, 12, 12)


# Killed after the last checkpoint: in the last validation, or before the metrics are written.
@pytest.mark.parametrize(("hook", "trainer", "step"), [
    ("on_train_end", {}, 12),
    ("on_validation_start", {"max_steps": 9}, 9),
])  # fmt: skip
def test_a_run_with_nothing_left_to_train_gets_its_metrics(hook, trainer, step, tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    with pytest.raises(Stopped):
        fit(write_tiny(recipe, run, model="TinyTask", callbacks=end_at(hook, step), **trainer))
    assert not (run / "metrics.json").exists()
    assert fit(write_tiny(recipe, run, model="TinyTask", **trainer), "--ckpt_path", "last") == 0
    assert metrics(run) == (step // 6, step, step)
    assert best_step(run) == step
    assert not (run / "validate").exists()


def test_a_run_that_ends_in_the_middle_of_a_step_is_validated_once_at_its_end(tmp_path, log):
    run = tmp_path / "run"
    stop = end_at("on_train_batch_start", 1, "stop")
    recipe = write_tiny(tmp_path / "tiny.yaml", run, model="TinyTask", callbacks=stop)
    assert fit(recipe, "--global_batch", "8") == 0  # two passes a step
    assert metrics(run) == (0, 2, 4)
    assert log.messages.count("validating 2 batches") == 1


def test_validate_writes_epoch_and_step_of_its_checkpoint(tmp_path):
    recipe, run = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", model="TinyTask"), tmp_path / "run"
    stop = end_at("on_train_batch_start", 11)
    with pytest.raises(Stopped):
        fit(write_tiny(tmp_path / "stopped.yaml", run, model="TinyTask", callbacks=stop))
    for name, expected in (("last", (1, 11, 11)), ("best", (1, 6, 6))):
        assert main(["validate", "--config", str(recipe), "--ckpt_path", name]) == 0
        assert metrics(run / "validate") == expected
