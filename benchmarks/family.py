"""The training step of every network of Figure 5, at its own image size, beside the paper's step on TPU-v3.

    python benchmarks/family.py                          # all groups; those in the results file are kept
    python benchmarks/family.py --only headline --again

A step is forward, backward and the optimiser's update, in channels_last. The networks of a group are timed in
alternation, so that the load of the machine does not change their ratios. Batch: 1 on a CPU, 32 on a GPU. The
paper's headline is T7 at 384 px against EfficientNet-B7 at 600 px: 1.64 times its speed on TPU-v3 (Section
4.7.4).
"""

import statistics
from collections.abc import Callable
from typing import Any

import timm
import torch
from common import alternate, choose_clock, load, machine, options, ratio, save
from rich.console import Console
from rich.table import Table
from torch import nn

from botnet.layers import MHSA2d
from botnet.paper.figure5 import Network, read_networks

REFERENCE = "T7, reference attention"
GROUPS = {
    "headline": ("T7", REFERENCE, "B7"),
    "large": ("T6", "SENet-350", "B6", "DeiT-B-384"),
    "medium": ("T5", "SENet-152", "B5", "DeiT-B"),
    "small": ("T3", "T4", "SENet-50", "SENet-101", "B0", "B1", "B2", "B3", "B4", "DeiT-S"),
}
PAPER = 1.64


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser = options(__doc__, "family.json", 5)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups to measure")
    parser.add_argument("--batch", type=int, default=32 if device.type == "cuda" else 1, help="images a step")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the image sizes, for a quick trial"
    )
    args = parser.parse_args()

    clock = choose_clock(args.cpu_time)
    networks = {network.name: network for network in read_networks()}
    results = load(args.out)
    setting = f"{args.precision}, batch {args.batch}, {machine(device, clock)['device']}"
    if args.scale != 1:
        setting += f", sizes x {args.scale:g}"
    for group in args.only:
        case = f"{setting}, {group}"
        if not args.again and case in results:
            continue
        print(f"{case}: {', '.join(GROUPS[group])}", flush=True)
        chosen = {name: networks[name.split(",")[0]] for name in GROUPS[group]}
        try:
            seconds = measure(chosen, args.batch, args.precision, args.scale, args.rounds, device, clock)
        except torch.OutOfMemoryError as error:
            print(f"{case}: left out, {str(error).splitlines()[0]}; lower --batch")
            continue
        results[case] = {
            "setting": setting,
            "batch": args.batch,
            "sizes": {name: round_size(network, args.scale) for name, network in chosen.items()},
            "seconds": seconds,
            "machine": machine(device, clock),
        }
        save(args.out, results)
    console = Console(width=120)
    for setting in dict.fromkeys(result["setting"] for result in results.values()):
        console.print(tabulate(setting, results, networks))
    for line in headlines(results):
        print(line)


def round_size(network: Network, scale: float) -> int:
    """A network's image size; if scaled, rounded to a multiple of 32 pixels."""
    return network.image_size if scale == 1 else max(32, round(network.image_size * scale / 32) * 32)


def measure(
    networks: dict[str, Network],
    batch: int,
    precision: str,
    scale: float,
    rounds: int,
    device: torch.device,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Seconds per round of a training step of each network."""
    steps = {}
    for name, network in networks.items():
        torch.manual_seed(0)
        size, backbone = round_size(network, scale), network.network
        assert backbone is not None, f"{name} has no network in timm"
        # timm's transformers have a fixed image size; its EfficientNets do not.
        options: dict[str, Any] = {} if backbone.startswith("efficientnet") else {"img_size": size}
        model = timm.create_model(backbone, **options)
        if name == REFERENCE:
            for module in model.modules():
                if isinstance(module, MHSA2d):
                    module.implementation = "reference"
        model.to(device).to(memory_format=torch.channels_last).train()
        images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
        steps[name] = training(model, images, precision)
    return alternate(steps, rounds, clock)


def training(model: nn.Module, images: torch.Tensor, precision: str) -> Callable[[], None]:
    """Forward, backward and an optimiser step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.arange(len(images), device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def tabulate(setting: str, results: dict[str, Any], networks: dict[str, Network]) -> Table:
    """One row per network, the fastest to the slowest of each group."""
    table = Table("network", "px", "median ms", "range ms", "images/s", "paper, TPU-v3 ms", title=setting)
    for result in results.values():
        if result["setting"] != setting:
            continue
        for name, seconds in sorted(result["seconds"].items(), key=lambda item: statistics.median(item[1])):
            median = statistics.median(seconds)
            network = networks.get(name)
            own_size = network is not None and network.image_size == result["sizes"][name]
            paper = network.step_ms if network and own_size else None
            table.add_row(
                name,
                str(result["sizes"][name]),
                f"{1e3 * median:.0f}",
                f"{1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f}",
                f"{result['batch'] / median:.2f}",
                f"{paper:.1f}" if paper else "",
            )
        table.add_section()
    return table


def headlines(results: dict[str, Any]) -> list[str]:
    """T7 against EfficientNet-B7 and the reference attention, timed in alternation."""
    lines = []
    for result in results.values():
        seconds, sizes = result["seconds"], result["sizes"]
        if REFERENCE not in seconds:
            continue
        t7 = f"T7 at {sizes['T7']} px"
        lines += [
            f"{result['setting']}: EfficientNet-B7 at {sizes['B7']} px takes "
            f"{ratio(seconds['B7'], seconds['T7']):.2f} times as long as {t7} (paper, TPU-v3: {PAPER})",
            f"{result['setting']}: {t7} with the reference attention takes "
            f"{ratio(seconds[REFERENCE], seconds['T7']):.2f} times as long as with ours",
        ]
    return lines


if __name__ == "__main__":
    main()
