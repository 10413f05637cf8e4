"""Latency of an exported detector: eager, compiled, onnxruntime and OpenVINO, in alternation, on a CPU.

    python benchmarks/export.py
    python benchmarks/export.py --cases quickstart --no-compile

The quickstart's detector at 160 px (that of ``make quickstart`` if it is there), and an untrained BoT50 at
512 px. One picture a call, one thread. The same picture is empty, usual or crowded by the bias of the
background: nothing is found, eight objects, or as many as the detector gives; another number is an error.
torch.compile is measured on the usual picture only, to keep the run short.
"""

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from common import alternate, choose_clock, ratio
from rich.console import Console
from rich.table import Table
from torchvision.models.detection.image_list import ImageList

import botnet
from botnet.deploy import OnnxModel
from botnet.deploy.export import write_graph
from botnet.deploy.graphs import DetectorGraph, Normalise
from botnet.deploy.verify import on_canvas
from botnet.detection import RCNN, load_detector
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD

QUICKSTART = Path("runs/quickstart/checkpoints/best.ckpt")
FOUND = {"empty": 0, "usual": 8, "crowded": 100}  # detections that a picture is to have
COMPILED = "usual"  # the picture that torch.compile is measured on


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=["quickstart", "BoT50"])
    parser.add_argument("--checkpoint", type=Path, default=QUICKSTART, help="of the quickstart's detector")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time, for a busy machine")
    args = parser.parse_args()

    torch.set_num_threads(1)
    clock = choose_clock(args.cpu_time)
    table = Table("detector", "picture", "found", "runtime", "median ms", "of eager's")
    for case in args.cases:
        detector, side = build(case, args.checkpoint)
        with tempfile.TemporaryDirectory() as folder:
            path = write(detector, side, Path(folder) / "model.onnx")
            compiled = torch.compile(detector, dynamic=True) if args.compile else None
            for picture, most in FOUND.items():
                print(f"{case}, {picture}", flush=True)
                set_background(detector, side, most)
                set_background_of(path, detector.roi_heads.box_predictor.cls_score.bias)
                functions = runtimes(detector, compiled if picture == COMPILED else None, path, side)
                check_counts(functions, most)
                seconds = alternate(functions, args.rounds, clock)
                for name, times in seconds.items():
                    median = f"{1e3 * statistics.median(times):.1f}"
                    relative = f"{ratio(times, seconds['eager']):.2f}" if name != "eager" else ""
                    table.add_row(f"{case} {side}", picture, str(most), name, median, relative)
                    print(f"  {name}: {median} ms {relative}", flush=True)
            table.add_section()
    Console(width=100).print(table)


def build(case: str, checkpoint: Path) -> tuple[RCNN, int]:
    """A detector and the side of its canvas."""
    if case == "BoT50":
        torch.manual_seed(0)
        # Of an untrained network, each of the 80 classes has at most 1/80.
        return botnet.mask_rcnn("botnet50", 80, canvas=512, score_threshold=0.005).eval(), 512
    if checkpoint.is_file():
        return load_detector(checkpoint)[0], 160
    recipe = Path(botnet.__file__).parent / "recipes" / "quickstart.yaml"
    settings = yaml.safe_load(recipe.read_text())["model"]["init_args"]["detector"]["init_args"]
    return RCNN(**settings, num_classes=10, canvas=160).eval(), 160


def set_background(detector: RCNN, side: int, most: int) -> None:
    """Set the bias of the background so that the detector finds so many objects in the picture.

    Raises:
        SystemExit: with no bias that was tried it does.
    """
    bias, size = detector.roi_heads.box_predictor.cls_score.bias, (side, side)
    low, high = -30.0, 30.0
    with torch.inference_mode():
        images = Normalise(IMAGENET_MEAN, IMAGENET_STD, torch.float32)(
            torch.from_numpy(on_canvas([scene(side)], size)[0])
        )
        features = detector.fpn(detector.backbone(images))
        proposals, _ = detector.rpn(ImageList(images, [size]), features)
        for _ in range(25):
            bias[0] = high if most == 0 else (low + high) / 2
            (found,), _ = detector.roi_heads(features, proposals, [size])
            count = len(found["scores"])
            if count == most:
                return
            low, high = (low, (low + high) / 2) if count < most else ((low + high) / 2, high)
    sys.exit(f"no bias of the background gives {most} objects; the last one, {bias[0]:.6f}, gave {count}")


def set_background_of(path: Path, bias: torch.Tensor) -> None:
    """The same in the exported graph."""
    model = onnx.load(path)
    (stored,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith("cls_score.bias")]
    stored.CopyFrom(onnx.numpy_helper.from_array(bias.detach().numpy(), stored.name))
    onnx.save(model, path)


def scene(side: int) -> np.ndarray:
    """A picture of smooth noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def write(detector: RCNN, side: int, path: Path) -> Path:
    """The exported detector."""
    size = (side, side)
    with torch.no_grad():  # no other tensor is equal: the exporter would share them
        detector.roi_heads.box_predictor.cls_score.bias[0] = 1
    graph = DetectorGraph(copy.deepcopy(detector), size, IMAGENET_MEAN, IMAGENET_STD).eval()
    batch = {0: torch.export.Dim("batch")}
    example = torch.zeros(2, 3, *size, dtype=torch.uint8), torch.tensor([size, size])
    outputs = ["counts", "boxes", "scores", "labels", "masks"]
    about: dict[str, Any] = {"task": "detector", "class_names": [], "category_ids": [], "size": size}
    about |= {"fixed_size": True, "preparation": {}, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    write_graph(graph, example, {"images": batch, "valid": batch}, outputs, about, path)
    return path


def runtimes(detector: RCNN, compiled: Any, path: Path, side: int) -> dict[str, Callable[[], int]]:
    """One picture in each runtime: each returns how many objects it finds."""
    size = (side, side)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, torch.float32)
    images, valid = on_canvas([scene(side)], size)
    model = OnnxModel(path, threads=1)
    functions: dict[str, Callable[[], int]] = {"eager": lambda: eager(detector, normalise, images)}
    if compiled is not None:
        functions["torch.compile"] = lambda: eager(compiled, normalise, images)
    functions["onnxruntime"] = lambda: len(model.run(images, valid)[0]["scores"])
    try:
        import openvino
    except ImportError:
        print("OpenVINO is not installed: left out")
    else:
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        network = openvino.compile_model(path, "CPU", settings)
        functions["OpenVINO"] = lambda: len(network({"images": images, "valid": valid})["scores"])
    return functions


def check_counts(functions: dict[str, Callable[[], int]], most: int) -> None:
    """Exit if a runtime finds another number of objects than it is to be timed on."""
    for name, function in functions.items():
        if (found := function()) != most:
            sys.exit(f"{name} finds {found} objects, not {most}: its time would be of another picture")


@torch.inference_mode()
def eager(detector: Any, normalise: Normalise, images: np.ndarray) -> int:
    (found,) = detector(normalise(torch.from_numpy(images)), valid=[images.shape[2:]])
    return len(found["scores"])


if __name__ == "__main__":
    main()
