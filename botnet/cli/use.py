"""``botnet predict``, ``explore`` and ``evaluate``."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from botnet.arguments import COUNT, CROP, FROM_ZERO, PART, READER, SIDE, WORKERS
from botnet.cli.tables import show
from botnet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from botnet.classification.classifier import Classifier
    from botnet.classification.image_classifier import ImageClassifier
    from botnet.detection.detector import Detector
    from botnet.training.checkpoint_file import TaskCheckpoint

# Options of predict.
FOR_DETECTORS = ("format", "images_json", "score", "truth", "tile")
FOR_CLASSIFIERS = ("weights", "label_map", "crop", "size")

logger = logging.getLogger(__name__)


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands that use a trained model."""
    predict = commands.add_parser("predict", description="find objects in images, or classify them")
    predict.add_argument(
        "model", help="a run, a checkpoint, hf-hub:user/name, or a classifier's name in timm"
    )
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    predict.add_argument("--recursive", action="store_true", help="take images in subfolders, too")
    predict.add_argument(
        "--tile",
        type=SIDE,
        help="cut images into tiles of this side in pixels (default: no tiles)",
    )
    _add_classifier_options(predict.add_argument_group("classifiers"))
    predict.add_argument("--attention", action="store_true", help="draw the attention of a BoT block")
    predict.add_argument("--block", metavar="NAME", help="block of --attention, or all (the first)")
    predict.add_argument(
        "--pixel",
        type=FROM_ZERO,
        nargs=2,
        metavar=("X", "Y"),
        help="query of --attention, in each image's pixels (the centre)",
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
    predict.add_argument("--score", type=PART, help="lowest score that is drawn (0.5)")
    predict.add_argument("--truth", type=Path, help="instances file, drawn beside the predictions")
    predict.add_argument("--device", default="auto", help="cpu, cuda, ... (an accelerator if there is one)")
    predict.set_defaults(run=run_predict)

    explore = commands.add_parser("explore", description="what each place of an image attends to, as a page")
    explore.add_argument(
        "model", help="a run, a checkpoint, hf-hub:user/name, or a classifier's name in timm"
    )
    explore.add_argument("image", type=Path)
    _add_classifier_options(explore.add_argument_group("classifiers"))
    explore.add_argument("--output", type=Path, default=Path("explore.html"), help="HTML file (explore.html)")
    explore.add_argument("--score", type=PART, help="lowest score of a detection on the page (0.5)")
    explore.add_argument("--device", default="auto", help="cpu, cuda, ... (an accelerator if there is one)")
    explore.set_defaults(run=run_explore)

    evaluate = commands.add_parser("evaluate", description="accuracy of a classifier on class folders")
    evaluate.add_argument("model", help="a run, a checkpoint, hf-hub:user/name, or a name in timm")
    evaluate.add_argument("--data", type=Path, required=True, help="folder of class folders")
    _add_classifier_options(evaluate)
    evaluate.add_argument(
        "--reader", type=READER, default="folder", help="folder, tar, wds or hfds/NAME (folder)"
    )
    evaluate.add_argument("--batch-size", type=COUNT, default=64, help="images in a batch (64)")
    evaluate.add_argument(
        "--workers", type=WORKERS, help="processes that prepare images (one per usable core, at most 16)"
    )
    evaluate.add_argument("--device", default="auto", help="cpu, cuda, ... (an accelerator if there is one)")
    evaluate.add_argument(
        "--output", type=Path, default=Path("validation.json"), help="report of every class (validation.json)"
    )
    evaluate.set_defaults(run=run_evaluate)


def _add_classifier_options(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument("--weights", type=Path, help="file of tensors, for a name (those that timm fetches)")
    parser.add_argument("--label-map", type=Path, help="JSON or text: the class of each output")
    parser.add_argument(
        "--crop", type=CROP, help="part of the short side inside the centre crop (the network's own)"
    )
    parser.add_argument("--size", type=SIDE, help="side in pixels of the network's input (its own)")


def run_evaluate(options: argparse.Namespace) -> int:
    """Run ``evaluate``: print a classifier's accuracy and write that of every class."""
    _check_writable(options.output)

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
    show(render(report))
    print(f"top-1 {report['top1']:.3f} %, top-5 {report['top5']:.3f} %, ", end="")
    print(f"{report['images_per_second']:.1f} images/s; every class: {options.output}")
    return 0


def _check_writable(output: Path) -> None:
    """Refuse an output that cannot be written, before the work; an existing file stays as it is."""
    try:
        existed = output.exists()
        output.open("a").close()
    except OSError as error:
        raise ConfigError(
            f"--output {output}: cannot be written ({error.strerror}); give a file in a folder that exists"
        ) from error
    if not existed:
        output.unlink()


def run_predict(options: argparse.Namespace) -> int:
    """Run ``predict`` with a detector or a classifier."""
    if options.pixel and not options.attention:
        raise ConfigError("--pixel is the query of --attention; give both")
    if options.block and not options.attention:
        raise ConfigError("--block is the block of --attention; give both")
    model = _open_model(options)
    if model.task == "detector":
        return _detect(options, cast("Detector", model))
    return _classify(options, cast("ImageClassifier", model))


def run_explore(options: argparse.Namespace) -> int:
    """Run ``explore``: write the page."""
    from botnet.explorer.explore import explore

    threshold = 0.5 if options.score is None else options.score
    page = explore(
        _open_model(options), options.image, options.output, threshold=threshold, name=options.model
    )
    print(f"{page}, {page.stat().st_size / 1e6:.1f} MB: open it in a browser")
    return 0


def _open_model(options: argparse.Namespace) -> "Detector | ImageClassifier":
    """The model of a command: one that was trained here, or a classifier of timm by its name."""
    from botnet.loading import load

    if options.model.endswith(".onnx"):  # without PyTorch
        model = load(options.model)
        _refuse(options, FOR_CLASSIFIERS, f"is for classifiers in PyTorch, and {options.model} is exported")
        if model.task == "classifier":
            _refuse(options, FOR_DETECTORS, f"is for detectors, and {options.model} is a classifier")
        return model
    from botnet.training.model_source import is_trained_here, open_checkpoint

    checkpoint = open_checkpoint(options.model) if is_trained_here(options.model) else None
    if checkpoint is not None and checkpoint.kind == "detector":
        _refuse(options, FOR_CLASSIFIERS, f"is for classifiers; {options.model} is a detector")
        return load(checkpoint, options.device)
    _refuse(options, FOR_DETECTORS, f"is for detectors, and {options.model} is not a checkpoint of one")
    from botnet.classification.image_classifier import TorchClassifier

    return TorchClassifier(_open_classifier(options, checkpoint or options.model))


def _detect(options: argparse.Namespace, detector: "Detector") -> int:
    from botnet.detection.predict import predict, predict_coco

    if (options.format == "coco") != bool(options.images_json):
        raise ConfigError("--format coco and --images-json belong together: the list gives the images' ids")
    if options.format == "coco":
        _refuse(options, ("score", "truth", "attention"), "is for pictures, and --format coco draws none")
        predict_coco(detector, options.images, options.output, options.images_json, tile=options.tile)
        return 0
    _, broken = predict(
        detector,
        options.images,
        options.output,
        recursive=options.recursive,
        tile=options.tile,
        score=0.5 if options.score is None else options.score,
        truth=options.truth,
        attention=options.attention,
        block=options.block,
        pixel=_pixel(options),
    )
    return _name_broken(broken)


def _pixel(options: argparse.Namespace) -> tuple[int, int] | None:
    return tuple(options.pixel) if options.pixel else None


def _classify(options: argparse.Namespace, classifier: "ImageClassifier") -> int:
    from botnet.classification.predict import classify, render

    records, broken = classify(
        classifier,
        options.images,
        options.output,
        recursive=options.recursive,
        attention=options.attention,
        block=options.block,
        pixel=_pixel(options),
    )
    show(render(records))
    left_out = f", {len(broken)} left out" if broken else ""
    print(f"{len(records)} images{left_out}: {options.output / 'predictions.json'}")
    return _name_broken(broken)


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse options that were given but would be ignored."""
    for name in names:
        given = getattr(options, name, None)  # explore has not all options of predict
        if given is not None and given is not False:  # a score of 0 is given, too
            raise ConfigError(f"--{name.replace('_', '-')} {why}; leave it out")


def _open_classifier(options: argparse.Namespace, model: "str | TaskCheckpoint") -> "Classifier":
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
    logger.info(f"{options.model}: images at {size} px, crop {crop:g}")
    return classifier


def _name_broken(broken: Sequence[DataError]) -> int:
    """Name the images that a prediction left out; returns the exit status."""
    for error in broken:
        print(f"botnet: {error}", file=sys.stderr)
    return 1 if broken else 0
