"""The rows of the paper's tables: what it reports, and the command that trains each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from botnet.errors import ConfigError, DataError, nearest
from botnet.training.recipes import RECIPES

HERE = Path(__file__).parent
FASTER_RCNN_SUFFIX = "-faster-rcnn"  # of the folder of a row's run without masks
# The usual layout of a data set: option of the data module, path in its root.
DATA_LAYOUTS = {
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
        facts: the row of ``paper.yaml``: name, network, settings, and what the paper reports in percent.
    """

    id: str
    family: str
    facts: dict[str, Any]

    @property
    def recipe(self) -> Path:
        """The recipe that trains the row."""
        return RECIPES / self.family / f"{self.id}.yaml"


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
        ConfigError: there is no such row; the message names the nearest.
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
        data: root of the data set in its usual layout (`DATA_LAYOUTS`).
        runs: the run goes into its folder ``runs/ID``.
        masks: False for Faster R-CNN in place of Mask R-CNN.

    Raises:
        ConfigError: a classifier without masks.
        DataError: a part of the data is missing.
    """
    if not masks and row.family != "coco":
        raise ConfigError(f"{row.id} is classification; only rows of COCO have a Faster R-CNN")
    arguments = ["fit", "--config", str(row.recipe)]
    layout = DATA_LAYOUTS[row.family]
    missing = [str(data / part) for part in layout.values() if not (data / part).exists()]
    if missing:
        raise DataError(
            f"{data} does not have the usual layout of {row.family}: {', '.join(missing)} missing; give its "
            f"root, or use botnet fit --config {row.recipe} with your own paths"
        )
    for option, part in layout.items():
        arguments += [f"--data.{option}", str(data / part)]
    if not masks:
        arguments += ["--data.masks", "false"]
    return [
        *arguments,
        "--trainer.default_root_dir",
        str(runs / (row.id + ("" if masks else FASTER_RCNN_SUFFIX))),
    ]
