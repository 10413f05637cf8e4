"""What a training step of Mask R-CNN costs: ours beside torchvision's, BoT50's beside R50's.

    python benchmarks/step.py
    python benchmarks/step.py --profile      where the step's time goes

One step is forward, losses, backward and SGD on one image with seven objects, float32, 80 classes, no layer
frozen. torchvision's is ``maskrcnn_resnet50_fpn`` with batch norm and the numbers of ours where they can be
set; its size is that of the canvas, so that it resizes nothing. All heads get the same thousand proposals, of
which more than 128 are positive, so that all do equal work: the proposals of an untrained RPN are random.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import alternate, choose_clock, load, machine, options, ratio, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torchvision.models.detection import maskrcnn_resnet50_fpn

import botnet
from botnet.detection import RCNN

CLASSES = 80
OBJECTS = 7  # COCO has 7.3 an image
# What is timed, beside what, and how much longer it may take at 1024 px.
TARGETS = {"R50": ("R50, torchvision", 1.05), "BoT50": ("R50", 1.15)}
# Methods of the detector's parts, by the part of the step that they are.
PARTS = {
    "backbone": ("backbone", "forward"),
    "FPN": ("fpn", "forward"),
    "RPN head": ("rpn.head", "forward"),
    "anchors": ("rpn.anchor_generator", "forward"),
    "proposals: top k, suppression": ("rpn", "filter_proposals"),
    "RPN targets: matching": ("rpn", "assign_targets_to_anchors"),
    "RPN losses: sampling, sums": ("rpn", "compute_loss"),
    "RoI targets: matching, sampling": ("roi_heads", "select_training_samples"),
    "box pooling": ("roi_heads.box_roi_pool", "forward"),
    "box head": ("roi_heads.box_head", "forward"),
    "box predictor": ("roi_heads.box_predictor", "forward"),
    "mask branch: pooling, head, logits": ("roi_heads", "mask_logits"),
}


def main() -> None:
    parser = options(__doc__, "step.json", 5)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1024], help="side of the canvas in pixels")
    parser.add_argument("--profile", action="store_true", help="only show where our step's time goes")
    args = parser.parse_args()

    clock = choose_clock(args.cpu_time)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.profile:
        for size in args.sizes:
            show_profile(size, device)
        return
    results = load(args.out)
    for size in args.sizes:
        case = str(size)
        if args.again or case not in results:
            print(f"{size} px: botnet {botnet.__version__} on {device}", flush=True)
            results[case] = {
                "seconds": alternate(steps(size, device), args.rounds, clock),
                "machine": machine(device, clock),
            }
            save(args.out, results)
    Console().print(tabulate(results))


def steps(size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """A training step of each detector."""
    theirs = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=size,
        max_size=size,
        rpn_post_nms_top_n_train=1000,
    )
    return {
        "R50, torchvision": step(theirs, size, device, channels_last=False),
        "R50, torchvision, channels_last": step(theirs, size, device, channels_last=True),
        "R50": step(ours("resnet50", size), size, device, channels_last=True),
        "BoT50": step(ours("botnet50", size), size, device, channels_last=True),
    }


def ours(backbone: str, size: int) -> nn.Module:
    return botnet.mask_rcnn(backbone, CLASSES, canvas=size)


def step(network: nn.Module, size: int, device: torch.device, *, channels_last: bool) -> Callable[[], None]:
    """Forward with losses, backward and an optimiser step of one detector."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network.to(device).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    image, target = example(size, device)
    proposals = [around(target["boxes"], size)]
    network.rpn.register_forward_hook(lambda module, inputs, output: (proposals, output[1]))  # type: ignore[union-attr]
    # torchvision's detector batches a list of images itself.
    images: Any = image[None].contiguous(memory_format=layout) if isinstance(network, RCNN) else [image]

    def run() -> None:
        torch.manual_seed(0)
        optimizer.zero_grad()
        with record_function("forward"):
            losses: dict[str, Tensor] = network(images, [target])
            total = torch.stack(list(losses.values())).sum()
        with record_function("backward"):
            total.backward()
        with record_function("optimiser"):
            optimizer.step()

    return run


