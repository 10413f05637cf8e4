"""``botnet reproduce``, ``report`` and ``info``."""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from botnet.arguments import SIDE
from botnet.cli.tables import show
from botnet.cli.train import run_lightning
from botnet.errors import ConfigError

logger = logging.getLogger(__name__)


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands about the paper."""
    rows = commands.add_parser(
        "reproduce",
        description="list the rows of the paper's tables, or train one: botnet reproduce ROW --data ROOT",
    )
    rows.add_argument("row", nargs="?", help="such as table3/bot50-jitter-0.1-2.0")
    rows.add_argument("--data", type=Path, help="root of COCO or ImageNet in its usual layout")
    rows.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (runs)")
    rows.add_argument("--faster-rcnn", action="store_true", help="boxes only, without masks")
    rows.epilog = (
        "Further options are passed on to botnet fit, such as --trainer.devices 8 or --ckpt_path last."
    )
    rows.set_defaults(run=run_reproduce)

    runs = commands.add_parser("report", description="where runs fail, as a page; and beside the paper")
    runs.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs; or figure5, to draw it",
    )
    runs.add_argument("--measured", type=Path, help="for figure5: family.json of make bench-family")
    runs.add_argument("--output", type=Path, default=Path("report"), help="folder for the report (report)")
    runs.set_defaults(run=run_report)

    counts = commands.add_parser(
        "info", description="count a network's parameters and multiply-adds, stage by stage"
    )
    counts.add_argument("name", nargs="?", help="a ResNet-like network of timm or of this project")
    counts.add_argument("--size", type=SIDE, nargs=2, metavar=("H", "W"), help="of the image in pixels")
    counts.add_argument("--paper", action="store_true", help="every count of the paper beside ours")
    counts.set_defaults(run=run_info)


def run_reproduce(options: argparse.Namespace) -> int:
    """Run ``reproduce``: list the rows, or train one with :func:`run_lightning`."""
    from botnet.paper.overview import overview
    from botnet.paper.rows import find_row, fit_arguments

    if options.row is None:
        if options.further:
            raise ConfigError(
                f"{' '.join(options.further)}: name a row to train, or give no options to list the rows"
            )
        show(*overview(options.runs))
        return 0
    row = find_row(options.row)
    if options.data is None:
        raise ConfigError(f"{row.id} trains on {row.family}: give its root by --data ROOT")
    arguments = fit_arguments(row, options.data, options.runs, masks=not options.faster_rcnn)
    arguments += options.further
    logger.info(f"botnet {shlex.join(arguments)}")
    return run_lightning(arguments)


def run_report(options: argparse.Namespace) -> int:
    """Run ``report``; the exit status is 1 if a run was left out."""
    if options.runs == [Path("figure5")]:
        from botnet.paper.figure5 import figure5

        for path in figure5(options.output, options.measured):
            print(f"{path}: written")
        return 0
    if options.measured:
        raise ConfigError("--measured is for botnet report figure5; leave it out")
    from botnet.paper.report import report
    from botnet.report.write import write_page

    text, problems = report(options.runs, options.output)
    print(text)
    page = write_page(options.runs, options.output)
    print(f"{options.output}: written; {page} shows where each run fails")
    for problem in problems:
        print(f"botnet: left out: {problem}", file=sys.stderr)
    return 1 if problems else 0


def run_info(options: argparse.Namespace) -> int:
    """Run ``info``: a network's counts, and the paper's."""
    from botnet.models.complexity import info, render_info
    from botnet.paper.counts import paper_table, render_paper

    if options.paper == bool(options.name):
        raise ConfigError("give the name of a network, or --paper")
    if options.paper and options.size:
        raise ConfigError("--paper counts at the paper's sizes; leave --size out")
    if options.paper:
        show(render_paper(paper_table()))
        return 0
    show(render_info(info(options.name, tuple(options.size) if options.size else None)))
    if printed := paper_table(options.name):
        show(render_paper(printed))
    return 0
