"""The rows of the paper's tables beside one's own runs: ``botnet reproduce`` without a row."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from botnet.errors import BotnetError
from botnet.paper.rows import FASTER_RCNN_SUFFIX, Row, rows
from botnet.paper.runs import format_number, read_run
from botnet.training.run_folder import RunFolder

NUMBERS = {"coco": ("box", "mask"), "imagenet": ("top1", "top5")}


def overview(runs: Path) -> list[Table]:
    """All rows as tables for the terminal, the paper's numbers beside those of the runs in a folder.

    Args:
        runs: each row's run is in its subfolder ``ID``.
    """
    tables = {
        "coco": Table("row", "backbone", "epochs", "jitter", "canvas", box=SIMPLE_HEAD, title="COCO"),
        "imagenet": Table("row", "network", "epochs", "pixels", box=SIMPLE_HEAD, title="ImageNet"),
    }
    tables["coco"].add_column("paper, box / mask AP")
    tables["imagenet"].add_column("paper, top-1 / top-5")
    for table in tables.values():
        table.add_column("yours")
        table.caption_justify = "left"
    for row in rows().values():
        table, numbers, settings = tables[row.family], NUMBERS[row.family], _settings(row)
        table.add_row(row.id, *settings, _pair(row.facts, numbers), _yours(runs / row.id, numbers, table))
        faster = row.id + FASTER_RCNN_SUFFIX
        if (runs / faster).is_dir():
            table.add_row(faster, *[""] * len(settings), "", _yours(runs / faster, numbers, table))
    return list(tables.values())


def _settings(row: Row) -> list[str]:
    facts = row.facts
    if row.family == "imagenet":
        return [facts["name"], str(facts["epochs"]), str(facts["image_size"])]
    return [facts["name"], str(facts["epochs"]), "{}-{}".format(*facts["jitter"]), str(facts["canvas"])]


def _yours(folder: Path, numbers: Sequence[str], table: Table) -> str:
    """The cell of a run; why a run cannot be read goes below the table."""
    if not RunFolder(folder).config.is_file():
        return ""
    try:
        run = read_run(folder)
    except BotnetError as error:
        caption = f"{table.caption}\n{error}" if table.caption else str(error)
        table.caption = Text(caption, "table.caption")
        return "broken"
    if run is None:
        return "started"
    return _pair(run.numbers, numbers) + ("" if run.epoch >= run.epochs else f" ({run.epoch}/{run.epochs})")


def _pair(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return " / ".join(format_number(values.get(name)) for name in names)
