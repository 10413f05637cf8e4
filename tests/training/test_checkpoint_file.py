"""Checkpoint formats, and reading them without Lightning."""

import pytest
import torch

from botnet import __version__
from botnet.errors import CheckpointError
from botnet.training.checkpoint_file import FORMAT, read_checkpoint, read_file
from tests.support.tiny import fit, write_tiny


def write(path, **metadata):
    torch.save({"botnet": {"classifier": {"name": "x"}, "class_names": []} | metadata}, path)
    return path


@pytest.mark.parametrize("metadata", [{}, {"format": FORMAT, "version": __version__}])
def test_older_and_present_formats_are_read(metadata, tmp_path):
    checkpoint = read_checkpoint(write(tmp_path / "x.ckpt", **metadata))
    assert (checkpoint.kind, checkpoint.spec) == ("classifier", {"name": "x"})


def test_a_newer_format_is_refused(tmp_path):
    path = write(tmp_path / "x.ckpt", format=FORMAT + 1, version="9.9")
    message = rf"x\.ckpt was written by botnet 9\.9 in format {FORMAT + 1}.*--upgrade bottleneck-transformers"
    for read in (read_checkpoint, read_file):
        with pytest.raises(CheckpointError, match=message):
            read(path)


def test_a_run_writes_its_format_and_does_not_resume_from_a_newer_one(tmp_path, capsys):
    recipe = write_tiny(tmp_path / "tiny.yaml", tmp_path / "run", model="TinyTask")
    assert fit(recipe, "--trainer.max_epochs", "1") == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    contents = torch.load(last, weights_only=True)
    assert (contents["botnet"]["format"], contents["botnet"]["version"]) == (FORMAT, __version__)
    contents["botnet"]["format"] += 1
    torch.save(contents, last)
    assert fit(recipe, "--ckpt_path", "last") == 2
    assert "pip install --upgrade bottleneck-transformers" in capsys.readouterr().err


def test_other_files_are_refused_as_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(b"PK\x03\x04 not a whole file")
    with pytest.raises(CheckpointError, match=r"torn\.ckpt cannot be read"):
        read_checkpoint(torn)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(CheckpointError, match="does not say which network"):
        read_checkpoint(foreign)
