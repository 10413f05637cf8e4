"""Shared fixtures. Data that only some machines have is asked for here, and its absence is said."""

import os
from pathlib import Path

import pytest

COCO_BY = Path(os.environ.get("BOTNET_COCO_BY", Path(__file__).parents[2] / "shared" / "data" / "coco_by"))


@pytest.fixture(scope="session")
def coco_by() -> Path:
    """A folder with 60 real COCO photographs: instances_train.json, instances_val.json, images/."""
    if not COCO_BY.is_dir():
        pytest.skip(f"no COCO photographs at {COCO_BY}; set BOTNET_COCO_BY to a folder that has them")
    return COCO_BY
