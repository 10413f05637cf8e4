"""Images in classes, and a finished run on them."""

from pathlib import Path

import pytest

from botnet.cli import main
from tests.support.classification import write_images, write_recipe


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """12 training and 9 validation images in three classes."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train")
    write_images(folder / "val", count=3, seed=1)
    return folder


@pytest.fixture(scope="session")
def run(images, tmp_path_factory):
    """A finished run of one epoch: its recipe and its folder."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(folder / "recipe.yaml", images, folder / "run")
    assert main(["fit", "--config", str(recipe)]) == 0
    return recipe, folder / "run"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A trainer without a folder writes into the current one."""
    monkeypatch.chdir(tmp_path)
