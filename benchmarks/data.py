"""Training images a second: this project's pipeline beside torchvision's reference way, on the same images.

    python benchmarks/data.py FOLDER                  # instances_train.json and images/ in it
    python benchmarks/data.py FOLDER --jitter 0.8 1.25 --canvas 1280

The reference way is that of torchvision's detection references: CocoDetection, wrapped for its transforms v2;
ScaleJitter, FixedSizeCrop, flip, sanitised boxes, normalisation; masks as pixels from the start. Both run in
one process with one thread, as a worker of a loader does, and each image has the same scale in both.
"""

import contextlib
import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import alternate, load, machine, options, peak_memory, ratio, save
from rich.console import Console
from rich.table import Table
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from botnet.detection import placement, transforms
from botnet.detection.datasets import TrainDataset
from botnet.detection.placement import Placement
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform
from botnet.training.seeding import generator, run_seed

TARGET = 2.0
# Where ours spends its time: name, and the function that is timed.
PARTS: dict[str, tuple[Any, str]] = {
    "decode": (placement, "decode_image"),
    "cut and resize": (Placement, "pixels"),
    "masks": (Placement, "place_mask"),
    "normalise": (transforms, "to_canvas"),
    "masks to the canvas": (TrainDataset, "_target"),
}


def main() -> None:
    parser = options(__doc__, "data.json", 5, resumes=False)
    parser.add_argument("folder", type=Path, help="instances_train.json and images/")
    parser.add_argument("--canvas", type=int, default=1024)
    parser.add_argument("--jitter", type=float, nargs=2, default=(0.1, 2.0))
    parser.add_argument("--images", type=int, default=48, help="how many, of those with objects")
    args = parser.parse_args()

    torch.set_num_threads(1)
    low, high = args.jitter
    results = load(args.out)
    case = f"canvas {args.canvas}, jitter [{low:g}, {high:g}]"
    results[case] = measure(args.folder, args.canvas, (low, high), args.images, args.rounds)
    save(args.out, results)
    for table in tabulate(case, results[case]):
        Console().print(table)


def measure(
    folder: Path, canvas: int, jitter: tuple[float, float], images: int, rounds: int
) -> dict[str, Any]:
    """Seconds per round of both ways over all images, where ours spends them, and peak bytes."""
    dataset = train_set(folder, canvas, jitter)
    records = dataset.instances.images
    chosen = [i for i, record in enumerate(records) if dataset.instances.annotations_of(record.id)][:images]
    reference = Reference(folder, canvas)

    def ours() -> None:
        for index in chosen:
            dataset[0, index]

    def theirs() -> None:
        for index in chosen:
            size = records[index].height, records[index].width
            placed = dataset.transform.place(size, generator(run_seed(), 0, index))
            reference(index, max(placed.resized) / canvas)

    seconds = alternate({"botnet": ours, "torchvision": theirs}, rounds)
    largest = train_set(folder, canvas, (jitter[1], jitter[1]))
    memory = {
        "botnet": max(peak_memory(partial(largest.__getitem__, (0, index))) for index in chosen),
        "torchvision": max(peak_memory(partial(reference, index, jitter[1])) for index in chosen),
    }
    return {
        "images": len(chosen),
        "seconds": seconds,
        "parts": parts(ours),
        "memory": memory,
        "machine": machine(torch.device("cpu"), time.perf_counter),
    }


def train_set(folder: Path, canvas: int, jitter: tuple[float, float]) -> TrainDataset:
    transform = TrainTransform(canvas, jitter)
    return TrainDataset(folder / "instances_train.json", folder / "images", transform)


class Reference:
    """torchvision's way to a training sample.

    Args:
        folder: with ``instances_train.json`` and ``images/``.
        canvas: side in pixels.
    """

    def __init__(self, folder: Path, canvas: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            plain = datasets.CocoDetection(folder / "images", folder / "instances_train.json")
        self.dataset = datasets.wrap_dataset_for_transforms_v2(plain, ("boxes", "labels", "masks"))
        self.canvas = canvas
        self.index = {image_id: index for index, image_id in enumerate(plain.ids)}
        self.rest = v2.Compose(
            [
                FixedSizeCrop(canvas),
                v2.RandomHorizontalFlip(),
                v2.SanitizeBoundingBoxes(
                    labels_getter=lambda inputs: (inputs[1]["labels"], inputs[1]["masks"])
                ),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)),
                v2.ToPureTensor(),
            ]
        )

    def __call__(self, index: int, jitter: float) -> Any:
        """The sample of an image at one scale, relative to the canvas."""
        image, target = self.dataset[index]
        image, target = v2.ToImage()(image, target)
        image, target = v2.ScaleJitter((self.canvas, self.canvas), (jitter, jitter))(image, target)
        return self.rest(image, target)


class FixedSizeCrop(v2.Transform):
    """A random part of the canvas' size of what is larger; zeros at the bottom and right of what is smaller.

    torchvision's references have it, its package has not.
    """

    def __init__(self, canvas: int) -> None:
        super().__init__()
        self.canvas = canvas

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.functional.get_size(flat_inputs[0])
        crop = min(height, self.canvas), min(width, self.canvas)
        top, left = (
            int(torch.randint(side - cut + 1, ())) for side, cut in zip((height, width), crop, strict=True)
        )
        return {"top": top, "left": left, "height": crop[0], "width": crop[1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        cut = self._call_kernel(v2.functional.crop, inpt, **params)
        padding = [0, 0, self.canvas - params["width"], self.canvas - params["height"]]
        return self._call_kernel(v2.functional.pad, cut, padding=padding)


def parts(run: Callable[[], None]) -> dict[str, float]:
    """Seconds of one run that are spent in each of :data:`PARTS`."""
    spent: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[name] += time.perf_counter() - start
            return result

        return call

    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            replacement = timed(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, replacement))
        start = time.perf_counter()
        run()
        spent["all"] = time.perf_counter() - start
    return dict(spent)


def tabulate(case: str, result: dict[str, Any]) -> Iterator[Table]:
    """Both ways side by side; then where ours spends its time."""
    ways = Table("way", "images a second", "speed", "peak MB of a sample", title=case, title_justify="left")
    reference = result["seconds"]["torchvision"]
    for name, seconds in result["seconds"].items():
        ways.add_row(
            name,
            f"{result['images'] / statistics.median(seconds):.1f}",
            f"{ratio(reference, seconds):.2f}x" + (f" (>= {TARGET:g})" if name == "botnet" else ""),
            f"{result['memory'][name] / 1e6:.0f}",
        )
    yield ways
    table = Table("part of ours", "ms an image", "share", title_justify="left")
    whole = result["parts"]["all"]
    for name in PARTS:
        part = result["parts"].get(name, 0.0)
        table.add_row(name, f"{1e3 * part / result['images']:.2f}", f"{part / whole:.0%}")
    yield table


if __name__ == "__main__":
    main()
