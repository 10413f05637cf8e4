"""What an epoch of COCO takes on 1 to 64 GPUs: arithmetic from the step times of one.

    python scripts/cluster.py --steps 1 100 8 600          one image a step takes 100 ms, eight take 600 ms

Measure the step times on one GPU (make bench-step, or the progress of a run) and the images that a core
prepares per second (make bench-data). Gradients and norms are counted in the detector. The all-reduce is a
ring over all GPUs, limited by the network of a machine; half of it hides behind the backward pass, which
takes two thirds of a step. Small messages go through a tree. Nothing here is measured.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from botnet.detection import mask_rcnn

TRAIN, VALIDATED, CLASSES = 118_287, 5_000, 80  # images and classes of COCO
IMAGE_MB = 0.163  # of a training image: 19.3 GB for all
RECORD_KB = 40  # of the result records of an image with 100 masks
HIDDEN = 0.5  # part of the all-reduce at most that DDP's buckets hide behind the backward pass
BACKWARD = 2 / 3  # of a step
EXCHANGES = 4  # small all-reduces of a step: the counts of RPN and RoIs, finite losses, the wish to stop


@dataclass(frozen=True)
class Network:
    """What a step exchanges.

    Args:
        gradients: numbers, 4 bytes each.
        norms: synchronised batch norms.
    """

    gradients: int
    norms: int


def network_of(backbone: str, canvas: int) -> Network:
    """Counts of Mask R-CNN on a backbone."""
    with torch.device("meta"):
        detector = mask_rcnn(backbone, CLASSES, canvas=canvas, freeze_c2=True)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    norms = sum(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.weight.requires_grad for m in detector.modules()
    )
    return Network(trained, norms)


def interpolated(steps: dict[int, float], images: int) -> float:
    """Milliseconds of a step of so many images, on the line between two that were measured."""
    known = sorted(steps)
    if images in steps:
        return steps[images]
    if not known[0] < images < known[-1]:
        sys.exit(f"no step time for {images} images: give --steps IMAGES MS ... from {images} on")
    below, above = next(pair for pair in pairwise(known) if pair[0] < images < pair[1])
    part = (images - below) / (above - below)
    return steps[below] + part * (steps[above] - steps[below])


@dataclass(frozen=True)
class Plan:
    """An epoch on so many GPUs; times in ms unless they say otherwise."""

    gpus: int
    images: int  # of a step on each GPU
    compute: float
    reduce: float  # the all-reduce of the gradients, as long as it takes
    exposed: float  # of it what no backward pass hides
    norms: float
    small: float
    loading: float  # of the images of a step by the cores of a machine
    evaluation: float  # seconds
    scoring: float  # of it on the first device alone, seconds

    @property
    def step(self) -> float:
        return max(self.compute + self.exposed + self.norms + self.small, self.loading)

    @property
    def epoch(self) -> float:
        """Minutes, without the evaluation."""
        return TRAIN // (self.gpus * self.images) * self.step / 60_000

    @property
    def bound(self) -> str:
        """What takes most beside the network itself."""
        if self.loading >= self.step:
            return "loading"
        parts = {"gradients": self.exposed, "norms": self.norms, "small exchanges": self.small}
        name = max(parts, key=lambda part: parts[part])
        return name if parts[name] > 0.1 * self.step else "computing"


def plan(args: argparse.Namespace, network: Network, gpus: int) -> Plan:
    """The arithmetic for so many GPUs."""
    images = max(1, args.global_batch // gpus)
    compute = interpolated(args.step_times, images)
    machines = -(-gpus // args.gpus)
    share = 2 * (gpus - 1) / gpus * 4 * network.gradients  # bytes that each GPU sends
    rate = args.network if machines > 1 else args.inside  # GB/s
    latency = args.latency / 1000 if machines > 1 else args.latency / 5000
    reduce = share / rate / 1e6 + (2 * (gpus - 1) * latency if gpus > 1 else 0)
    hops = max(gpus - 1, 0).bit_length()
    small = EXCHANGES * hops * latency
    exposed = max(reduce * (1 - HIDDEN), reduce - BACKWARD * compute)
    on_machine = min(gpus, args.gpus)
    return Plan(
        gpus=gpus,
        images=images,
        compute=compute,
        reduce=reduce,
        exposed=exposed,
        # Forward the statistics, backward their gradients.
        norms=2 * network.norms * hops * latency if args.sync else 0.0,
        small=small,
        loading=1000 * on_machine * images / (args.cores * args.prepared),
        evaluation=VALIDATED / gpus / args.evaluated
        + VALIDATED * RECORD_KB / 1e6 / args.network * (machines > 1),
        scoring=args.scoring,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=float, nargs="+", required=True, metavar="IMAGES MS", help="step times of one GPU")
    add("--backbone", default="botnet50")
    add("--canvas", type=int, default=1024)
    add("--global-batch", type=int, default=64, help="images a step over all GPUs")
    add("--gpus", type=int, default=8, help="of a machine")
    add("--cores", type=int, default=128, help="of a machine")
    add("--prepared", type=float, default=100.0, help="images that a core prepares per second")
    add("--evaluated", type=float, default=20.0, help="images that a GPU evaluates per second")
    add("--scoring", type=float, default=5.0, help="seconds from the last image to the numbers")
    add("--network", type=float, default=25.0, help="GB/s of a machine's network")
    add("--inside", type=float, default=200.0, help="GB/s between the GPUs of a machine")
    add("--latency", type=float, default=20.0, help="us of a small message between machines")
    add("--no-sync", dest="sync", action="store_false", help="batch norms of each GPU alone")
    args = parser.parse_args()
    if len(args.steps) % 2:
        parser.error("--steps takes pairs: IMAGES MS IMAGES MS ...")
    args.step_times = {int(n): ms for n, ms in zip(args.steps[::2], args.steps[1::2], strict=True)}
    network = network_of(args.backbone, args.canvas)
    print(
        f"Mask R-CNN on {args.backbone}, canvas {args.canvas}: {network.gradients / 1e6:.1f} M gradients, "
        f"{4 * network.gradients / 1e6:.0f} MB a step; {network.norms} batch norms; global batch "
        f"{args.global_batch}"
    )
    counts = [n for n in (8, 16, 32, 64) if args.global_batch >= n]
    plans = [plan(args, network, gpus) for gpus in counts]
    first, last = plans[0], plans[-1]
    columns: dict[str, Callable[[Plan], Any]] = {
        "GPUs": lambda p: p.gpus,
        "images each": lambda p: p.images,
        "computing": lambda p: f"{p.compute:.0f}",
        "all-reduce (exposed)": lambda p: f"{p.reduce:.1f} ({p.exposed:.1f})",
        "norms": lambda p: f"{p.norms:.1f}",
        "others": lambda p: f"{p.small:.1f}",
        "loading": lambda p: f"{p.loading:.0f}",
        "step, ms": lambda p: f"{p.step:.0f}",
        "epoch, min": lambda p: f"{p.epoch:.1f}",
        "evaluation, s": lambda p: f"{p.evaluation + p.scoring:.0f}",
        "efficiency": lambda p: f"{first.epoch * first.gpus / (p.epoch * p.gpus):.0%}",
        "bound by": lambda p: p.bound,
    }
    print(f"\n| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for each in plans:
        print(f"| {' | '.join(str(column(each)) for column in columns.values())} |")
    machine = min(last.gpus, args.gpus)
    needed = machine * last.images / last.step * 1000
    print(
        f"\nOn {last.gpus} GPUs a machine reads {needed:.0f} images/s ({needed * IMAGE_MB:.0f} MB/s), the "
        f"work of {needed / args.prepared:.1f} of its {args.cores} cores."
    )
    print("What moves it:")
    for line in (
        "loading: data.num_workers up to the cores of a machine / its GPUs; a local disk for the images",
        "gradients: fewer GPUs with a larger data.batch_size, or a larger global_batch (batch_rule linear)",
        "norms: trainer.sync_batchnorm false, with 8 images or more on each GPU",
        "evaluation: trainer.check_val_every_n_epoch; each GPU pastes and matches its own images meanwhile",
        "computing: trainer.precision bf16-mixed, and a smaller data.canvas",
    ):
        print(f"- {line}")


if __name__ == "__main__":
    main()
