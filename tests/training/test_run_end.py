"""Early stopping: when it ends a run, and that resuming changes nothing."""

import csv
import signal
from pathlib import Path

import pytest
import torch
import yaml

from botnet.errors import ConfigError
from botnet.training.run_end import Patience
from tests.support.recipes import write_recipe
from tests.support.tiny import (
    Stopped,
    differing,
    end_at,
    fit,
    fit_in_a_process,
    learnt,
    logged_steps,
    write_tiny,
)

pytestmark = pytest.mark.long

EPOCHS = 8  # of six steps; at most
AVERAGED = {"ema_decay": 0.8}
PATIENT = ["--patience", "2", "--save_minutes", "0"]


def scores(run: Path) -> list[float]:
    """The validated metric, in the order of the steps."""
    found: dict[int, float] = {}
    for table in sorted(run.glob("csv/version_*/metrics.csv")):
        with table.open(newline="") as file:
            found |= {
                int(row["step"]): float(row["val/score"]) for row in csv.DictReader(file) if row["val/score"]
            }
    return [found[step] for step in sorted(found)]


def expected_validations(values: list[float], patience: int) -> int:
    """Validations until the best one is ``patience`` old."""
    for count in range(1, len(values) + 1):
        best = max(range(count), key=lambda index: (values[index], -index))
        if count - 1 - best >= patience:
            return count
    return len(values)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """A run that nothing ends before its time."""
    folder = tmp_path_factory.mktemp("complete")
    recipe = write_tiny(folder / "tiny.yaml", folder / "run", options=AVERAGED, max_epochs=EPOCHS)
    assert fit(recipe) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The same run, ended by its patience."""
    folder = tmp_path_factory.mktemp("stopped")
    recipe = write_tiny(folder / "tiny.yaml", folder / "run", options=AVERAGED, max_epochs=EPOCHS)
    assert fit(recipe, *PATIENT) == 0
    return folder / "run"


def test_a_run_ends_when_its_patience_does(complete, stopped):
    values = scores(complete)
    assert len(values) == EPOCHS
    count = expected_validations(values, 2)
    assert 2 < count < EPOCHS
    assert scores(stopped) == values[:count]
    assert learnt(stopped)["global_step"] == 6 * count


@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "on_validation_batch_start", "on_train_end"])
def test_a_killed_run_ends_where_it_would_have(hook, stopped, tmp_path):
    """In its last epoch, in its last validation, and after its last checkpoint."""
    step = learnt(stopped)["global_step"] - 3 * (hook == "on_before_optimizer_step")
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    options = {"options": AVERAGED, "max_epochs": EPOCHS}
    write_tiny(recipe, run, callbacks=end_at(hook, step), **options)
    with pytest.raises(Stopped):
        fit(recipe, *PATIENT)
    assert fit(write_tiny(recipe, run, **options), *PATIENT, "--ckpt_path", "last") == 0
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (stopped, run)
    )
    for part in ("global_step", "epoch", "state_dict", "current_model_state", "averaging_state"):
        assert differing(one[part], other[part]) == [], part
    assert scores(run) == scores(stopped)


def test_more_patience_goes_on(stopped, tmp_path, log):
    """That of the recipe counts, not that of the checkpoint."""
    run = tmp_path / "run"
    recipe = write_tiny(tmp_path / "tiny.yaml", run, options=AVERAGED, max_epochs=EPOCHS)
    last = ["--ckpt_path", str(stopped / "checkpoints" / "last.ckpt")]
    assert fit(recipe, *PATIENT, *last) == 0
    assert "val/score was no better in the last 2 validations" in log.text
    assert not logged_steps(run, "train/square")
    assert fit(recipe, "--patience", "100", *last) == 0
    assert learnt(run)["global_step"] == 6 * EPOCHS


def test_it_ends_a_run_within_an_epoch(tmp_path):
    often = {"options": AVERAGED, "max_epochs": EPOCHS, "val_check_interval": 2}
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert fit(write_tiny(tmp_path / "whole.yaml", whole, **often)) == 0
    assert fit(write_tiny(tmp_path / "run.yaml", run, **often), *PATIENT) == 0
    count = expected_validations(scores(whole), 2)
    assert count < 3 * EPOCHS
    assert learnt(run)["global_step"] == 2 * count


def test_a_detector_killed_with_both_resumes_to_the_same_end(digits, tmp_path):
    """SIGKILL; the average of the weights and early stopping are on, images change in colour and angle."""
    data = {"num_workers": 2, "rotation": 10, "color_jitter": 0.3}
    recipes = {
        name: write_recipe(tmp_path / f"{name}.yaml", digits, tmp_path / name, **data)
        for name in ("whole", "run")
    }
    both = ["--model.ema_decay", "0.9", "--patience", "2", "--save_minutes", "0"]
    more = [*both, "--trainer.max_epochs", "4", "--model.learning_rate", "1e-9"]  # nothing becomes better
    assert fit(recipes["whole"], *more) == 0
    whole = learnt(tmp_path / "whole")
    assert whole["global_step"] == 6  # of eight: the first validation was the best one
    killing = yaml.safe_load(recipes["run"].read_text())
    killing["trainer"]["callbacks"] = end_at("on_before_optimizer_step", 3, "SIGKILL")
    (tmp_path / "killing.yaml").write_text(yaml.safe_dump(killing))
    assert fit_in_a_process(tmp_path / "killing.yaml", *more).returncode == -signal.SIGKILL
    assert fit(recipes["run"], *more, "--ckpt_path", "last") == 0
    assert differing(learnt(tmp_path / "run"), whole) == []
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in recipes
    )
    for part in ("current_model_state", "averaging_state"):
        assert differing(one[part], other[part]) == [], part


def test_no_validations_are_no_patience():
    with pytest.raises(ConfigError, match="validations: 0 is not allowed"):
        Patience(0, "val/AP")
