"""The command ``botnet``. Heavy imports wait until a command needs them."""

import argparse
import errno
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from botnet.errors import BotnetError, DataError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 well, 1 problems found, 2 a bad request."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] == "validate" and _names_network(arguments):
            return _validate(arguments[1:])
        if arguments and arguments[0] in ("fit", "validate"):
            return _train(None if argv is None else arguments)
        options, further = _parser().parse_known_args(arguments)
        if further and options.run is not _reproduce:  # which hands them on
            _parser().parse_args(arguments)
        options.further = further
        return int(options.run(options))
    except (BotnetError, ImportError) as error:
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
    commands.add_parser(
        "validate",
        add_help=False,
        help="measure a checkpoint: botnet validate --config ...; "
        "or any classifier on class folders: botnet validate --model NAME --data FOLDER",
    )

    predict = commands.add_parser("predict", help="find objects in images, or classify them")
    predict.add_argument("model", help="best.ckpt or last.ckpt of a run, or a classifier's name in timm")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    _add_classifier_options(predict.add_argument_group("classifiers"))
    predict.add_argument("--attention", action="store_true", help="draw what a BoTNet's first BoT block sees")
    predict.add_argument(
        "--pixel", type=int, nargs=2, metavar=("X", "Y"), help="of each image, for --attention (the centre)"
    )
    predict.add_argument(
        "--format",
        choices=("pictures", "coco"),
        help="coco: results files for COCO's server, no pictures (pictures)",
    )
    predict.add_argument(
        "--images-json",
        type=Path,
        help="for --format coco: instances or image_info file that lists the images",
    )
    predict.add_argument("--output", type=Path, default=Path("predictions"), help="new folder (predictions)")
    predict.add_argument("--score", type=float, help="least score that is drawn (0.5)")
    predict.add_argument("--truth", type=Path, help="instances file, drawn beside the predictions")
    predict.add_argument("--device", default="auto", help="cpu, cuda, ... (the best there is)")
    predict.set_defaults(run=_predict)

    digits = commands.add_parser("make-digits", help="make a small COCO-format set of handwritten digits")
    digits.add_argument("directory", type=Path, help="new folder")
    digits.add_argument("--train", type=int, default=1750, help="training images (1750)")
    digits.add_argument("--val", type=int, default=200, help="validation images (200)")
    digits.add_argument("--size", type=int, default=320, help="longer side of the images in pixels (320)")
    digits.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    digits.set_defaults(run=_make_digits)

    images = commands.add_parser(
        "make-images", help="write Fashion-MNIST, as Debian ships it, as class folders"
    )
    images.add_argument("directory", type=Path, help="new folder")
    images.add_argument("--train", type=int, default=60_000, help="training images (60000)")
    images.add_argument("--val", type=int, default=10_000, help="validation images (10000)")
    images.add_argument("--source", type=Path, help="folder of the authors' four files (Debian's package)")
    images.set_defaults(run=_make_images)

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
    report.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs; or figure5, to draw it",
    )
    report.add_argument("--measured", type=Path, help="for figure5: family.json of make bench-family")
    report.add_argument("--out", type=Path, default=Path("report"), help="folder for the report (report)")
    report.set_defaults(run=_report)

    info = commands.add_parser("info", help="count a network's parameters and multiply-adds, stage by stage")
    info.add_argument("name", nargs="?", help="a ResNet-like network of timm or of this project")
    info.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the image in pixels")
    info.add_argument("--paper", action="store_true", help="every count of the paper beside ours")
    info.set_defaults(run=_info)
    return parser


