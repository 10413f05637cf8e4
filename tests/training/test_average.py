"""The moving average of the weights: what it is, where it counts, and that resuming keeps it."""

import json
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn

import botnet
from botnet.cli import main
from botnet.detection import load_detector
from botnet.training.average import WeightAverage
from tests.support.recipes import write_recipe
from tests.support.tiny import (
    Stopped,
    TinyData,
    TinyModule,
    differing,
    end_at,
    fit,
    learnt,
    write_tiny,
)

pytestmark = pytest.mark.long

BOTH = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")


def last_of(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


class Watch(L.Callback):
    """The weights after each step, those that are validated, and those after the validation."""

    def __init__(self) -> None:
        self.weights, self.validated, self.after = [], [], []

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.weights.append(self.of(module))

    def on_validation_batch_start(self, trainer, module, *_) -> None:
        self.validated.append(self.of(module))

    def on_validation_end(self, trainer, module) -> None:
        self.after.append(self.of(module))

    @staticmethod
    def of(module: nn.Module) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in module.state_dict().items()}


def trained(**options) -> tuple[TinyModule, Watch]:
    """Six steps and a validation at the end of the epoch."""
    module, watch = TinyModule(**options), Watch()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[watch],
        enable_model_summary=False,
        use_distributed_sampler=False,
        **quiet,
    )
    trainer.fit(module, datamodule=TinyData())
    return module, watch


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (0.9999, lambda w: sum(w) / 6),  # young: the plain mean
        (0.5, lambda w: w[0] / 32 + w[1] / 32 + w[2] / 16 + w[3] / 8 + w[4] / 4 + w[5] / 2),
        (0.0, lambda w: w[5]),
    ],
)
def test_the_average_is_that_of_the_weights(decay, expected):
    module, watch = trained(ema_decay=decay)
    assert len(watch.weights) == 6
    for name in ("net.0.weight", "net.1.bias", "net.1.running_var"):
        average = expected([weights[name] for weights in watch.weights])
        assert not torch.equal(watch.weights[0][name], watch.weights[5][name])
        torch.testing.assert_close(watch.validated[-1][name], average)
        assert torch.equal(watch.after[-1][name], watch.weights[5][name])  # the training goes on from there
        torch.testing.assert_close(module.state_dict()[name], average)


def test_a_sanity_check_sees_the_weights_of_the_start():
    """There is no average before the first step."""
    torch.manual_seed(3)
    expected = TinyModule().state_dict()
    torch.manual_seed(3)
    _, watch = trained(ema_decay=0.9)
    assert differing(watch.validated[0], dict(expected)) == []


def test_whole_numbers_are_not_averaged():
    """An index that is constant stays what it is, whatever its weights round to."""

    class Indexed(TinyModule):
        def __init__(self, **options) -> None:
            super().__init__(**options)
            self.register_buffer("index", torch.arange(200))

    module, quiet = Indexed(ema_decay=0.9), {"logger": False, "enable_checkpointing": False}
    L.Trainer(accelerator="cpu", max_epochs=1, use_distributed_sampler=False, **quiet).fit(
        module, datamodule=TinyData()
    )
    assert torch.equal(module.index, torch.arange(200))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_weights_of_another_precision_are_averaged(precision):
    module, watch = TinyModule(dropout=0.0, ema_decay=0.9999), Watch()
    quiet = {"logger": False, "enable_checkpointing": False}
    L.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        callbacks=[watch],
        use_distributed_sampler=False,
        **quiet,
    ).fit(module, datamodule=TinyData())
    weights = [step["net.0.weight"].double() for step in watch.weights]
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if precision == "64-true" else {"atol": 1e-3, "rtol": 1e-2}
    average = watch.validated[-1]["net.0.weight"].double()
    torch.testing.assert_close(average, sum(weights) / len(weights), **tolerance)


