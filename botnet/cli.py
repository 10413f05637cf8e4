"""The command ``botnet``. Heavy imports wait until a command needs them."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from botnet.errors import DataError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 well, 1 problems found, 2 a bad request."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in ("fit", "validate"):
            return _train(None if argv is None else arguments)
        options, further = _parser().parse_known_args(arguments)
        if further and options.run is not _reproduce:  # which hands them on
            _parser().parse_args(arguments)
        options.further = further
        return int(options.run(options))
    except (DataError, ImportError) as error:
        print(f"botnet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("botnet: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="botnet",
        description="Bottleneck Transformers for Visual Recognition (Srinivas et al., CVPR 2021)",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    # These two are Lightning's; the entries are here for the list of commands.
    commands.add_parser("fit", add_help=False, help="train: botnet fit --config recipes/quickstart.yaml")
    commands.add_parser("validate", add_help=False, help="measure a checkpoint: botnet validate --config ...")

    predict = commands.add_parser("predict", help="find objects in images and draw them")
    predict.add_argument("checkpoint", type=Path, help="best.ckpt or last.ckpt of a run")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    predict.add_argument("--output", type=Path, default=Path("predictions"), help="new folder (predictions)")
    predict.add_argument("--score", type=float, default=0.5, help="least score that is drawn (0.5)")
    predict.add_argument("--truth", type=Path, help="instances file, drawn beside the predictions")
    predict.add_argument("--device", default="auto", help="cpu, cuda, ... (the best there is)")
    predict.set_defaults(run=_predict)

    digits = commands.add_parser("make-digits", help="make a small COCO-format set of handwritten digits")
    digits.add_argument("directory", type=Path, help="new folder")
    digits.add_argument("--train", type=int, default=2100, help="training images (2100)")
    digits.add_argument("--val", type=int, default=200, help="validation images (200)")
    digits.add_argument("--size", type=int, default=320, help="longer side of the images in pixels (320)")
    digits.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    digits.set_defaults(run=_make_digits)

    check = commands.add_parser("check-data", help="list every problem of a COCO-format data set")
    check.add_argument("instances", type=Path, metavar="INSTANCES.json")
    check.add_argument("images", type=Path, metavar="IMAGES/")
    check.add_argument("--no-decode", action="store_true", help="do not open the images: faster, finds less")
    check.set_defaults(run=_check_data)

    reproduce = commands.add_parser(
        "reproduce",
        help="list the rows of the paper's tables, or train one: botnet reproduce ROW --data ROOT",
    )
    reproduce.add_argument("row", nargs="?", help="such as table3/bot50-jitter-0.1-2.0")
    reproduce.add_argument("--data", type=Path, help="root of COCO or ImageNet in its usual layout")
    reproduce.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (runs)")
    reproduce.add_argument("--faster-rcnn", action="store_true", help="boxes only, without masks")
    reproduce.epilog = "Further options go to botnet fit, such as --trainer.devices 8 or --ckpt_path last."
    reproduce.set_defaults(run=_reproduce)

    report = commands.add_parser("report", help="measured against paper, as Markdown and plots")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    report.add_argument("--out", type=Path, default=Path("report"), help="folder for the report (report)")
    report.set_defaults(run=_report)

    info = commands.add_parser("info", help="count a network's parameters and multiply-adds, stage by stage")
    info.add_argument("name", nargs="?", help="a ResNet-like network of timm or of this project")
    info.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the image in pixels")
    info.add_argument("--paper", action="store_true", help="every count of the paper beside ours")
    info.set_defaults(run=_info)
    return parser


def _train(arguments: list[str] | None) -> int:
    import warnings

    # What Lightning calls in jsonargparse and torch is not the user's to mend.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from botnet.training import TrainingCLI

    try:
        TrainingCLI(arguments)
    except SIGTERMException as stop:
        print(f"botnet: {stop or 'stopped by SIGTERM'}", file=sys.stderr)
        return 143
    except ValueError as error:
        # jsonargparse wraps what is raised while it builds an object into a report on its types.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DataError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None
    return 0


def _predict(options: argparse.Namespace) -> int:
    from botnet.detection.predict import predict

    predict(
        options.checkpoint,
        options.images,
        options.output,
        score=options.score,
        truth=options.truth,
        device=options.device,
    )
    return 0


def _make_digits(options: argparse.Namespace) -> int:
    from rich import print as show
    from rich.table import Table

    from botnet.detection.digits import make_digits

    made = make_digits(options.directory, options.train, options.val, options.size, options.seed)
    columns = ("images", "objects", "small", "medium", "large")
    table = Table("split", *columns)
    for split in ("train", "val"):
        table.add_row(split, *(str(made[split][column]) for column in columns))
    show(table)
    print(f"{options.directory}: " + ("made" if made["made"] else "the same set stood there already"))
    return 0


def _check_data(options: argparse.Namespace) -> int:
    from collections import Counter

    from rich import print as show
    from rich.table import Table

    from botnet.detection.coco import check_data

    problems = check_data(options.instances, options.images, decode=not options.no_decode)
    for problem in problems:
        print(f"{problem.severity}: {problem.record}: {problem.message}")
    counts = Counter((problem.severity, problem.kind) for problem in problems)
    if counts:
        table = Table("severity", "kind", "count")
        for (severity, kind), count in sorted(counts.items()):
            table.add_row(severity, kind, str(count))
        show(table)
    errors = sum(problem.severity == "error" for problem in problems)
    print(f"{options.instances}: {errors} errors, {len(problems) - errors} warnings")
    return 1 if errors else 0


def _reproduce(options: argparse.Namespace) -> int:
    from botnet.reproduce import find_row, fit_arguments, overview

    if options.row is None:
        if options.further:
            raise DataError(f"{' '.join(options.further)}: name a row to train, or nothing to list them")
        _show(*overview(options.runs))
        return 0
    row = find_row(options.row)
    if options.data is None:
        raise DataError(f"{row.id} trains on {row.family}: say where it is by --data ROOT")
    arguments = fit_arguments(row, options.data, options.runs, masks=not options.faster_rcnn)
    arguments += options.further
    print(f"botnet {shlex.join(arguments)}", flush=True)
    return _train(arguments)


def _report(options: argparse.Namespace) -> int:
    from botnet.report import report

    print(report(options.runs, options.out))
    print(f"{options.out}: written")
    return 0


def _info(options: argparse.Namespace) -> int:
    from botnet.models.complexity import info, paper_table, render_info, render_paper

    if options.paper == bool(options.name):
        raise DataError("give the name of a network, or --paper")
    if options.paper:
        shown = render_paper(paper_table())
    else:
        try:
            shown = render_info(info(options.name, tuple(options.size) if options.size else None))
        except ValueError as error:
            raise DataError(str(error)) from error
    _show(shown)
    return 0


def _show(*tables: Any) -> None:
    from rich.console import Console

    # A pipe has no width: the usual 80 columns would fold the tables.
    Console(width=None if sys.stdout.isatty() else 120).print(*tables)


if __name__ == "__main__":
    sys.exit(main())
