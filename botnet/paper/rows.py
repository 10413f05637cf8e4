"""The rows of the paper's tables: reported numbers, recipes, and measured runs."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from botnet.errors import BotnetError, ConfigError, DataError, nearest
from botnet.training.recipes import RECIPES

HERE = Path(__file__).parent
FASTER = "-faster-rcnn"  # what the folder of a row's run without masks ends in
# Where a data set has its parts: option of the data module, path under --data.
LAYOUTS = {
    "coco": {
        "train_instances": "annotations/instances_train2017.json",
        "train_images": "train2017",
        "val_instances": "annotations/instances_val2017.json",
        "val_images": "val2017",
    },
    "imagenet": {"train": "train", "val": "val"},
}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        id: table and row, such as ``table3/bot50-jitter-0.1-2.0``.
        family: ``coco`` or ``imagenet``.
        facts: as ``paper.yaml`` has them: name, network, setting, and what the paper reports in percent.
    """

    id: str
    family: str
    facts: dict[str, Any]

    @property
    def recipe(self) -> Path:
        return RECIPES / self.family / f"{self.id}.yaml"


@dataclass(frozen=True)
class Measured:
    """The last evaluation of a run.

    Args:
        folder: the run's.
        row: id of the row that it reproduces, if it says one.
        epoch, epochs: evaluated after, of how many.
        numbers: in percent, named as in ``paper.yaml``: box, mask, box50, ..., top1, top5; None where there
            was nothing to measure.
        config: the run's whole configuration.
    """

    folder: Path
    row: str | None
    epoch: int
    epochs: int
    numbers: dict[str, float | None]
    config: dict[str, Any]

    @property
    def faster_rcnn(self) -> bool:
        """Whether it is a detector without masks; the paper's numbers are of Mask R-CNN."""
        return "box" in self.numbers and "mask" not in self.numbers


def rows() -> dict[str, Row]:
    """Every row that has a recipe, by id, in the order of the tables."""
    families = yaml.safe_load((HERE / "paper.yaml").read_text())
    return {
        facts["id"]: Row(facts["id"], family, {k: v for k, v in facts.items() if k != "id"})
        for family, listed in families.items()
        for facts in listed
    }


def find_row(name: str) -> Row:
    """The row of that id.

    Raises:
        ConfigError: there is none.
    """
    known = rows()
    if name not in known:
        raise ConfigError(
            f"no row {name!r} in the paper's tables{nearest(name, known)} (botnet reproduce lists all)"
        )
    return known[name]


def fit_arguments(row: Row, data: Path, runs: Path, masks: bool = True) -> list[str]:
    """The arguments of ``botnet fit`` that train a row.

    Args:
        row: from :func:`find_row`.
        data: root of the data set in its usual layout (`LAYOUTS`).
        runs: folder that gets the run, in ``runs/ID``.
        masks: False for Faster R-CNN in place of Mask R-CNN.

    Raises:
        DataError: a part of the data is not where it should be; or ImageNet without masks.
    """
    if not masks and row.family != "coco":
        raise DataError(f"{row.id} is classification; only rows of COCO have a Faster R-CNN")
    arguments = ["fit", "--config", str(row.recipe)]
    layout = LAYOUTS[row.family]
    missing = [str(data / part) for part in layout.values() if not (data / part).exists()]
    if missing:
        raise DataError(
            f"{data} is no {row.family} in its usual layout: {', '.join(missing)} missing; give its root, or "
            f"use botnet fit --config {row.recipe} with your own paths"
        )
    for option, part in layout.items():
        arguments += [f"--data.init_args.{option}", str(data / part)]
    if not masks:
        arguments += ["--data.init_args.masks", "false"]
    return [*arguments, "--trainer.default_root_dir", str(runs / (row.id + ("" if masks else FASTER)))]


def read_run(folder: Path) -> Measured | None:
    """The last evaluation of a run; None if there was none yet.

    Raises:
        DataError: the folder holds no run, or its files are broken.
    """
    config_file, metrics_file = folder / "config.yaml", folder / "metrics.json"
    if not config_file.is_file():
        raise DataError(f"{folder} holds no run: {config_file} does not exist")
    if not metrics_file.is_file():
        return None
    try:
        config = yaml.safe_load(config_file.read_text())
        metrics = json.loads(metrics_file.read_text())
        epochs = int(config["trainer"]["max_epochs"] or 0)
        row = config.get("row")
        if not isinstance(row, str | None):
            raise TypeError(f"row: {row!r} is not the name of a row")
        return Measured(folder, row, int(metrics["epoch"]), epochs, _numbers(metrics), config)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, yaml.YAMLError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{folder}: its config.yaml or metrics.json is broken ({reason})") from error


def _numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    """What ``metrics.json`` says, in percent and in the names of ``paper.yaml``."""
    found: dict[str, float | None] = {}
    for kind in ("box", "mask"):
        for name, suffix in (("AP", ""), ("AP50", "50"), ("AP75", "75")):
            if kind in metrics:
                found[kind + suffix] = _percent(metrics[kind][name], 100)
    for name in ("top1", "top5"):
        if name in metrics:
            found[name] = _percent(metrics[name], 1)
    return found


def _percent(value: Any, scale: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    # COCO's AP is -1 where there is no object to find.
    return scale * value if math.isfinite(value) and value >= 0 else None


def overview(runs: Path) -> list[Table]:
    """All rows as tables for the terminal, the paper's numbers beside those of the runs under ``runs``."""
    coco = Table("row", "backbone", "epochs", "jitter", "canvas", box=SIMPLE_HEAD, title="COCO")
    coco.add_column("paper, box / mask AP")
    imagenet = Table("row", "network", "epochs", "pixels", box=SIMPLE_HEAD, title="ImageNet")
    imagenet.add_column("paper, top-1 / top-5")
    for table in (coco, imagenet):
        table.add_column("yours")
        table.caption_justify = "left"
    for row in rows().values():
        facts = row.facts
        if row.family == "coco":
            jitter = "{}-{}".format(*facts["jitter"])
            setting = [facts["name"], str(facts["epochs"]), jitter, str(facts["canvas"])]
            numbers, table = ("box", "mask"), coco
        else:
            setting = [facts["name"], str(facts["epochs"]), str(facts["image_size"])]
            numbers, table = ("top1", "top5"), imagenet
        table.add_row(row.id, *setting, _pair(facts, numbers), _yours(runs / row.id, numbers, table))
        faster = runs / (row.id + FASTER)
        if faster.is_dir():
            table.add_row(row.id + FASTER, *[""] * len(setting), "", _yours(faster, numbers, table))
    return [coco, imagenet]


def _yours(folder: Path, numbers: Sequence[str], table: Table) -> str:
    """A run's cell; why it cannot be read goes under the table."""
    if not (folder / "config.yaml").is_file():
        return ""
    try:
        run = read_run(folder)
    except BotnetError as error:
        said = f"{table.caption}\n{error}" if table.caption else str(error)
        table.caption = Text(said, "table.caption")
        return "broken"
    if run is None:
        return "started"
    return _pair(run.numbers, numbers) + ("" if run.epoch >= run.epochs else f" ({run.epoch}/{run.epochs})")


def _pair(values: dict[str, Any], names: Sequence[str]) -> str:
    return " / ".join(shown(values.get(name)) for name in names)


def shown(number: float | None) -> str:
    """A number of the tables, or a dash where there is none."""
    return "-" if number is None else f"{number:.1f}"