def _names_network(arguments: list[str]) -> bool:
    """Whether ``validate`` is given a network or checkpoint rather than Lightning's configuration."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", action="append")
    parser.add_argument("--model")
    known, _ = parser.parse_known_args(arguments)
    # Lightning's own --model is a class.
    is_class = known.model is not None and known.model.rpartition(".")[2][:1].isupper()
    return known.config is None and known.model is not None and not is_class


def _add_classifier_options(parser: Any) -> None:
    parser.add_argument("--weights", type=Path, help="file of tensors, for a name (those that timm fetches)")
    parser.add_argument("--label-map", type=Path, help="JSON or text: which class is which output")
    parser.add_argument("--crop", type=float, help="part of the short side that is seen (the network's own)")
    parser.add_argument("--size", type=int, help="side in pixels of the network's input (its own)")


def _validate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="botnet validate", description="Accuracy of a classifier on images in class folders"
    )
    parser.add_argument("--model", required=True, help="a name in timm, or a checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    _add_classifier_options(parser)
    parser.add_argument("--reader", default="folder", help="folder, tar, wds or hfds/NAME (folder)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (64)")
    parser.add_argument("--workers", type=int, default=4, help="processes that prepare images (4)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (the best there is)")
    parser.add_argument(
        "--output", type=Path, default=Path("validation.json"), help="report of every class (validation.json)"
    )
    options = parser.parse_args(arguments)
    if options.output.is_dir() or not options.output.parent.is_dir():
        raise DataError(f"--output {options.output}: give a file in a folder that exists")

    from botnet.classification.evaluate import render, validate

    classifier = _open_classifier(options, options.model)
    report = validate(
        classifier,
        options.data,
        reader=options.reader,
        batch_size=options.batch_size,
        num_workers=options.workers,
    )
    options.output.write_text(json.dumps(report, indent=1))
    _show(render(report))
    print(f"top-1 {report['top1']:.3f} %, top-5 {report['top5']:.3f} %, ", end="")
    print(f"{report['images_per_second']:.1f} images/s; every class: {options.output}")
    return 0


def _train(arguments: list[str] | None) -> int:
    import warnings

    # What Lightning calls in jsonargparse and torch is not the user's to mend.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

    from botnet.training.command import TrainingCLI

    try:
        TrainingCLI(arguments)
    except SIGTERMException as stop:
        print(f"botnet: {stop or 'stopped by SIGTERM'}", file=sys.stderr)
        return 143
    except MisconfigurationException as error:  # such as an accelerator that is not there
        raise DataError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"the disk is full ({error}); make room, and go on with --ckpt_path last") from error
    except ValueError as error:
        # jsonargparse wraps what is raised while it builds an object into a report on its types.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BotnetError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None
    return 0


def _predict(options: argparse.Namespace) -> int:
    from botnet.training.checkpoint_file import read_checkpoint

    if options.pixel and not options.attention:
        raise DataError("--pixel names a place for --attention; give both")
    pixel = tuple(options.pixel) if options.pixel else None
    checkpoint = read_checkpoint(options.model) if Path(options.model).is_file() else None
    if checkpoint is None or checkpoint.kind == "classifier":
        for_detectors = ("format", "images_json", "score", "truth")
        _refuse(options, for_detectors, f"is for detectors, and {options.model} is no checkpoint of one")
        return _classify(options, checkpoint or options.model, pixel)
    for_classifiers = ("weights", "label_map", "crop", "size")
    _refuse(options, for_classifiers, f"is for classifiers; {options.model} is a detector")
    from botnet.detection.predict import predict, predict_coco

    if (options.format == "coco") != bool(options.images_json):
        raise DataError("--format coco and --images-json belong together: the list gives the images' ids")
    if options.format == "coco":
        _refuse(options, ("score", "truth", "attention"), "is for pictures, and --format coco draws none")
        predict_coco(checkpoint, options.images, options.output, options.images_json, device=options.device)
        return 0
    _, broken = predict(
        checkpoint,
        options.images,
        options.output,
        score=0.5 if options.score is None else options.score,
        truth=options.truth,
        attention=options.attention,
        pixel=pixel,
        device=options.device,
    )
    return _name_broken(broken)


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse options that were given but would be ignored."""
    for name in names:
        given = getattr(options, name)
        if given is not None and given is not False:  # a score of 0 is given, too
            raise DataError(f"--{name.replace('_', '-')} {why}; leave it out")


