"""The folder of a run, and the checkpoint that a command starts from."""

import errno
import os

import pytest
import torch

from botnet.errors import CheckpointError, ConfigError, DataError
from botnet.training.checkpoint_file import steps_of, write_file
from botnet.training.run_folder import RunFolder, starting_checkpoint

LAST, BEST, SLURM = "checkpoints/last.ckpt", "checkpoints/best.ckpt", "hpc_ckpt_1.ckpt"
PREVIOUS = "checkpoints/previous.ckpt"
LOG = "csv/version_0/metrics.csv"


def make_run(folder, *files):
    """A folder with these files; the checkpoints have 1, 2, ... steps."""
    for steps, name in enumerate(files, 1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"global_step": steps}, folder / name)
    return RunFolder(folder)


@pytest.mark.parametrize(
    ("command", "given", "files", "requeued", "expected"),
    [
        # Nothing given: a new run, unless there is one, or SLURM has restarted the job.
        ("fit", None, [], False, None),
        ("fit", None, [LAST], False, "holds a run already; resume it with --ckpt_path last"),
        ("fit", None, [LOG], False, "holds a run already; resume it with --ckpt_path last"),
        ("fit", None, ["csv/version_0/hparams.yaml"], False, None),  # a refused start
        ("fit", None, [], True, None),
        ("fit", None, [LOG], True, None),
        ("fit", None, [LAST], True, LAST),
        ("fit", None, [LAST, SLURM], True, SLURM),
        ("fit", None, [BEST], True, None),
        ("validate", None, [], False, None),
        ("validate", None, [LAST, BEST], False, None),
        ("validate", None, [LAST, BEST], True, None),
        # last: the newest; a job may give it from its first start on.
        ("fit", "last", [], False, None),
        ("fit", "last", [LOG], False, None),
        ("fit", "last", [BEST, LAST], False, LAST),
        ("fit", "last", [SLURM, LAST], False, LAST),
        ("fit", "last", [LAST, SLURM], False, SLURM),
        ("fit", "last", [SLURM], False, SLURM),
        ("fit", "last", [LAST], True, LAST),
        ("validate", "last", [BEST, LAST], False, LAST),
        ("validate", "last", [LAST, SLURM], False, SLURM),
        ("validate", "last", [], False, "has no checkpoints/last.ckpt"),
        ("validate", "last", [BEST], False, "has no checkpoints/last.ckpt"),
        # best: that or none.
        ("fit", "best", [LAST, BEST], False, BEST),
        ("fit", "best", [LAST, BEST], True, BEST),
        ("fit", "best", [LAST], False, "has no checkpoints/best.ckpt"),
        ("fit", "best", [], False, "has no checkpoints/best.ckpt"),
        ("validate", "best", [LAST, BEST], False, BEST),
        ("validate", "best", [LAST], False, "has no checkpoints/best.ckpt"),
        # A path: whatever the folder holds.
        ("fit", "other.ckpt", [], False, "other.ckpt"),
        ("fit", "other.ckpt", [LAST], True, "other.ckpt"),
        ("validate", "other.ckpt", [LAST], False, "other.ckpt"),
    ],
)
def test_the_checkpoint_that_a_command_starts_from(command, given, files, requeued, expected, tmp_path):
    run = make_run(tmp_path, *files)
    if expected is not None and " " in expected:  # a refusal
        with pytest.raises(ConfigError, match=expected):
            starting_checkpoint(command, given, run, requeued)
        return
    path = str(tmp_path / expected) if expected in files else expected
    assert starting_checkpoint(command, given, run, requeued) == path


def test_the_newest_checkpoint_is_the_one_with_most_steps(tmp_path):
    run = RunFolder(tmp_path)
    assert run.newest() is None
    last, slurm, second = (
        tmp_path / name for name in ("checkpoints/last.ckpt", "hpc_ckpt_1.ckpt", "hpc_ckpt_2.ckpt")
    )
    last.parent.mkdir()
    for age, path, step in ((20, last, 7), (10, slurm, 5)):
        torch.save({"global_step": step}, path)
        os.utime(path, (1000 - age, 1000 - age))
        assert run.newest() == last
    torch.save({"global_step": 7}, second)  # after as many steps, last.ckpt is never inside a step
    assert run.newest() == last
    torch.save({"global_step": 8}, second)
    assert run.newest() == second


def damage(path, how):
    contents = bytearray(path.read_bytes())
    if how == "truncated":
        contents = contents[: len(contents) // 2]
    elif how == "zeros":  # as some file systems leave after a power cut
        middle = contents.index(b"data.pkl") + 80
        contents[middle : middle + 20] = bytes(20)
    else:
        contents = bytearray()
    path.write_bytes(contents)


@pytest.mark.parametrize("how", ["truncated", "zeros", "empty"])
def test_where_the_last_checkpoint_is_broken_the_one_before_is_taken(how, tmp_path, log):
    run = make_run(tmp_path, PREVIOUS, LAST)
    assert run.newest() == run.last
    assert log.text == ""
    damage(run.last, how)
    assert run.newest() == run.previous
    assert f"{run.last} is broken (" in log.text
    assert f"); {run.previous} is taken" in log.text
    damage(run.previous, how)
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        run.newest()


def test_a_run_killed_between_the_two_names_resumes_from_the_one_before(tmp_path, log):
    """On a file system without hard links."""
    run = make_run(tmp_path, PREVIOUS)
    assert run.newest() == run.previous
    assert "is missing" in log.text


def test_a_broken_checkpoint_of_slurm_is_left_out(tmp_path, log):
    run = make_run(tmp_path, PREVIOUS, LAST, SLURM)
    damage(tmp_path / SLURM, "truncated")
    assert run.newest() == run.last
    assert "hpc_ckpt_1.ckpt is broken" in log.text


@pytest.mark.parametrize("links", [True, False])
def test_two_checkpoints_are_kept(links, tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    if not links:

        def refuse(*_):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    for step in range(1, 4):
        write_file({"global_step": step}, run.last, previous=run.previous)
        kept = [steps_of(path) for path in (run.last, run.previous) if path.exists()]
        assert kept == [step, step - 1][:step]
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_partial_files_are_removed(tmp_path):
    run = make_run(tmp_path, LAST, LAST + ".partial", SLURM + ".partial")
    run.remove_partial_files()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [run.last]


def test_metrics_and_configuration_are_read(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_metrics() is None
    with pytest.raises(DataError, match=r"holds no run: .*config\.yaml does not exist"):
        run.read_config()
    run.metrics.write_text('{"epoch": 1}')
    run.config.write_text("row: a/b")
    assert run.read_metrics() == {"epoch": 1}
    assert run.read_config() == {"row": "a/b"}


@pytest.mark.parametrize("content", ["[1", "[1]", "{", "\x00"])
def test_broken_files_are_named(content, tmp_path):
    run = RunFolder(tmp_path)
    for file, read in ((run.metrics, run.read_metrics), (run.config, run.read_config)):
        file.write_text(content)
        with pytest.raises(DataError, match=f"{file.name} is broken"):
            read()
