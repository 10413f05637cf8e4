"""A finished run."""

import pytest

from botnet.cli import main
from tests.support.recipes import write_recipe


@pytest.fixture(scope="session")
def run(digits, tmp_path_factory):
    """A finished run of one epoch: its recipe and its folder."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(folder / "recipe.yaml", digits, folder / "run")
    assert main(["fit", "--config", str(recipe)]) == 0
    return recipe, folder / "run"
