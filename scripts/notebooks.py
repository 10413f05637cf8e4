"""Make the tutorials' notebooks of their .py files, with the output that they print: `make notebooks`."""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


def executed(source: Path) -> nbformat.NotebookNode:
    """The notebook of a .py file in the percent format, run."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # else random, and each run would change the file
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(TUTORIALS))
    for cell in notebook.cells:
        # Without warnings of this machine's libraries, such as that of a missing progress bar.
        cell.get("outputs", [])[:] = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)  # the version of this Python
    return notebook


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """What each cell of code prints, without pictures."""
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") for output in of_cell) for of_cell in outputs]


def main() -> None:
    for source in [Path(name) for name in sys.argv[1:]] or sorted(TUTORIALS.glob("*.py")):
        target = source.with_suffix(".ipynb")
        nbformat.write(executed(source), target)
        print(f"{target}: written")


if __name__ == "__main__":
    main()
