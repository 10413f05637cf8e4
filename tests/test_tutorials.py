"""The tutorials: their commands are run on small data, their Python and their notebooks as they are."""

import re
import shlex
from pathlib import Path

import pytest

from botnet.cli import main

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


# Options that make a command of a tutorial small. A later option counts.
SMALL = {
    "make-digits": "--train 12 --val 4",
    "browse-data": "--samples 2",
    # In this process: another one would run the command line of pytest.
    "fit": "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 --trainer.devices 1 "
    "--trainer.strategy auto",
    "reproduce": "--model.detector.backbone botnet_tiny --model.detector.fpn_channels 32 "
    "--model.detector.box_channels 32 --model.detector.mask_channels 32 --trainer.precision 32-true",
}
PAGES = ("first-detector", "blood-cells", "reproduce-a-row")
BCCD = Path(__file__).parents[2] / "shared" / "data" / "bccd"


def steps(page: str) -> list[list[str] | str]:
    """The commands, as arguments, and the Python of a page, in its order."""
    found: list[list[str] | str] = []
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    for language, block in blocks:
        if language == "python":
            found.append(block)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ botnet "):
                found.append(shlex.split(line)[2:])
    return found


def test_every_page_is_run():
    assert {path.stem for path in TUTORIALS.glob("*.md")} == set(PAGES)


@pytest.mark.long
@pytest.mark.parametrize("name", PAGES)
def test_the_commands_and_the_python_of_a_tutorial_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "blood-cells":
        if not BCCD.is_dir():
            pytest.skip(f"{BCCD}, the photographs of the tutorial, is not here")
        (tmp_path / "BCCD_Dataset").mkdir()
        (tmp_path / "BCCD_Dataset" / "BCCD").symlink_to(BCCD)
    names: dict[str, object] = {}
    ran = steps((TUTORIALS / f"{name}.md").read_text())
    for step in ran:
        if isinstance(step, str):
            exec(step, names)
        else:
            small = SMALL.get(step[0], "").split() if len(step) > 1 else []
            if name == "blood-cells" and step[0] == "fit":
                small += ["--data.canvas", "96"]
            assert not main([*step, *small]), shlex.join(step)
    assert sum(isinstance(step, list) for step in ran) >= 4
    written = {
        "first-detector": [
            "look/index.html",
            "runs/quickstart/metrics.json",
            "found/attention",
            "explore.html",
        ],
        "blood-cells": [
            "report/report.html",
            "runs/cells-test/validate/metrics.json",
            "found/BloodImage_00007.png",
        ],
        "reproduce-a-row": ["rehearsal/table3/bot50-jitter-0.1-2.0/metrics.json", "report/report.html"],
    }
    assert [path for path in written[name] if not (tmp_path / path).exists()] == []
