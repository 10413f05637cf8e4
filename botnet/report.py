"""Runs beside the paper: one Markdown table, and its plots of AP against epochs, jitter and multiply-adds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from botnet.errors import DataError
from botnet.models.complexity import info
from botnet.reproduce import Measured, Row, read_run, rows

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

NUMBERS = {
    "box": "box AP",
    "box50": "box AP50",
    "box75": "box AP75",
    "mask": "mask AP",
    "mask50": "mask AP50",
    "mask75": "mask AP75",
    "top1": "top-1",
    "top5": "top-5",
}


def report(folders: Sequence[Path], out: Path) -> str:
    """Write ``report.md`` and the plots; returns the Markdown.

    Args:
        folders: of runs.
        out: folder for the report.

    Raises:
        DataError: a folder holds no run.
    """
    runs = {folder: read_run(folder) for folder in folders}
    done = [run for run in runs.values() if run is not None]
    known = rows()
    lines = [*_table(done, known)]
    waiting = [str(folder) for folder, run in runs.items() if run is None]
    if waiting:
        lines += ["", f"Not evaluated yet, {len(waiting)}: {', '.join(waiting)}."]
    out.mkdir(parents=True, exist_ok=True)
    coco = [row for row in known.values() if row.family == "coco"]
    for name, draw in PLOTS.items() if any("box" in run.numbers for run in done) else ():
        figure, axes = plt.subplots(figsize=(7, 4.5))
        draw(axes, coco, done)
        axes.set_ylabel("box AP, COCO val2017 (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(out / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)
        lines += ["", f"![{name}]({name}.png)"]
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text)
    return text


def _table(runs: list[Measured], known: dict[str, Row]) -> list[str]:
    """One line a run and number, measured and the paper's; runs that are not over say so."""
    lines = [
        "| run | row | epoch | number | measured | paper | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        if run.row is not None and run.row not in known:
            raise DataError(f"{run.folder}: reproduces row {run.row!r}, which the paper's tables do not have")
        paper = known[run.row].facts if run.row else {}
        for key, name in NUMBERS.items():
            if key not in run.numbers or (paper and key not in paper):
                continue
            printed = f"{paper[key]:.1f}" if paper else ""
            difference = f"{run.numbers[key] - paper[key]:+.1f}" if paper else ""
            lines.append(
                f"| {run.folder} | {run.row or ''} | {run.epoch} of {run.epochs} | {name} | "
                f"{run.numbers[key]:.1f} | {printed} | {difference} |"
            )
    return lines


def _against(
    setting: Callable[[dict[str, Any]], Any],
    tables: Sequence[str],
    label: str,
    line: Callable[[dict[str, Any]], str] = lambda facts: facts["name"],
) -> Callable[[Axes, list[Row], list[Measured]], None]:
    """A plot of box AP against a setting: the paper's rows of some tables, and every run of one of them.

    ``line`` names the line that a row is a point of.
    """

    def draw(axes: Axes, printed: list[Row], runs: list[Measured]) -> None:
        chosen = {row.id: row for row in printed if row.id.split("/")[0] in tables}
        measured = {run.row: run for run in runs if run.row in chosen and "box" in run.numbers}
        for colour, name in enumerate(dict.fromkeys(line(row.facts) for row in chosen.values())):
            mine = [row for row in chosen.values() if line(row.facts) == name]
            points = [(setting(row.facts), row.facts["box"]) for row in mine]  # the tables' order
            axes.plot(
                *zip(*points, strict=True), "o--", color=f"C{colour}", mfc="none", label=f"{name}, paper"
            )
            own = [
                (x, measured[row.id].numbers["box"])
                for (x, _), row in zip(points, mine, strict=True)
                if row.id in measured
            ]
            if own:
                axes.plot(*zip(*own, strict=True), "s-", color=f"C{colour}", label=f"{name}, measured")
        axes.set_xlabel(label)

    return draw


def _kind(facts: dict[str, Any]) -> str:
    kind = "BoTNet" if facts["name"].startswith("BoT") else "ResNet"
    return f"{kind}, {facts['canvas']} px, {facts['epochs']} epochs"


def _gigas(facts: dict[str, Any]) -> float:
    stages = info(facts["network"], (facts["canvas"], facts["canvas"])).stages
    return sum(stage.madds for stage in stages if stage.name != "head") / 1e9


PLOTS = {
    "ap_epochs": _against(lambda facts: facts["epochs"], ["table2"], "epochs (Table 2)"),
    "ap_jitter": _against(
        lambda facts: "[{}, {}]".format(*facts["jitter"]), ["table3"], "scale jitter (Table 3)"
    ),
    "ap_madds": _against(
        _gigas,
        ["table5", "table6"],
        "multiply-adds of the backbone, 10⁹, complete count (Tables 5, 6)",
        _kind,
    ),
}
