"""The tutorials: their commands are run on small data, their Python and their notebooks as they are."""

from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
IDS = [path.stem for path in NOTEBOOKS]


def test_two_tutorials_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in TUTORIALS.glob("*.py")}
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_a_notebook_has_the_cells_of_its_pair(notebook):
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed (the docs extra)")
    cells = [
        [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
        for path in (notebook, notebook.with_suffix(".py"))
    ]
    assert cells[0] == cells[1], "run `make notebooks`"


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_a_notebook_prints_what_it_shows(notebook):
    """They are small by themselves: maps of 12 cells, images of at most 352 pixels, ten steps."""
    for package in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed (the docs extra)")
    import nbformat

    from scripts.notebooks import executed, printed

    shown = printed(nbformat.read(notebook, as_version=4))
    assert printed(executed(notebook.with_suffix(".py"))) == shown
    assert sum(map(bool, shown)) > 5
