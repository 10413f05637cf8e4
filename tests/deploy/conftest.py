"""An exported detector."""

from pathlib import Path

import pytest

from botnet.cli import main
from tests.support.deploy import crowd_detector, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("export") / "best.ckpt", crowd_detector())


@pytest.fixture(scope="session")
def exported(checkpoint) -> Path:
    """The detector of the checkpoint, written by the command and compared by it on synthetic pictures."""
    output = checkpoint.with_name("model.onnx")
    assert main(["export", str(checkpoint), "--output", str(output)]) == 0
    assert not list(output.parent.glob("*.partial"))
    return output
