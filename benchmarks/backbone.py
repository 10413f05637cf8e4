"""The cost of attention in a backbone: BoT50 against R50, a training step and inference.

    python benchmarks/backbone.py
    python benchmarks/backbone.py --sizes 1024 --passes inference

One image in channels_last, float32, up to c5 without a head. "plain" is BoT50 with the reference attention.
The paper's figure is the ratio of its training steps on TPU-v3 at 1024 px (Table 1): 1032.66 / 786.5 ms.
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

import botnet
from botnet.layers import MHSA2d

PAPER = 1032.66 / 786.5
TARGETS = {"training": 1.20, "inference": 1.18}


def main() -> None:
    parser = options(__doc__, "backbone.json", 5)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1024, 1280], help="side in pixels")
    parser.add_argument("--passes", nargs="+", default=["training", "inference"])
    args = parser.parse_args()

    clock = choose_clock(args.cpu_time)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = load(args.out)
    for size in args.sizes:
        for kind in args.passes:
            case = f"{size} {kind}"
            if args.again or case not in results:
                results[case] = {
                    "seconds": measure(size, kind, args.rounds, device, clock),
                    "machine": machine(device, clock),
                }
                save(args.out, results)
    Console().print(tabulate(results))


def measure(
    size: int, kind: str, rounds: int, device: torch.device, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds per round of each backbone."""
    print(f"{size} px, {kind}: botnet {botnet.__version__} on {device}", flush=True)
    torch.manual_seed(0)
    networks = {
        "R50": timm.create_model("resnet50", num_classes=0),
        "BoT50": timm.create_model("botnet50", num_classes=0, img_size=size),
        "BoT50, plain": timm.create_model("botnet50", num_classes=0, img_size=size),
    }
    for module in networks["BoT50, plain"].modules():
        if isinstance(module, MHSA2d):
            module.implementation = "reference"
    for network in networks.values():
        network.to(device).to(memory_format=torch.channels_last).train(kind == "training")
    x = torch.randn(1, 3, size, size, device=device).to(memory_format=torch.channels_last)
    step = training if kind == "training" else inference
    return alternate({name: step(network, x) for name, network in networks.items()}, rounds, clock)


def training(network: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward, backward from c5 and an optimiser step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    forward: Any = network.forward_features

    def step() -> None:
        optimizer.zero_grad()
        forward(x).mean().backward()
        optimizer.step()

    return step


def inference(network: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward to c5."""
    forward: Any = network.forward_features

    @torch.inference_mode()
    def step() -> None:
        forward(x)

    return step


def tabulate(results: dict[str, Any]) -> Table:
    """One row per case and network."""
    table = Table("pixels, pass", "network", "median ms", "of R50's time", "target", "paper, training")
    for case, result in results.items():
        size, kind = case.split()
        for name, seconds in result["seconds"].items():
            ours = name == "BoT50" and size == "1024"
            table.add_row(
                case if name == "R50" else "",
                name,
                f"{1e3 * statistics.median(seconds):.0f}",
                f"{ratio(seconds, result['seconds']['R50']):.2f}",
                f"{TARGETS[kind]:.2f}" if ours else "",
                f"{PAPER:.2f}" if ours and kind == "training" else "",
            )
        table.add_section()
    return table


if __name__ == "__main__":
    main()
