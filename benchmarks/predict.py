"""Images a second from files to detections in their pixels: ``predict`` beside torchvision's own detector.

    python benchmarks/predict.py
    python benchmarks/predict.py --cases quickstart --batches 1

Both run the same layers with the same weights: torchvision's ``MaskRCNN`` is built around ours, with its own
decoding, resizing, proposals, suppression, masks of all classes and pasting. It is measured with the images
padded to the square canvas, for which our networks are trained, and as it is by default, padded to a multiple
of 32 pixels. All end with boolean masks (n, H, W), also ours, of which ``predict`` gives run lengths.

The quickstart's detector at 160 px (that of ``make quickstart`` if it is there), and an untrained R50 at
512 px that finds 100 objects in every picture. The pictures are digits on photographs, JPEGs of 640 px. One
thread.
"""

import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import alternate, load, machine, options, ratio, save
from export import QUICKSTART, build
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import MaskRCNN

import botnet
from botnet.demo.digits import make_digits
from botnet.detection import RCNN
from botnet.detection.detector import TorchDetector
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD

CASES = {"quickstart": 160, "R50": 512}  # side of the canvas in pixels
OURS, SAME, LEAST = "botnet", "torchvision, the same canvas", "torchvision, padded to 32 px"


def main() -> None:
    parser = options(__doc__, "predict.json", 5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="images at once")
    parser.add_argument("--checkpoint", type=Path, default=QUICKSTART, help="of the quickstart's detector")
    args = parser.parse_args()

    torch.set_num_threads(1)
    clock = time.process_time if args.cpu_time else time.perf_counter
    results = load(args.out)
    with tempfile.TemporaryDirectory() as folder:
        make_digits(Path(folder) / "digits", 1, max(args.batches), 640, progress=False)
        files = sorted((Path(folder) / "digits" / "val").iterdir())
        for case in args.cases:
            detector = build_detector(case, args.checkpoint)
            for batch in args.batches:
                name = f"{case}, batch {batch}"
                if name in results and not args.again:
                    continue
                print(name, flush=True)
                functions = ways(detector, CASES[case], files[:batch])
                results[name] = {
                    "found": {way: sum(map(len, function())) / batch for way, function in functions.items()},
                    "seconds": alternate(functions, args.rounds, clock),
                    "batch": batch,
                    "machine": machine(torch.device("cpu"), clock),
                }
                save(args.out, results)
    Console(width=120).print(tabulate(results))


def build_detector(case: str, checkpoint: Path) -> RCNN:
    if case == "quickstart":
        return build(case, checkpoint)[0]
    torch.manual_seed(0)
    return botnet.mask_rcnn("resnet50", 80, canvas=CASES[case], score_threshold=0.0).eval()


def ways(detector: RCNN, canvas: int, files: Sequence[Path]) -> dict[str, Callable[[], list[Any]]]:
    """Each way from files to the masks of their images."""
    names = [str(i) for i in range(detector.num_classes)]
    ours: Any = TorchDetector(detector, names, range(detector.num_classes), canvas)
    return {
        OURS: lambda: [
            found.mask.to_dense() for found in ours.predict(files, threshold=0, batch_size=len(files))
        ],
        SAME: predict_as_torchvision(detector, canvas, canvas, files),
        LEAST: predict_as_torchvision(detector, canvas, 32, files),
    }


def predict_as_torchvision(
    detector: RCNN, canvas: int, multiple: int, files: Sequence[Path]
) -> Callable[[], list[Tensor]]:
    """torchvision's detector of the same layers.

    Args:
        detector: ours.
        canvas: longer side of the images in pixels.
        multiple: padded height and width are multiples of it.
        files: of the images.
    """
    heads, rpn = detector.roi_heads, detector.rpn
    theirs = MaskRCNN(
        Pyramid(detector),
        min_size=canvas,
        max_size=canvas,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        rpn_head=rpn.head,
        rpn_pre_nms_top_n_test=rpn._pre_nms_top_n["testing"],
        rpn_post_nms_top_n_test=rpn._post_nms_top_n["testing"],
        rpn_nms_thresh=rpn.nms_thresh,
        box_roi_pool=heads.box_roi_pool,
        box_head=heads.box_head,
        box_predictor=heads.box_predictor,
        box_score_thresh=heads.score_thresh,
        box_nms_thresh=heads.nms_thresh,
        box_detections_per_img=heads.detections_per_img,
        mask_roi_pool=heads.mask_roi_pool,
        mask_head=heads.mask_head,
        mask_predictor=heads.mask_predictor,
        size_divisible=multiple,
    ).eval()
    theirs.rpn.anchor_generator = rpn.anchor_generator

    @torch.inference_mode()
    def run() -> list[Tensor]:
        images = [decode_image(str(path), ImageReadMode.RGB) / 255 for path in files]
        return [found["masks"][:, 0] >= 0.5 for found in theirs(images)]

    return run


class Pyramid(nn.Module):
    """Backbone and pyramid of a detector, as torchvision takes them."""

    def __init__(self, detector: RCNN) -> None:
        super().__init__()
        self.backbone, self.fpn = detector.backbone, detector.fpn
        self.out_channels = detector.rpn.head.cls_logits.in_channels

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """p2..p6."""
        return OrderedDict(self.fpn(self.backbone(images)))


def tabulate(results: dict[str, Any]) -> Table:
    table = Table("detector", "way", "objects an image", "images/s", "of torchvision's time")
    for case, result in results.items():
        for way, seconds in result["seconds"].items():
            table.add_row(
                case if way == OURS else "",
                way,
                f"{result['found'][way]:.1f}",
                f"{result['batch'] / statistics.median(seconds):.2f}",
                f"{ratio(result['seconds'][OURS], seconds):.2f}" if way != OURS else "",
            )
        table.add_section()
    return table


if __name__ == "__main__":
    main()
