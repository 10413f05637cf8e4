"""``botnet make-digits``, ``make-images`` and ``check-data``."""

import argparse
from pathlib import Path

from botnet.arguments import COUNT, DIGITS_SIDE, SEED
from botnet.cli.tables import show
from botnet.errors import ConfigError

LISTED = 10  # problems of each kind that check-data lists by default


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands about data sets."""
    digits = commands.add_parser(
        "make-digits", description="make a small COCO-format data set of handwritten digits"
    )
    digits.add_argument("directory", type=Path, help="new folder")
    digits.add_argument("--train", type=COUNT, default=1750, help="training images (1750)")
    digits.add_argument("--val", type=COUNT, default=200, help="validation images (200)")
    digits.add_argument(
        "--size", type=DIGITS_SIDE, default=320, help="longer side of the images in pixels (320)"
    )
    digits.add_argument("--seed", type=SEED, default=0, help="of every random choice (0)")
    digits.set_defaults(run=run_make_digits)

    images = commands.add_parser("make-images", description="write Fashion-MNIST as class folders")
    images.add_argument("directory", type=Path, help="new folder")
    images.add_argument("--train", type=COUNT, default=60_000, help="training images (60000)")
    images.add_argument("--val", type=COUNT, default=10_000, help="validation images (10000)")
    images.add_argument("--source", type=Path, help="folder of the four files of Fashion-MNIST")
    images.set_defaults(run=run_make_images)

    check = commands.add_parser("check-data", description="list every problem of a COCO-format data set")
    check.add_argument("instances", type=Path, metavar="INSTANCES.json")
    check.add_argument("images", type=Path, metavar="IMAGES/")
    check.add_argument("--no-decode", action="store_true", help="do not open the images: faster, finds less")
    check.add_argument("--boxes", action="store_true", help="for Faster R-CNN: annotations need no masks")
    check.add_argument("--all", action="store_true", help=f"list more than {LISTED} problems of each kind")
    check.set_defaults(run=run_check_data)


def run_make_digits(options: argparse.Namespace) -> int:
    """Run ``make-digits``."""
    from rich.table import Table

    from botnet.demo.digits import make_digits

    made = make_digits(options.directory, options.train, options.val, options.size, options.seed)
    table = Table("split", *made["train"])
    for split, counts in (("train", made["train"]), ("val", made["val"])):
        table.add_row(split, *map(str, counts.values()))
    show(table)
    print(f"{options.directory}: {'made' if made['made'] else 'already exists, unchanged'}")
    return 0


def run_make_images(options: argparse.Namespace) -> int:
    """Run ``make-images``."""
    if options.source is None:
        raise ConfigError(
            "make-images needs --source FOLDER, the folder of Fashion-MNIST's four files "
            "(train-images-idx3-ubyte.gz, ...): scripts/fetch_fashion_mnist.py of this project fetches them, "
            "and so does https://github.com/zalandoresearch/fashion-mnist"
        )

    from botnet.demo.fashion import make_images

    made = make_images(options.directory, options.source, options.train, options.val)
    state = "made" if made["made"] else "already exists, unchanged"
    print(f"{options.directory}: {made['train']} training and {made['val']} validation images: {state}")
    return 0


def run_check_data(options: argparse.Namespace) -> int:
    """Run ``check-data``; the exit status is 1 if there are errors."""
    from collections import Counter

    from rich.table import Table

    from botnet.detection.check import check_data

    problems = check_data(
        options.instances, options.images, masks=not options.boxes, decode=not options.no_decode
    )
    counts: Counter[tuple[str, str]] = Counter()
    for problem in problems:
        counts[problem.severity, problem.kind] += 1
        if options.all or counts[problem.severity, problem.kind] <= LISTED:
            print(f"{problem.severity}: {problem.record}: {problem.message}")
    for (_, kind), count in counts.items():
        if count > LISTED and not options.all:
            print(f"and {count - LISTED:,} more of the kind {kind!r} (--all)")
    if counts:
        table = Table("severity", "kind", "count")
        for (severity, kind), count in sorted(counts.items()):
            table.add_row(severity, kind, str(count))
        show(table)
    errors = sum(problem.severity == "error" for problem in problems)
    print(f"{options.instances}: {errors} errors, {len(problems) - errors} warnings")
    return 1 if errors else 0
