"""Latency of an exported detector: eager, compiled, onnxruntime and OpenVINO, in alternation, on a CPU.

    python benchmarks/export.py
    python benchmarks/export.py --cases quickstart --no-compile

The quickstart's detector at 160 px (that of ``make quickstart`` if it is there), and an untrained BoT50 at
512 px. One picture a call, one thread. The number of detections is set by the score threshold: nothing on the
empty picture, a few on the usual one, and as many as the detector gives on the crowded one.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import alternate, choose_clock
from rich.console import Console
from rich.table import Table

import botnet
from botnet.deploy import OnnxModel
from botnet.deploy.export import write_graph
from botnet.deploy.graphs import DetectorGraph
from botnet.deploy.verify import on_canvas, run_eager
from botnet.detection import RCNN, load_detector
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD

QUICKSTART = Path("runs/quickstart/checkpoints/best.ckpt")
FOUND = {"empty": 0, "usual": 8, "crowded": 100}  # detections that a picture is to have


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
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
        for picture, most in FOUND.items():
            threshold(detector, side, most)
            seconds = measure(detector, side, args.rounds, args.compile, clock)
            for name, times in seconds.items():
                median = statistics.median(times)
                relative = median / statistics.median(seconds["eager"])
                row = f"{1e3 * median:.1f}", f"{relative:.2f}"
                table.add_row(f"{case} {side}", picture, str(most), name, *row)
    Console(width=100).print(table)


def build(case: str, checkpoint: Path) -> tuple[RCNN, int]:
    """A detector and the side of its canvas."""
    if case == "BoT50":
        torch.manual_seed(0)
        return botnet.mask_rcnn("botnet50", 80, canvas=512).eval(), 512
    if checkpoint.is_file():
        return load_detector(checkpoint)[0], 160
    recipe = Path(botnet.__file__).parent / "recipes" / "quickstart.yaml"
    settings = yaml.safe_load(recipe.read_text())["model"]["init_args"]["detector"]["init_args"]
    return RCNN(**settings, num_classes=10, canvas=160).eval(), 160


def threshold(detector: RCNN, side: int, most: int) -> None:
    """Set the score threshold and the limit so that the picture has so many detections."""
    heads = detector.roi_heads
    heads.score_thresh, heads.detections_per_img = (0.0, most) if most else (1.0, 100)
    (found,) = run_eager(detector, [scene(side)], (side, side))
    if len(found["scores"]) != most:
        raise SystemExit(f"{len(found['scores'])} detections instead of {most}")


def scene(side: int) -> np.ndarray:
    """A picture of smooth noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def measure(
    detector: RCNN, side: int, rounds: int, compiled: bool, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of one picture in each runtime."""
    size = (side, side)
    graph = DetectorGraph(detector, size, IMAGENET_MEAN, IMAGENET_STD).eval()
    images, valid = on_canvas([scene(side)], size)
    tensors = torch.from_numpy(images), torch.from_numpy(valid)
    functions: dict[str, Callable[[], Any]] = {"eager": lambda: eager(detector, graph, tensors[0], size)}
    if compiled:
        fast = torch.compile(detector, dynamic=True)
        functions["torch.compile"] = lambda: eager(fast, graph, tensors[0], size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        batch = {0: torch.export.Dim("batch")}
        example = tuple(tensor.repeat(2, *[1] * (tensor.ndim - 1)) for tensor in tensors)
        outputs = ["counts", "boxes", "scores", "labels", "masks"]
        about = {"task": "detector", "class_names": [], "category_ids": [], "size": size}
        about |= {"fixed_size": True, "preparation": {}, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        write_graph(graph, example, {"images": batch, "valid": batch}, outputs, about, path)
        model = OnnxModel(path, threads=1)
        functions["onnxruntime"] = lambda: model.run(images, valid)
        try:
            import openvino
        except ImportError:
            pass
        else:
            settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            network = openvino.compile_model(path, "CPU", settings)
            functions["OpenVINO"] = lambda: network({"images": images, "valid": valid})
        return alternate(functions, rounds, clock)


@torch.inference_mode()
def eager(detector: Any, graph: DetectorGraph, images: torch.Tensor, size: tuple[int, int]) -> Any:
    return detector(graph.normalise(images), valid=[size])


if __name__ == "__main__":
    main()
