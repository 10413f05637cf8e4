"""A sound data set on disk, to be spoilt."""

from pathlib import Path

import pytest

from tests.detection.samples import Set


@pytest.fixture
def made(tmp_path: Path) -> Set:
    return Set(tmp_path)