def test_it_is_updated_once_a_step():
    """Of three passes collected into one step it sees the step."""
    counts = []

    class Count(L.Callback):
        def on_train_end(self, trainer, module) -> None:
            (average,) = (c for c in trainer.callbacks if isinstance(c, WeightAverage))
            counts.append(int(average._average_model.n_averaged))

    quiet = {"logger": False, "enable_checkpointing": False, "callbacks": [Count()]}
    L.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=3, use_distributed_sampler=False, **quiet
    ).fit(TinyModule(ema_decay=0.9), datamodule=TinyData())
    assert counts == [2]


@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_before_optimizer_step", 3), ("on_validation_batch_start", 6), ("on_train_batch_start", 9)],
)
def test_a_killed_run_resumes_with_its_average(hook, step, tmp_path):
    recipe, run, whole = tmp_path / "tiny.yaml", tmp_path / "run", tmp_path / "whole"
    every, model = ["--save_minutes", "0", "--ckpt_path", "last"], {"ema_decay": 0.8}
    assert fit(write_tiny(tmp_path / "whole.yaml", whole, options=model)) == 0
    write_tiny(recipe, run, options=model, callbacks=end_at(hook, step))
    with pytest.raises(Stopped):
        fit(recipe, *every)
    assert fit(write_tiny(recipe, run, options=model), *every) == 0
    assert differing(learnt(run), learnt(whole)) == []
    one, other = last_of(whole), last_of(run)
    assert one["averaging_state"]["n_averaged"] == 12
    assert differing(one["state_dict"], one["current_model_state"])
    for part in BOTH:
        assert differing(one[part], other[part]) == [], part


def test_a_checkpoint_saved_in_a_validation_is_that_of_the_step(tmp_path):
    """As Lightning does it when SLURM's signal comes."""

    class Save(L.Callback):
        def on_validation_batch_start(self, trainer, module, *_) -> None:
            if not trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

        def on_train_epoch_end(self, trainer, module) -> None:
            trainer.save_checkpoint(tmp_path / "after.ckpt")

    quiet = {"logger": False, "enable_progress_bar": False, "callbacks": [Save()]}
    L.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, use_distributed_sampler=False, **quiet
    ).fit(TinyModule(ema_decay=0.9), datamodule=TinyData())
    within, after = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("within", "after"))
    assert within["global_step"] == after["global_step"] == 6
    assert differing(within["current_model_state"], within["state_dict"])
    for part in ("state_dict", "current_model_state"):
        assert differing(within[part], after[part]) == []


def test_a_detector_is_validated_loaded_and_fine_tuned_with_the_average(digits, tmp_path, log):
    recipe, run = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run"), tmp_path / "run"
    average = ["--model.ema_decay", "0.9"]
    assert fit(recipe, *average, "--trainer.max_epochs", "2") == 0
    path = run / "checkpoints" / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    assert stored["averaging_state"]["n_averaged"] == 4
    detector, _ = load_detector(path)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, stored["state_dict"][f"detector.{name}"]), name
    name = "rpn.head.conv.0.0.weight"
    assert not torch.equal(
        stored["state_dict"][f"detector.{name}"], stored["current_model_state"][f"detector.{name}"]
    )
    loaded = botnet.load(path).network.state_dict()
    assert torch.equal(loaded[name], stored["state_dict"][f"detector.{name}"])
    metrics = (run / "metrics.json").read_text()
    assert main(["validate", "--config", str(recipe), *average, "--ckpt_path", str(path)]) == 0
    assert json.loads((run / "validate" / "metrics.json").read_text()) == json.loads(metrics)
    # Without the option the training goes on with the weights, with another it restores the average.
    more = ["--trainer.max_epochs", "3", "--model.learning_rate", "0", "--ckpt_path", "last"]
    assert fit(recipe, *more) == 0
    again = last_of(run)
    assert "current_model_state" not in again
    assert torch.equal(
        again["state_dict"][f"detector.{name}"], stored["current_model_state"][f"detector.{name}"]
    )
    assert "ema_decay None (was 0.9)" in log.text
