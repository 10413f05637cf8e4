"""ResNet against BoT as detectors, on blood cells and on the digits: `make study-detectors`.

Every run is one `botnet fit` of recipes/quickstart.yaml in one process of one thread. A finished run is a row
of docs/study-cells.csv or docs/study-digits.csv and is not repeated; a run that was interrupted starts anew.
The tables go into docs/study.md.
"""

import argparse
import json
import os
import resource
import shutil
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from quickstart import botnet
from study import DOCS, add_row, commit, read_rows
from study_report import Rows, insert, mean_std, shown

NETWORKS = {"resnet_tiny": "ResNet", "botnet_tiny": "BoT"}
JITTERS = {"narrow": (0.9, 1.0), "wide": (0.5, 2.0)}  # scales of the image on its canvas
EPOCHS = (3, 6)  # 1x and 2x
SEEDS = 3
RUNS = Path("runs/study-detectors")
CELLS_CSV, DIGITS_CSV = DOCS / "study-cells.csv", DOCS / "study-digits.csv"
CELLS_FIELDS = ("network", "seed", "val_AP", "val_AP50", "test_AP", "test_AP50", "seconds", "commit")
DIGITS_FIELDS = ("network", "jitter", "epochs", "seed", "AP", "AP50", "seconds", "commit")


def fit(network: str, seed: int, epochs: int, run: Path, *options: str) -> dict[str, float]:
    """Train one detector; AP and AP50 on its validation set."""
    shutil.rmtree(run, ignore_errors=True)
    botnet(
        "fit", "--config", "recipes/quickstart.yaml", "--seed_everything", str(seed),
        "--model.detector.backbone", network, "--data.masks", "false", "--data.batch_size", "8",
        "--trainer.devices", "1", "--trainer.strategy", "auto",
        "--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", str(epochs),
        "--trainer.default_root_dir", str(run), *options,
    )  # fmt: skip
    return read_box(run / "metrics.json")


def read_box(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())["box"]


def cells_run(data: Path, network: str, seed: int) -> dict[str, float]:
    run, test = RUNS / f"cells-{network}-{seed}", RUNS / f"cells-{network}-{seed}-test"
    val = fit(network, seed, 36, run, "--data.root", str(data), "--data.canvas", "160", "--data.flip", "0.5")
    botnet(
        "validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/last.ckpt"),
        "--data.val_instances", str(data / "test.json"), "--data.val_images", str(data / "test"),
        "--trainer.default_root_dir", str(test),
    )  # fmt: skip
    held_out = read_box(test / "validate" / "metrics.json")
    return {
        "val_AP": val["AP"],
        "val_AP50": val["AP50"],
        "test_AP": held_out["AP"],
        "test_AP50": held_out["AP50"],
    }


def digits_run(network: str, jitter: str, epochs: int, seed: int) -> dict[str, float]:
    run = RUNS / f"digits-{network}-{jitter}-{epochs}-{seed}"
    box = fit(network, seed, epochs, run, "--data.jitter", str(list(JITTERS[jitter])))
    return {"AP": box["AP"], "AP50": box["AP50"]}


def add_measured(
    table: Path, fields: tuple[str, ...], run: tuple[Any, ...], measure: Callable[..., dict[str, float]]
) -> None:
    """Train a run that the table lacks, and add its row."""
    names = fields[: len(run)]
    if tuple(map(str, run)) in {tuple(row[name] for name in names) for row in read_rows(table)}:
        return
    state, before = commit(__file__), resource.getrusage(resource.RUSAGE_CHILDREN)
    row = measure(*run)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum((after.ru_utime, after.ru_stime)) - sum((before.ru_utime, before.ru_stime))
    figures = {name: f"{value:.4f}" for name, value in row.items()}
    add_row(
        table,
        fields,
        dict(zip(names, run, strict=True)) | figures | {"seconds": round(seconds), "commit": state},
    )


def run_cells(data: Path) -> None:
    if not (data / "test.json").is_file():
        raise SystemExit(
            f"{data}: no blood cells here. docs/tutorials/blood-cells.md says how to get and convert them; "
            "--only digits does without"
        )
    for seed in range(SEEDS):
        for network in NETWORKS:
            add_measured(CELLS_CSV, CELLS_FIELDS, (network, seed), partial(cells_run, data))


def run_digits() -> None:
    botnet("make-digits", "data/digits")
    for seed, jitter, epochs, network in product(range(SEEDS), JITTERS, EPOCHS, NETWORKS):
        add_measured(DIGITS_CSV, DIGITS_FIELDS, (network, jitter, epochs, seed), digits_run)


def cells_table(rows: Rows) -> str:
    lines = [
        "| network | seeds | val AP | val AP50 | test AP | test AP50 | test AP, each seed | CPU s a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network, label in NETWORKS.items():
        of = [row for row in rows if row["network"] == network]
        if of:
            figures = " | ".join(shown(column(of, name)) for name in CELLS_FIELDS[2:6])
            each = ", ".join(f"{value:.3f}" for value in column(of, "test_AP"))
            seconds = mean_std(column(of, "seconds"))[0]
            lines.append(f"| {label} | {len(of)} | {figures} | {each} | {seconds:.0f} |")
    return "\n".join(lines)


def digits_table(rows: Rows) -> str:
    lines = [
        "| jitter | epochs | seeds | ResNet AP | BoT AP | BoT - ResNet, each seed | ResNet AP50 | BoT AP50 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = {tuple(row[name] for name in DIGITS_FIELDS[:4]): row for row in rows}
    for jitter, (low, high) in JITTERS.items():
        for epochs in EPOCHS:
            settings = [(jitter, str(epochs), str(seed)) for seed in range(SEEDS)]
            paired = [of for of in settings if all((network, *of) in found for network in NETWORKS)]
            if paired:
                resnet, bot = ([found[network, *of] for of in paired] for network in NETWORKS)
                gains = zip(column(bot, "AP"), column(resnet, "AP"), strict=True)
                cells = [
                    f"{low}-{high}",
                    str(epochs),
                    str(len(paired)),
                    shown(column(resnet, "AP")),
                    shown(column(bot, "AP")),
                    ", ".join(f"{ours - theirs:+.3f}" for ours, theirs in gains),
                    shown(column(resnet, "AP50")),
                    shown(column(bot, "AP50")),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def column(rows: Rows, name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("cells", "digits"), help="one of the two sets")
    parser.add_argument(
        "--cells", type=Path, default=Path("data/cells"), help="BCCD as COCO files (data/cells)"
    )
    parser.add_argument("--report", action="store_true", help="write the tables of what is finished")
    args = parser.parse_args()
    if not args.report:
        os.environ["OMP_NUM_THREADS"] = "1"  # a small network's operators gain little from a second thread
        if args.only != "digits":
            run_cells(args.cells)
        if args.only != "cells":
            run_digits()
    texts = {"cells": cells_table(read_rows(CELLS_CSV)), "digits": digits_table(read_rows(DIGITS_CSV))}
    for name, text in texts.items():
        insert(DOCS / "study.md", name, text, Path(__file__).name)
        print(f"\n{text}")


if __name__ == "__main__":
    main()
