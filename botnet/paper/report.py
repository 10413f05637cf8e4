"""Runs beside the paper: one Markdown table, and plots of AP against epochs, jitter and multiply-adds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

from botnet.errors import BotnetError, DataError
from botnet.folders import make_folder
from botnet.models.complexity import info
from botnet.paper.rows import Row, rows
from botnet.paper.runs import Measured, format_number, read_run

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
MARKERS = "s^vD<>pP*X"  # of runs
Facts = Mapping[str, Any]  # of a row in paper.yaml


def report(folders: Sequence[Path], out: Path) -> tuple[str, list[str]]:
    """Write ``report.md`` and the plots that have a run in them.

    Args:
        folders: of runs.
        out: folder for the report.

    Returns:
        The Markdown, and what is wrong with each folder that is left out.

    Raises:
        DataError: no folder holds a run that can be read, or ``out`` cannot be made.
    """
    known = rows()
    evaluated, waiting, problems = _read_runs(folders, known)
    if problems and not evaluated and not waiting:
        raise DataError("; ".join(problems))
    make_folder(out)
    lines = _table(evaluated, known)
    if any(run.row and run.faster_rcnn for run in evaluated):
        lines += ["", "The paper's numbers are of Mask R-CNN; Faster R-CNN is not compared with them."]
    if waiting:
        lines += ["", f"Not evaluated yet, {len(waiting)}: {', '.join(waiting)}."]
    if problems:
        lines += ["", f"Left out, {len(problems)}:", "", *(f"- {problem}" for problem in problems)]
    for name in _save_plots(evaluated, [row for row in known.values() if row.family == "coco"], out):
        lines += ["", f"![{name}]({name}.png)"]
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text)
    return text, problems


def _read_runs(
    folders: Sequence[Path], known: Mapping[str, Row]
) -> tuple[list[Measured], list[str], list[str]]:
    """The evaluated runs, the folders of those without an evaluation, and what is wrong with the others."""
    evaluated: list[Measured] = []
    waiting: list[str] = []
    problems: list[str] = []
    for folder in dict.fromkeys(folders):
        try:
            run = read_run(folder)
            if run is None:
                waiting.append(str(folder))
            else:
                _check_row(run, known)
                evaluated.append(run)
        except BotnetError as error:
            problems.append(str(error))
    return evaluated, waiting, problems


def _check_row(run: Measured, known: Mapping[str, Row]) -> None:
    """Refuse a run of an unknown row, or with none of the numbers of its row."""
    if run.row is None:
        return
    if run.row not in known:
        raise DataError(f"{run.folder}: reproduces row {run.row!r}, which the paper's tables do not have")
    if not run.numbers.keys() & known[run.row].facts.keys():
        raise DataError(f"{run.folder}: its metrics.json has none of the numbers of its row {run.row}")


def _table(runs: Sequence[Measured], known: Mapping[str, Row]) -> list[str]:
    """One line for each run and number: measured, the paper's, and how far the run got."""
    lines = [
        "| run | row | epoch | number | measured | paper | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        facts = known[run.row].facts if run.row else {}
        paper = {} if run.faster_rcnn else facts
        row = f"{run.row} (Faster R-CNN)" if run.row and run.faster_rcnn else run.row or ""
        epoch = f"{run.epoch} of {run.epochs}" if run.epochs > 0 else str(run.epoch)
        folder = str(run.folder).replace("|", r"\|")
        for key, name in NUMBERS.items():
            if key not in run.numbers or (facts and key not in facts):
                continue
            measured, printed = run.numbers[key], paper.get(key)
            difference = "" if measured is None or printed is None else f"{measured - printed:+.1f}"
            lines.append(
                f"| {folder} | {row} | {epoch} | {name} | {format_number(measured)} | "
                f"{'' if printed is None else format_number(printed)} | {difference} |"
            )
    return lines


@dataclass(frozen=True)
class Plot:
    """Box AP against a setting: the paper's rows of some tables, and every run of one of them.

    Args:
        tables: of the paper, such as ``table2``.
        label: of the setting.
        setting: of a row.
        line: name of the line that a row is a point of.
    """

    tables: tuple[str, ...]
    label: str
    setting: Callable[[Facts], Any]
    line: Callable[[Facts], str] = lambda facts: facts["name"]

    def draw(self, axes: Axes, printed: Sequence[Row], runs: Sequence[Measured]) -> bool:
        """Draw the plot if one of the runs belongs to it; returns whether it does.

        Args:
            axes: to draw on.
            printed: rows of the paper, in its order.
            runs: evaluated runs of any row or of none.
        """
        chosen = [row for row in printed if row.id.split("/")[0] in self.tables]
        ids = {row.id for row in chosen}
        own = [run for run in runs if run.row in ids and run.numbers.get("box") is not None]
        if not own:
            return False
        lines: dict[str, list[Row]] = {}
        for row in chosen:
            lines.setdefault(self.line(row.facts), []).append(row)
        for colour, (name, of_line) in enumerate(lines.items()):
            self._draw_line(axes, name, f"C{colour}", of_line, own)
        axes.set_xlabel(self.label)
        return True

    def _draw_line(
        self, axes: Axes, name: str, colour: str, printed: Sequence[Row], runs: Sequence[Measured]
    ) -> None:
        """The paper's points of one line, the runs of its rows, and the mean of those at each row."""
        places = {row.id: self.setting(row.facts) for row in printed}
        paper = [row.facts["box"] for row in printed]
        axes.plot([*places.values()], paper, "o--", mfc="none", label=f"{name}, paper", color=colour)
        comparable: dict[str, list[float]] = {}
        markers = cycle(MARKERS)
        for run in runs:
            ap = run.numbers["box"]
            if run.row not in places or ap is None:
                continue
            kind, face = ("Faster", "none") if run.faster_rcnn else ("Mask", colour)
            text = f"{name}, {kind} R-CNN: {run.folder}"
            axes.plot(places[run.row], ap, next(markers), mfc=face, label=text, color=colour)
            if not run.faster_rcnn:
                comparable.setdefault(run.row, []).append(ap)
        means = [(places[row], fmean(comparable[row])) for row in places if row in comparable]
        if len(means) > 1:
            text = f"{name}, mean of the Mask R-CNN runs"
            axes.plot(*zip(*means, strict=True), "-", label=text, color=colour)


def _save_plots(runs: Sequence[Measured], printed: Sequence[Row], out: Path) -> list[str]:
    """Save the plots that have a run in them; returns their names."""
    saved: list[str] = []
    for name, plot in PLOTS.items():
        figure, axes = plt.subplots(figsize=(7, 4.5))
        if plot.draw(axes, printed, runs):
            axes.set_ylabel("box AP, COCO val2017 (%)")
            axes.grid(alpha=0.3)
            # Below the plot: there is an entry for every run.
            legend = axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.13))
            for entry in legend.get_texts():
                entry.set_parse_math(False)  # a folder may have a $ in its name
            figure.savefig(out / f"{name}.png", dpi=120, bbox_inches="tight")
            saved.append(name)
        plt.close(figure)
    return saved


def _jitter(facts: Facts) -> str:
    return "[{}, {}]".format(*facts["jitter"])


def _backbone_madds(facts: Facts) -> float:
    """Billion multiply-adds of the backbone on the canvas."""
    stages = info(facts["network"], (facts["canvas"], facts["canvas"])).stages
    return sum(stage.madds for stage in stages if stage.name != "head") / 1e9


def _kind(facts: Facts) -> str:
    kind = "BoTNet" if facts["name"].startswith("BoT") else "ResNet"
    return f"{kind}, {facts['canvas']} px, {facts['epochs']} epochs"


PLOTS = {
    "ap_epochs": Plot(("table2",), "epochs (Table 2)", lambda facts: facts["epochs"]),
    "ap_jitter": Plot(("table3",), "scale jitter (Table 3)", _jitter),
    "ap_madds": Plot(
        ("table5", "table6"),
        "multiply-adds of the backbone, 10⁹, complete count (Tables 5, 6)",
        _backbone_madds,
        _kind,
    ),
}
