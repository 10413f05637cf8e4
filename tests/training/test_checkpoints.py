"""Runs that are killed, stopped, run out of disk space or diverge, and their resumption."""

import errno
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import SIGTERMException

from botnet.cli import main
from botnet.errors import CheckpointError, ConfigError, TrainingError
from botnet.training import checkpoints
from botnet.training.checkpoint_io import AtomicCheckpointIO
from botnet.training.checkpoints import LastCheckpoint
from botnet.training.finite_loss import FiniteLoss
from tests.support.recipes import write_recipe
from tests.support.tiny import (
    Stopped,
    TinyData,
    TinyModule,
    differing,
    end_at,
    fit,
    fit_in_a_process,
    learnt,
    logged_steps,
    write_tiny,
)

pytestmark = pytest.mark.long

STEPS = 12  # of a complete run of tests.support.tiny: two epochs of six


# ---- resuming bit for bit


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final state of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert fit(write_tiny(folder / "tiny.yaml", folder / "run")) == 0
    state = learnt(folder / "run")
    assert state["global_step"] == STEPS
    return state


# (hook, optimiser steps done): in the first step, in the middle of either epoch, before the last step of an
# epoch, in the validation after it, when the epoch has just ended, in the last validation.
@pytest.mark.parametrize("minutes", ["0", "10"])
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_start", 0),
        ("on_before_optimizer_step", 3),
        ("on_train_batch_start", 5),
        ("on_train_batch_end", 6),
        ("on_validation_batch_start", 6),
        ("on_validation_end", 6),
        ("on_train_epoch_start", 6),
        ("on_before_optimizer_step", 9),
        ("on_validation_batch_start", 12),
    ],
)
def test_a_killed_run_resumes_to_the_same_end(hook, step, minutes, whole, tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    every = ["--save_minutes", minutes, "--ckpt_path", "last"]
    write_tiny(recipe, run, callbacks=end_at(hook, step))
    with pytest.raises(Stopped):
        fit(recipe, *every)
    write_tiny(recipe, run)
    assert fit(recipe, *every) == 0
    assert differing(learnt(run), whole) == []


@pytest.mark.parametrize(("hook", "step"), [("on_train_epoch_start", 6), ("on_train_batch_start", 7)])
def test_a_killed_run_limited_by_max_steps_resumes_to_the_same_end(hook, step, tmp_path):
    length = {"max_steps": 12, "max_epochs": -1}
    last = ["--save_minutes", "10", "--ckpt_path", "last"]
    assert fit(write_tiny(tmp_path / "whole.yaml", tmp_path / "whole", **length), *last) == 0
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    write_tiny(recipe, run, callbacks=end_at(hook, step), **length)
    with pytest.raises(Stopped):
        fit(recipe, *last)
    assert fit(write_tiny(recipe, run, **length), *last) == 0
    assert learnt(run)["global_step"] == 12
    assert differing(learnt(run), learnt(tmp_path / "whole")) == []


def test_a_run_limited_by_max_steps_does_not_skip_an_epoch(tmp_path):
    """Epochs of one step: the checkpoint is always from the end of an epoch."""
    last = ["--save_minutes", "10", "--ckpt_path", "last"]
    length = {"max_steps": 3, "max_epochs": -1}
    assert fit(write_tiny(tmp_path / "whole.yaml", tmp_path / "whole", {"length": 4}, **length), *last) == 0
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    stop = end_at("on_train_epoch_start", 2)
    write_tiny(recipe, run, {"length": 4}, callbacks=stop, **length)
    with pytest.raises(Stopped):
        fit(recipe, *last)
    assert learnt(run)["global_step"] == 2
    assert fit(write_tiny(recipe, run, {"length": 4}, **length), *last) == 0
    assert differing(learnt(run), learnt(tmp_path / "whole")) == []


@pytest.mark.parametrize(
    ("hook", "by"), [("on_validation_batch_start", None), ("on_train_batch_end", "SIGTERM")]
)
@pytest.mark.parametrize("step", [2, 8])
def test_a_validation_within_an_epoch_is_repeated(step, hook, by, tmp_path):
    """It follows the very step of the checkpoint."""
    often = {"val_check_interval": 2}
    every = ["--save_minutes", "0"]
    assert fit(write_tiny(tmp_path / "whole.yaml", tmp_path / "whole", **often)) == 0
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    write_tiny(recipe, run, callbacks=end_at(hook, step, by), **often)
    if by is None:
        with pytest.raises(Stopped):
            fit(recipe, *every)
    else:
        assert fit(recipe, *every) == 143
    assert learnt(run)["global_step"] == step
    assert fit(write_tiny(recipe, run, **often), *every, "--ckpt_path", "last") == 0
    validated = logged_steps(tmp_path / "whole", "val/score")
    assert len(validated) == 6
    assert logged_steps(run, "val/score") == validated
    assert differing(learnt(run), learnt(tmp_path / "whole")) == []


# ---- runs that end before they are complete


@pytest.mark.parametrize("step", [4, 6, 9])
def test_a_stopped_run_resumes_to_the_same_end(step, whole, tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    stop = end_at("on_train_batch_end", step, "stop")  # as max_time does
    assert fit(write_tiny(recipe, run, callbacks=stop)) == 0
    assert learnt(run)["global_step"] == step
    assert fit(write_tiny(recipe, run), "--ckpt_path", "last") == 0
    assert logged_steps(run, "train/square") == list(range(STEPS))
    found = learnt(run)
    found["loops"] = whole["loops"]  # one more validation has been counted
    assert differing(found, whole) == []


@pytest.mark.parametrize(("first", "then"), [
    ({"max_steps": 4}, {}),
    ({"max_steps": 4}, {"max_steps": STEPS, "max_epochs": -1}),
    ({"max_steps": 6}, {"max_steps": STEPS}),
    ({"max_steps": 100, "max_epochs": 1}, {"max_steps": 100}),  # the epochs end first
])  # fmt: skip
def test_the_rest_of_a_run_limited_by_max_steps_is_not_lost(first, then, tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    assert fit(write_tiny(recipe, run, **first)) == 0
    assert learnt(run)["global_step"] == min(first["max_steps"], 6)
    assert fit(write_tiny(recipe, run, **then), "--ckpt_path", "last") == 0
    assert logged_steps(run, "train/square") == list(range(STEPS))
    assert learnt(run)["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 2


def test_a_stop_waits_for_the_end_of_the_step(tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    write_tiny(recipe, run, callbacks=end_at("on_train_batch_start", 1, "stop"))
    assert fit(recipe, "--global_batch", "8") == 0  # two passes a step: it comes in the first
    assert learnt(run)["global_step"] == 2


def test_early_stopping_within_an_epoch_does_not_end_the_epoch(tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    write_tiny(recipe, run, callbacks=end_at("on_validation_end", 4, "stop"), val_check_interval=2)
    assert fit(recipe) == 0
    assert learnt(run)["global_step"] == 4
    assert fit(write_tiny(recipe, run, val_check_interval=2), "--ckpt_path", "last") == 0
    assert logged_steps(run, "train/square") == list(range(STEPS))


def test_a_run_that_accumulates_gradients_resumes_between_two_steps(tmp_path):
    batch = ["--global_batch", "8", "--save_minutes", "0", "--ckpt_path", "last"]  # two passes a step
    assert fit(write_tiny(tmp_path / "whole.yaml", tmp_path / "whole"), *batch) == 0
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    write_tiny(recipe, run, callbacks=end_at("on_before_optimizer_step", 4))
    with pytest.raises(Stopped):
        fit(recipe, *batch)
    assert learnt(run)["global_step"] == 4
    assert fit(write_tiny(recipe, run), *batch) == 0
    assert learnt(run)["global_step"] == STEPS // 2
    assert differing(learnt(run), learnt(tmp_path / "whole")) == []


def test_a_detector_killed_with_its_workers_resumes_to_the_same_end(digits, tmp_path):
    """SIGKILL in the middle of an epoch; in fp32 on a CPU nothing differs by a bit."""
    data = {"batch_size": 2, "num_workers": 2}
    recipes = {
        name: write_recipe(tmp_path / f"{name}.yaml", digits, tmp_path / name, **data)
        for name in ("whole", "run")
    }
    every = ["--trainer.max_epochs", "2", "--save_minutes", "0", "--trainer.limit_val_batches", "1"]
    assert fit(recipes["whole"], *every) == 0
    killing = yaml.safe_load(recipes["run"].read_text())
    killing["trainer"]["callbacks"] = end_at("on_before_optimizer_step", 6, "SIGKILL")
    (tmp_path / "killing.yaml").write_text(yaml.safe_dump(killing))
    killed = fit_in_a_process(tmp_path / "killing.yaml", *every)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert learnt(tmp_path / "run")["global_step"] == 6  # of eight: the second epoch is half done
    assert logged_steps(tmp_path / "run") == [0, 1, 2, 3, 4, 5]
    assert fit(recipes["run"], *every, "--ckpt_path", "last") == 0
    assert logged_steps(tmp_path / "run") == [0, 1, 2, 3, 4, 5, 6, 7]
    one, other = learnt(tmp_path / "whole"), learnt(tmp_path / "run")
    assert differing(one, other) == []
    assert any("momentum_buffer" in state for state in one["optimizer_states"][0]["state"].values())
    assert any(key.endswith("running_var") for key in one["state_dict"])


def test_a_run_resumes_with_the_same_seed_data_and_batch_only(tmp_path, capsys):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    with pytest.raises(Stopped):
        fit(write_tiny(recipe, run, callbacks=end_at("on_train_batch_start", 3)), "--save_minutes", "0")
    for data, more, message in (
        ({}, ["--seed_everything", "7"], "seed: 0, not 7"),
        ({"length": 25}, [], "training samples: 24, not 25"),
        ({"batch_size": 6}, [], "samples at once on all devices: 4, not 6"),
        # Three batches an epoch: as many as are done already.
        ({"batch_size": 8}, [], "samples at once on all devices: 4, not 8"),
        ({}, ["--global_batch", "8"], "batches in an optimiser step: 1, not 2"),
    ):
        write_tiny(recipe, run, data)
        assert fit(recipe, *more, "--ckpt_path", "last") == 2
        assert message in capsys.readouterr().err


def test_between_two_epochs_the_batch_may_change(tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    assert fit(write_tiny(recipe, run, max_epochs=1)) == 0
    assert fit(write_tiny(recipe, run, {"batch_size": 8}), "--ckpt_path", "last") == 0
    assert learnt(run)["global_step"] == 6 + 3


# ---- where a run resumes


def test_negative_minutes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="minutes: -1 is not allowed"):
        LastCheckpoint(tmp_path / "last.ckpt", -1)


def test_last_without_a_checkpoint_starts_a_new_run(tmp_path, log):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    with pytest.raises(Stopped):  # a folder with logs, but no checkpoint yet
        fit(write_tiny(recipe, run, callbacks=end_at("on_train_batch_end", 1)))
    assert not (run / "checkpoints" / "last.ckpt").exists()
    assert fit(write_tiny(recipe, run, max_epochs=1), "--ckpt_path", "last") == 0
    assert f"{run} has no checkpoint yet: from the start" in log.text
    assert learnt(run)["global_step"] == 6


def test_checkpoints_by_name_are_those_of_the_run(tmp_path, capsys):
    recipe, run = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", max_epochs=1), tmp_path / "run"
    for command, name in (("validate", "last"), ("validate", "best"), ("fit", "best")):
        assert main([command, "--config", str(recipe), "--ckpt_path", name]) == 2
        assert f"{run} has no checkpoints/{name}.ckpt" in capsys.readouterr().err
    assert fit(recipe) == 0
    for name in ("last", "best"):
        assert main(["validate", "--config", str(recipe), "--ckpt_path", name]) == 0
    # Resuming belongs to the command, not to the saved recipe.
    assert fit(recipe, "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["ckpt_path"] is None


def test_a_job_that_slurm_requeues_resumes_by_itself(tmp_path, monkeypatch):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    assert fit(write_tiny(recipe, run, max_epochs=1)) == 0
    write_tiny(recipe, run)
    assert fit(recipe) == 2
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(recipe) == 0
    assert learnt(run)["global_step"] == STEPS


def test_the_best_checkpoint_stays_the_best_after_the_folder_is_moved(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    assert fit(write_tiny(recipe, tmp_path / "run", max_epochs=1)) == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    for name, state in last["callbacks"].items():
        if name.startswith("BestCheckpoint"):
            for part in ("best_model_score", "kth_value"):
                state[part] = torch.tensor(1e6)  # no later validation comes near it
            state["best_k_models"] = {path: torch.tensor(1e6) for path in state["best_k_models"]}
    torch.save(last, tmp_path / "run" / "checkpoints" / "last.ckpt")
    best = (tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert fit(write_tiny(recipe, moved), "--ckpt_path", "last") == 0
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best
    # A run that starts from the checkpoint of another has no best one yet.
    more = ["--ckpt_path", str(moved / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "3"]
    assert fit(write_tiny(recipe, tmp_path / "other"), *more) == 0
    assert (tmp_path / "other" / "checkpoints" / "best.ckpt").is_file()


def test_an_unreadable_image_ends_a_run_or_is_replaced(digits, tmp_path, capfd, log):
    images = tmp_path / "images"
    shutil.copytree(digits / "train", images)
    broken = sorted(images.iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:500])
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run", train_images=str(images))
    assert fit(recipe) == 2
    assert f"{broken}: cannot be decoded" in capfd.readouterr().err
    more = ["--data.init_args.skip_broken", "1", "--ckpt_path", "last", "--trainer.limit_val_batches", "0"]
    assert fit(recipe, *more) == 0
    assert f"{broken}: cannot be decoded" in log.text
    assert "unreadable samples so far, replaced by others: 1" in log.text


# ---- intact checkpoints


@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_leaves_the_previous_checkpoint_intact(before, tmp_path):
    resource = pytest.importorskip("resource")
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    old, new = {"x": torch.arange(10)}, {"x": torch.zeros(1_000_000)}
    if before:
        io.save_checkpoint(old, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file may grow larger
    try:
        with pytest.raises(CheckpointError, match=r"last\.ckpt: the checkpoint cannot be written") as caught:
            io.save_checkpoint(new, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ("the previous checkpoint is intact" in str(caught.value)) == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"] * before
    if before:
        assert differing(torch.load(path, weights_only=True), old) == []


def test_a_checkpoint_of_a_gpu_is_read_onto_the_cpu(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # what torch would write down there
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"weight": torch.ones(2)}, tmp_path / "gpu.ckpt")
    read = AtomicCheckpointIO().load_checkpoint(tmp_path / "gpu.ckpt", weights_only=True)
    assert read["weight"].device.type == "cpu"


def test_a_checkpoint_is_renamed_after_it_is_on_the_disk(tmp_path, monkeypatch):
    path, done = tmp_path / "new" / "last.ckpt", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (done.append(f"{Path(a).parent == path.parent}"), replace(a, b))
    )
    AtomicCheckpointIO().save_checkpoint({"x": torch.ones(3)}, path)
    assert done == ["fsync", "True"]
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["x"].tolist() == [1, 1, 1]


def test_a_full_disk_ends_a_run_with_a_message(tmp_path, monkeypatch, capsys):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    save = torch.save

    def fill(checkpoint, file):
        save(checkpoint, file)
        if checkpoint["global_step"] == 9:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    assert fit(write_tiny(recipe, run), "--save_minutes", "0") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert learnt(run)["global_step"] == 8
    assert not list(run.rglob("*.partial"))


def test_a_disk_that_is_full_of_logs_is_reported(tmp_path, monkeypatch, capsys):
    def fill(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning.pytorch.loggers.CSVLogger.save", fill)
    assert fit(write_tiny(tmp_path / "tiny.yaml", tmp_path / "run")) == 2
    assert "the disk is full" in capsys.readouterr().err


def test_partial_files_of_a_killed_run_are_removed(tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    leftovers = [run / "checkpoints" / "last.ckpt.partial", run / "hpc_ckpt_1.ckpt.partial"]
    (run / "checkpoints").mkdir(parents=True)
    for path in leftovers:
        path.write_bytes(b"half")
    assert fit(write_tiny(recipe, run, max_epochs=1), "--ckpt_path", "last") == 0
    assert not any(path.exists() for path in leftovers)


# ---- SIGTERM


def test_sigterm_saves_and_ends_the_run(whole, tmp_path):
    """Sent to all processes of the run, as clusters do, and again."""
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    hooks = ("on_train_batch_start", "on_before_optimizer_step")
    signals = [signal for hook in hooks for signal in end_at(hook, 8, "SIGTERM", group=True)]
    write_tiny(recipe, run, {"workers": 2}, callbacks=signals)
    stopped = fit_in_a_process(recipe)
    assert stopped.returncode == 143, stopped.stderr
    assert f"stopped by SIGTERM at step 9; resume from {run}/checkpoints/last.ckpt" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert learnt(run)["global_step"] == 9  # the step at hand is done
    assert fit(write_tiny(recipe, run), "--ckpt_path", "last") == 0
    assert differing(learnt(run), whole) == []


def test_sigterm_in_a_validation_stops_it_at_once(whole, tmp_path, capsys):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    write_tiny(recipe, run, callbacks=end_at("on_validation_batch_start", 6, "SIGTERM"))
    before = signal.getsignal(signal.SIGTERM)
    assert fit(recipe) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert "stopped by SIGTERM at step 6" in capsys.readouterr().err
    assert learnt(run)["global_step"] == 5
    assert fit(write_tiny(recipe, run), "--ckpt_path", "last") == 0
    assert differing(learnt(run), whole) == []


def test_sigterm_ends_the_validate_command(tmp_path, capsys):
    stop = end_at("on_validation_batch_start", 0, "SIGTERM")
    recipe = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", callbacks=stop)
    assert main(["validate", "--config", str(recipe)]) == 143
    assert "stopped by SIGTERM; nothing was written" in capsys.readouterr().err


def test_devices_agree_on_a_stop_only_in_batches_that_all_have(monkeypatch):
    """Here one of three batches, where another device has two and has received the signal."""
    asked = []

    def greatest(trainer, value):
        asked.append(value)
        return max(value, -2 if value < 0 else len(asked) > 2)

    monkeypatch.setattr(checkpoints, "greatest", greatest)
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), num_val_batches=[3], global_step=6)
    last = LastCheckpoint("last.ckpt")
    last.on_validation_start(trainer, None)
    last.on_validation_batch_end(trainer, None, None, None, 0)
    with pytest.raises(SIGTERMException, match="step 6"):
        last.on_validation_batch_end(trainer, None, None, None, 1)
    last.on_validation_batch_end(trainer, None, None, None, 2)
    assert asked == [-3, 0, 0]
    with pytest.raises(SIGTERMException):
        last.on_validation_epoch_end(trainer, None)


def test_sigterm_waits_for_the_end_of_the_step(tmp_path):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    write_tiny(recipe, run, callbacks=end_at("on_train_batch_start", 0, "SIGTERM"))
    assert fit(recipe, "--global_batch", "8") == 143  # two passes a step: it comes in the first
    assert learnt(run)["global_step"] == 1


def test_slurms_requeue_signal_still_works(whole, tmp_path, monkeypatch):
    recipe, run, scontrol = tmp_path / "tiny.yaml", tmp_path / "run", tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in {
        "JOB_ID": "77",
        "JOB_NAME": "train",
        "NTASKS": "1",
        "LOCALID": "0",
        "PROCID": "0",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODELIST", "localhost")
    signals = end_at("on_train_batch_end", 2, "SIGUSR1") + end_at("on_train_batch_end", 3, "SIGTERM")
    assert fit(write_tiny(recipe, run, callbacks=signals)) == 143
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert (run / "hpc_ckpt_1.ckpt").is_file()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(write_tiny(recipe, run)) == 0
    assert differing(learnt(run), whole) == []


# ---- a loss that is not finite


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, capsys):
    recipe, run = tmp_path / "tiny.yaml", tmp_path / "run"
    assert fit(write_tiny(recipe, run, {"infinite": 13}), "--save_minutes", "0") == 2
    message = capsys.readouterr().err
    done = learnt(run)["global_step"] if (run / "checkpoints" / "last.ckpt").exists() else 0
    assert f"step {done} (epoch 0, batch {done}): the loss is not finite (square nan)" in message
    assert "sample 13" in message
    assert message.count("sample ") == 4
    assert "Traceback" not in message


@pytest.mark.parametrize("passes", [1, 3])
def test_a_loss_that_is_not_finite_does_not_reach_the_weights(passes):
    module, data, weights = TinyModule(), TinyData(infinite=13), []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            weights.append([p.detach().clone() for p in module.parameters()])

    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=passes,
        callbacks=[Watch(), FiniteLoss()],
    )
    with pytest.raises(TrainingError, match="the weights have not been changed"):
        trainer.fit(module, data)
    assert len(weights) == trainer.fit_loop.batch_idx + 1
    assert differing(list(module.parameters()), weights[-1]) == []
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_the_scaled_loss_of_fp16_is_not_shown_as_the_loss():
    class Large(TinyModule):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index) * 0 + 1e35
            self.log("train/square", loss.detach())
            return loss

    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        plugins=MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=65536.0)),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=FiniteLoss(),
    )
    with pytest.raises(TrainingError, match=r"the loss, scaled by 65536 for fp16, .*\(square 1e\+35\)"):
        trainer.fit(Large(), TinyData())


# ---- several devices


@pytest.mark.slow
def test_one_device_that_gets_sigterm_stops_all_and_all_resume(tmp_path):
    recipe, two = tmp_path / "tiny.yaml", {"devices": 2, "strategy": "ddp"}
    assert fit_in_a_process(write_tiny(recipe, tmp_path / "whole", **two)).returncode == 0
    write_tiny(
        recipe, tmp_path / "run", callbacks=end_at("on_train_batch_start", 1, "SIGTERM", rank=1), **two
    )
    stopped = fit_in_a_process(recipe)
    assert stopped.returncode == 143, stopped.stderr
    assert learnt(tmp_path / "run")["global_step"] == 2
    assert (
        fit_in_a_process(write_tiny(recipe, tmp_path / "run", **two), "--ckpt_path", "last").returncode == 0
    )
    assert differing(learnt(tmp_path / "run"), learnt(tmp_path / "whole")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "rank"), [("on_validation_batch_start", 1), ("on_validation_epoch_end", 0)])
def test_one_device_that_gets_sigterm_in_a_validation_stops_all(hook, rank, tmp_path):
    """The first has two batches, the second one."""
    recipe, two = tmp_path / "tiny.yaml", {"devices": 2, "strategy": "ddp"}
    data = {"batch_size": 2, "length": 8, "val_length": 5}
    write_tiny(recipe, tmp_path / "run", data, callbacks=end_at(hook, 2, "SIGTERM", rank=rank), **two)
    stopped = fit_in_a_process(recipe)
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.count("stopped by SIGTERM at step 2") == 2
    assert "Traceback" not in stopped.stderr


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_device_ends_all(tmp_path):
    recipe = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", {"infinite": 13}, devices=2, strategy="ddp")
    ended = fit_in_a_process(recipe)
    assert ended.returncode == 2, ended.stderr
    for message in ("the loss is not finite (", "the loss of another device"):
        assert ended.stderr.count(message) == 1
    assert "sample 13" in ended.stderr


def test_a_trainer_with_another_plugin_for_checkpoints_keeps_the_last_one_alone(tmp_path):
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        callbacks=[LastCheckpoint(tmp_path / "last.ckpt", 0)],
    )
    trainer.fit(TinyModule(), TinyData())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not (tmp_path / "previous.ckpt").exists()
