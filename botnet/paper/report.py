"""Runs beside the paper: one Markdown table, and its plots of AP against epochs, jitter and multiply-adds."""

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

from botnet.errors import BotnetError, DataError
from botnet.folders import make_folder
from botnet.models.complexity import info
from botnet.paper.rows import Measured, Row, read_run, rows, shown

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
    done: list[Measured] = []
    waiting: list[str] = []
    problems: list[str] = []
    for folder in dict.fromkeys(folders):
        try:
            run = read_run(folder)
            if run is None:
                waiting.append(str(folder))
            else:
                _check_row(run, known)
                done.append(run)
        except BotnetError as error:
            problems.append(str(error))
    if problems and not done and not waiting:
        raise DataError("; ".join(problems))
    make_folder(out)
    lines = [*_table(done, known)]
    if any(run.row and run.faster_rcnn for run in done):
        lines += ["", "The paper's numbers are of Mask R-CNN; Faster R-CNN is not compared with them."]
    if waiting:
        lines += ["", f"Not evaluated yet, {len(waiting)}: {', '.join(waiting)}."]
    if problems:
        lines += ["", f"Left out, {len(problems)}:", "", *(f"- {problem}" for problem in problems)]
    coco = [row for row in known.values() if row.family == "coco"]
    for name, draw in PLOTS.items():
        figure, axes = plt.subplots(figsize=(7, 4.5))
        if draw(axes, coco, done):
            axes.set_ylabel("box AP, COCO val2017 (%)")
            axes.grid(alpha=0.3)
            # Below: there is an entry for every run.
            legend = axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.13))
            for entry in legend.get_texts():
                entry.set_parse_math(False)  # a folder may have a $ in its name
            figure.savefig(out / f"{name}.png", dpi=120, bbox_inches="tight")
            lines += ["", f"![{name}]({name}.png)"]
        plt.close(figure)
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text)
    return text, problems


def _check_row(run: Measured, known: dict[str, Row]) -> None:
    """Refuse a run of an unknown row, or one that has measured something else than its row."""
    if run.row is None:
        return
    if run.row not in known:
        raise DataError(f"{run.folder}: reproduces row {run.row!r}, which the paper's tables do not have")
    if not run.numbers.keys() & known[run.row].facts.keys():
        raise DataError(f"{run.folder}: its metrics.json has none of the numbers of its row {run.row}")


def _table(runs: list[Measured], known: dict[str, Row]) -> list[str]:
    """One line a run and number, measured and the paper's; runs that are not over say so."""
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
                f"| {folder} | {row} | {epoch} | {name} | {shown(measured)} | "
                f"{'' if printed is None else shown(printed)} | {difference} |"
            )
    return lines


def _against(
    setting: Callable[[dict[str, Any]], Any],
    tables: Sequence[str],
    label: str,
    line: Callable[[dict[str, Any]], str] = lambda facts: facts["name"],
) -> Callable[[Axes, list[Row], list[Measured]], bool]:
    """A plot of box AP against a setting: the paper's rows of some tables, and every run of one of them.

    ``line`` names the line that a row is a point of. Nothing is drawn without a run; the return value says
    whether there was one.
    """

    def draw(axes: Axes, printed: list[Row], runs: list[Measured]) -> bool:
        chosen = {row.id: row for row in printed if row.id.split("/")[0] in tables}
        measured = [
            (run, ap) for run in runs if run.row in chosen and (ap := run.numbers.get("box")) is not None
        ]
        if not measured:
            return False
        for colour, name in enumerate(dict.fromkeys(line(row.facts) for row in chosen.values())):
            # In the tables' order.
            at = {row.id: setting(row.facts) for row in chosen.values() if line(row.facts) == name}
            style: dict[str, Any] = {"color": f"C{colour}"}
            points = [chosen[row].facts["box"] for row in at]
            axes.plot([*at.values()], points, "o--", mfc="none", label=f"{name}, paper", **style)
            own: dict[str, list[float]] = {}
            markers = cycle(MARKERS)
            for run, ap in measured:
                if run.row not in at:
                    continue
                kind, face = ("Faster", "none") if run.faster_rcnn else ("Mask", style["color"])
                text = f"{name}, {kind} R-CNN: {run.folder}"
                axes.plot(at[run.row], ap, next(markers), mfc=face, label=text, **style)
                if not run.faster_rcnn:
                    own.setdefault(run.row, []).append(ap)
            means = [(at[row], fmean(own[row])) for row in at if row in own]
            if len(means) > 1:
                text = f"{name}, mean of the Mask R-CNN runs"
                axes.plot(*zip(*means, strict=True), "-", label=text, **style)
        axes.set_xlabel(label)
        return True

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