def _open_classifier(options: argparse.Namespace, model: Any) -> Any:
    from botnet.classification.classifier import open_classifier

    classifier = open_classifier(
        model,
        options.weights,
        label_map=options.label_map,
        crop=options.crop,
        size=options.size,
        device=options.device,
    )
    size, crop = classifier.preparation["input_size"][-1], classifier.preparation["crop_pct"]
    print(f"{options.model}: images at {size} px, crop {crop:g}")
    return classifier


def _classify(options: argparse.Namespace, model: Any, pixel: tuple[int, int] | None) -> int:
    from botnet.classification.predict import classify, render

    classifier = _open_classifier(options, model)
    records, broken = classify(
        classifier, options.images, options.output, attention=options.attention, pixel=pixel
    )
    _show(render(records))
    left_out = f", {len(broken)} left out" if broken else ""
    print(f"{len(records)} images{left_out}: {options.output / 'predictions.json'}")
    return _name_broken(broken)


def _name_broken(broken: Sequence[DataError]) -> int:
    """Name the images that a prediction had to leave out; returns its exit status."""
    for error in broken:
        print(f"botnet: {error}", file=sys.stderr)
    return 1 if broken else 0


def _make_digits(options: argparse.Namespace) -> int:
    from rich import print as show
    from rich.table import Table

    from botnet.demo.digits import make_digits

    made = make_digits(options.directory, options.train, options.val, options.size, options.seed)
    columns = ("images", "objects", "small", "medium", "large")
    table = Table("split", *columns)
    for split in ("train", "val"):
        table.add_row(split, *(str(made[split][column]) for column in columns))
    show(table)
    print(f"{options.directory}: " + ("made" if made["made"] else "the same set stood there already"))
    return 0


def _make_images(options: argparse.Namespace) -> int:
    from botnet.demo.fashion import make_images

    made = make_images(options.directory, options.train, options.val, options.source)
    what = "made" if made["made"] else "the same images stood there already"
    print(f"{options.directory}: {made['train']} training and {made['val']} validation images: {what}")
    return 0


def _check_data(options: argparse.Namespace) -> int:
    from collections import Counter

    from rich import print as show
    from rich.table import Table

    from botnet.detection.check import check_data

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
    from botnet.paper.rows import find_row, fit_arguments, overview

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
    if options.runs == [Path("figure5")]:
        from botnet.paper.figure5 import figure5

        for path in figure5(options.out, options.measured):
            print(f"{path}: written")
        return 0
    if options.measured:
        raise DataError("--measured is for botnet report figure5; leave it out")
    from botnet.paper.report import report

    text, problems = report(options.runs, options.out)
    print(text)
    print(f"{options.out}: written")
    for problem in problems:
        print(f"botnet: left out: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _info(options: argparse.Namespace) -> int:
    from botnet.models.complexity import info, render_info
    from botnet.paper.counts import paper_table, render_paper

    if options.paper == bool(options.name):
        raise DataError("give the name of a network, or --paper")
    if options.paper and options.size:
        raise DataError("--paper counts at the paper's sizes; leave --size out")
    if options.paper:
        _show(render_paper(paper_table()))
    else:
        try:
            _show(render_info(info(options.name, tuple(options.size) if options.size else None)))
        except ValueError as error:
            raise DataError(str(error)) from error
        if printed := paper_table(options.name):
            _show(render_paper(printed))
    return 0


def _show(*tables: Any) -> None:
    from rich.console import Console

    # A pipe has no width: the usual 80 columns would fold the tables.
    Console(width=None if sys.stdout.isatty() else 140).print(*tables)


if __name__ == "__main__":
    sys.exit(main())