def example(size: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """An image of noise with seven ellipses, small to large."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, size, size, generator=generator)
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    boxes, masks = [], []
    for index in range(OBJECTS):
        side = size * 0.03 * 1.6**index
        height, width = side * (0.7 + 0.6 * torch.rand(2, generator=generator))
        top, left = (size - torch.stack([height, width])) * torch.rand(2, generator=generator)
        masks.append(((y - top) / height * 2 - 1) ** 2 + ((x - left) / width * 2 - 1) ** 2 < 1)
        boxes.append(torch.stack([left, top, left + width, top + height]))
        image[:, masks[-1]] += torch.randn(3, 1, generator=generator)
    target = {
        "boxes": torch.stack(boxes),
        "labels": torch.randint(1, CLASSES + 1, (OBJECTS,), generator=generator),
        "masks": torch.stack(masks).to(torch.uint8),
    }
    return image.to(device), {name: value.to(device) for name, value in target.items()}


def around(boxes: Tensor, size: int) -> Tensor:
    """A thousand proposals: a fifth near the objects, the others anywhere."""
    generator = torch.Generator().manual_seed(1)
    near = boxes.cpu().repeat(30, 1)[:200]
    sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
    near = near + 0.05 * sides * torch.randn(near.shape, generator=generator)
    corner = size * torch.rand(800, 2, generator=generator)
    side = 16 + 0.5 * size * torch.rand(800, 2, generator=generator) ** 2
    return torch.cat([near, torch.cat([corner, corner + side], 1)]).clamp(0, size).to(boxes.device)


def tabulate(results: dict[str, Any]) -> Table:
    """One row per case and detector."""
    table = Table("canvas", "detector", "median ms", "of torchvision's", "target", "of our R50's", "target")
    for case, result in results.items():
        seconds = result["seconds"]
        for name, times in seconds.items():
            beside, limit = TARGETS.get(name, ("", 0.0))
            shown = f"{limit:.2f}" if limit and case == "1024" else ""
            table.add_row(
                case if name == "R50, torchvision" else "",
                name,
                f"{1e3 * statistics.median(times):.0f}",
                f"{ratio(times, seconds['R50, torchvision']):.2f}",
                shown if beside == "R50, torchvision" else "",
                f"{ratio(times, seconds['R50']):.2f}",
                shown if beside == "R50" else "",
            )
        table.add_section()
    return table


def show_profile(size: int, device: torch.device) -> None:
    """Print the parts of a step of our BoT50 Mask R-CNN, and its most expensive operations."""
    network = ours("botnet50", size)
    for part, (owner, method) in PARTS.items():
        module = network.get_submodule(owner)
        setattr(module, method, recorded(part, getattr(module, method)))
    run = step(network, size, device, channels_last=True)
    run()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        run()
    averages = profiler.key_averages()
    names = [*PARTS, "forward", "backward", "optimiser"]
    clock = "device_time_total" if device.type == "cuda" else "cpu_time_total"
    times = {event.key: getattr(event, clock) / 1e3 for event in averages if event.key in names}
    whole = sum(times.get(name, 0.0) for name in ("forward", "backward", "optimiser"))
    table = Table("part of the step", "ms", "share", title=f"BoT50 Mask R-CNN, {size} px, {device}")
    for name in names:
        milliseconds = times.get(name, 0.0)
        table.add_row(
            f"  {name}" if name in PARTS else name, f"{milliseconds:.0f}", f"{milliseconds / whole:.1%}"
        )
    Console().print(table)
    print(averages.table(sort_by=f"self_{clock}", row_limit=15, max_name_column_width=60))


def recorded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, its calls recorded by the profiler."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return method(*args, **kwargs)

    return call


if __name__ == "__main__":
    main()
