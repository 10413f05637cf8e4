"""``botnet make-digits``, ``make-relations``, ``make-images``, ``check-data``, ``convert``, ``split`` and
``browse-data``.
"""

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from botnet.arguments import COUNT, DIGITS_SIDE, POSITIVE_PART, RELATION, RELATIONS_CANVAS, SEED, SIDE
from botnet.cli.tables import show
from botnet.cli.train import explained
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

    relations = commands.add_parser(
        "make-relations",
        description="make a small COCO-format data set of digits whose classes depend on others",
    )
    relations.add_argument("directory", type=Path, help="new folder")
    relations.add_argument("--task", type=RELATION, required=True, metavar="TASK", help=f"one of {RELATION}")
    relations.add_argument("--train", type=COUNT, default=8000, help="training images (8000)")
    relations.add_argument("--val", type=COUNT, default=1500, help="validation images (1500)")
    relations.add_argument(
        "--canvas", type=RELATIONS_CANVAS, default=128, help="side of the images in pixels (128)"
    )
    relations.add_argument("--seed", type=SEED, default=0, help="of every random choice (0)")
    relations.set_defaults(run=run_make_relations)

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

    convert = commands.add_parser("convert", description="YOLO, Pascal VOC or labelme to COCO; COCO to YOLO")
    convert.add_argument("source", type=Path, metavar="SOURCE/", help="folder of a data set")
    convert.add_argument("out", type=Path, metavar="OUT/", help="new folder")
    convert.add_argument("--to", choices=("coco", "yolo"), default="coco", help="format (coco)")
    convert.set_defaults(run=run_convert)

    split = commands.add_parser("split", description="split an instances file into train.json and val.json")
    split.add_argument("instances", type=Path, metavar="INSTANCES.json")
    split.add_argument(
        "--val", type=POSITIVE_PART, default=0.2, help="part of the images to validate on (0.2)"
    )
    split.add_argument("--seed", type=SEED, default=0, help="of the choice (0)")
    split.add_argument("--images", type=Path, help="folder of the images: identical files stay in one split")
    split.add_argument("--output", type=Path, help="folder of the new files (that of INSTANCES.json)")
    split.set_defaults(run=run_split)

    browse = commands.add_parser("browse-data", description="draw what training sees of a data set")
    browse.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="INSTANCES.json IMAGES/ OUT/; OUT/ with --config"
    )
    browse.add_argument(
        "--config",
        type=Path,
        metavar="RECIPE",
        help="take data and settings of a recipe; --data.X VALUE overrides them as in botnet fit",
    )
    browse.add_argument("--canvas", type=SIDE, help="side in pixels (1024), without --config")
    browse.add_argument("--samples", type=COUNT, default=16, help="images to draw (16)")
    browse.set_defaults(run=run_browse_data)


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


def run_make_relations(options: argparse.Namespace) -> int:
    """Run ``make-relations``."""
    from rich.table import Table

    from botnet.demo.relations import make_relations

    made = make_relations(
        options.directory, options.task, options.train, options.val, options.canvas, options.seed
    )
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


def run_convert(options: argparse.Namespace) -> int:
    """Run ``convert``."""
    from rich.table import Table

    from botnet.detection.convert import convert

    made = convert(options.source, options.out, options.to)
    table = Table("split", "images", "hard links", "copies", "objects")
    for split, count in made.splits.items():
        linked, images = count["linked"], count["images"]
        table.add_row(split, *map(str, (images, linked, images - linked, count["objects"])))
    show(table)
    for what, number in sorted(made.losses.items()):
        print(f"{what}: {number}")
    print(f"{options.out}: {made.kind} layout of {options.source}, as {options.to}")
    return 0


def run_split(options: argparse.Namespace) -> int:
    """Run ``split``."""
    from rich.table import Table

    from botnet.detection.split import split_instances

    made = split_instances(options.instances, options.val, options.seed, options.images, options.output)
    table = Table("class", "train", "val")
    for name, number in made.objects["train"].items():
        table.add_row(name, str(number), str(made.objects["val"][name]))
    show(table)
    if options.images:
        print(f"images with the content of another, kept on its side: {made.same_content}")
    for side, path in made.files.items():
        print(f"{path}: {made.images[side]} images")
    one_sided = [name for name, n in made.objects["train"].items() if not (n and made.objects["val"][name])]
    if one_sided:
        print(f"classes that are not on both sides: {', '.join(one_sided)}")
    return 0


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without ``--data.X VALUE``; and these, which ``fit``'s parser reads."""
    rest: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if word.startswith("--data."):
            overrides += [word] if "=" in word else [word, *islice(words, 1)]
        else:
            rest.append(word)
    return rest, overrides


def run_browse_data(options: argparse.Namespace) -> int:
    """Run ``browse-data``."""
    if len(options.paths) != (1 if options.config else 3):
        raise ConfigError("give INSTANCES.json IMAGES/ OUT/, perhaps with --canvas; or --config RECIPE OUT/")
    if options.config and options.canvas:
        raise ConfigError("--canvas is for INSTANCES.json IMAGES/; with --config give --data.canvas")
    if options.further and not options.config:
        raise ConfigError(
            f"{options.further[0]}: is for --config RECIPE; without one there are --canvas and --samples"
        )
    if options.samples < 1 or (options.canvas is not None and options.canvas < 1):
        raise ConfigError("--samples and --canvas need a number from 1")
    from botnet.detection.browse import advice_lines, browse_data, plain_data, recipe_data

    if options.config:
        with explained(["--config", str(options.config), *options.further]):
            data = recipe_data(options.config, options.further).train_set
    else:
        instances, images, _ = options.paths
        data = plain_data(instances, images, options.canvas or 1024)
    out = options.paths[-1]
    print("\n".join(advice_lines(browse_data(data, out, options.samples), data.transform.canvas)))
    print(f"{out / 'index.html'}: written")
    return 0
