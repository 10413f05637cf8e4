"""The attention layer and its peers: time, peak memory, and how both grow with the map.

    python benchmarks/attention.py                       # all cases; those in the results file are kept
    python benchmarks/attention.py --maps 64x64 --dtypes float32 --again
    python benchmarks/attention.py --contended           # while another process keeps a core busy

With --contended, 64x64 cells in float32 by default, with as many threads as there are cores and with one
less.

Peers: timm's BottleneckAttn (positions scaled, as the authors' code has it), the PyPI package
bottleneck-transformer-pytorch, and the plain formula. "botnet" is the layer by default; "tiled", "sdpa",
"flex" and "triton" force one of its implementations. All have the same weights and the same input, 512
channels in channels_last, and are timed in alternation. FlexAttention, compiled, and Triton are measured on a
GPU only.
"""

import math
import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import torch
from bottleneck_transformer_pytorch.bottleneck_transformer_pytorch import Attention
from common import (
    alternate,
    busy_core,
    choose_clock,
    gemm_rate,
    load,
    machine,
    options,
    peak_memory,
    ratio,
    save,
)
from rich.console import Console
from rich.table import Table
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn

from botnet.layers import MHSA2d
from botnet.layers.kernels import choose

matplotlib.use("agg")
from matplotlib import pyplot as plt

DIM, HEADS = 512, 4
PEERS = ("timm", "pypi", "reference")
OWN = ("sdpa", "flex", "triton") if torch.cuda.is_available() else ("tiled", "sdpa")
# Batch 32 at the sizes of ImageNet classification, 1 at those of detection.
MAPS = ("7x7", "14x14", "32x32", "64x64", "64x96", "80x80", "96x96")


def main() -> None:
    parser = options(__doc__, "attention.json", 7)
    parser.add_argument("--maps", nargs="+", help="HxW in cells")
    parser.add_argument("--strides", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtypes", nargs="+")
    parser.add_argument("--passes", nargs="+", default=["forward", "training"])
    parser.add_argument("--contended", action="store_true", help="while another process keeps a core busy")
    args = parser.parse_args()
    maps = args.maps or (["64x64"] if args.contended else MAPS)
    dtypes = args.dtypes or (["float32"] if args.contended else ["float32", "bfloat16"])

    clock = choose_clock(args.cpu_time)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = load(args.out)
    cores = torch.get_num_threads()
    threads = sorted({cores, max(1, cores - 1)}, reverse=True) if args.contended else [cores]
    with busy_core(args.contended):
        for dtype, size, stride, kind, number in product(dtypes, maps, args.strides, args.passes, threads):
            case = f"{dtype} {size} stride {stride} {kind}"
            if args.contended:
                case += f", contended, {number} threads"
            if args.again or case not in results:
                torch.set_num_threads(number)
                results[case] = measure(dtype, size, stride, kind, args.rounds, device, clock)
                save(args.out, results)
    Console(width=150).print(tabulate(results))
    for line in [*targets(results), *draw(results, args.out)]:
        print(line)


def measure(
    dtype: str,
    size: str,
    stride: int,
    kind: str,
    rounds: int,
    device: torch.device,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Seconds per round and peak bytes of every layer, for one case."""
    height, width = (int(side) for side in size.split("x"))
    batch = 32 if height * width <= 14 * 14 else 1
    number = getattr(torch, dtype)
    layers = {name: layer.to(device, number) for name, layer in build(height, width, stride).items()}
    tokens = height * width
    chosen = choose((batch, HEADS, tokens, DIM // HEADS), number, device, kind == "training")
    if chosen in OWN:
        del layers[chosen]  # it is what "botnet" runs
    x = torch.randn(batch, DIM, height, width, device=device).to(number, memory_format=torch.channels_last)
    runs = {name: run(layer, x, kind) for name, layer in layers.items()}
    # Small maps take milliseconds, large ones a minute.
    factor = next(factor for limit, factor in ((7, 10), (14, 3), (64, 1), (math.inf, 0.5)) if width <= limit)
    seconds = alternate(runs, max(3, int(factor * rounds)), clock)
    return {
        "tokens": height * width,
        "seconds": seconds,
        "memory": {name: peak_memory(call) for name, call in runs.items()},
        "gemm": gemm_rate(number, device, clock),
        "products": multiply_adds(height, width, stride, kind) * batch,
        "machine": machine(device, clock),
    }


def build(height: int, width: int, stride: int) -> dict[str, nn.Module]:
    """All layers, with the same weights."""
    size = (height, width)
    torch.manual_seed(0)
    timm = BottleneckAttn(DIM, feat_size=size, stride=stride, num_heads=HEADS, scale_pos_embed=True)
    pypi = Attention(dim=DIM, fmap_size=size, heads=HEADS, dim_head=DIM // HEADS, rel_pos_emb=True)
    pypi.to_qkv.load_state_dict(timm.qkv.state_dict())
    pypi.pos_emb.rel_height.data.copy_(timm.pos_embed.height_rel)
    pypi.pos_emb.rel_width.data.copy_(timm.pos_embed.width_rel)
    layers = {"timm": timm, "pypi": nn.Sequential(pypi, nn.AvgPool2d(2, 2)) if stride == 2 else pypi}
    torch.compiler.reset()  # torch's limit of compilations of one function
    for name in ("botnet", "reference", *OWN):
        layer = MHSA2d(DIM, HEADS, stride, feat_size=size)
        layer.load_state_dict(timm.state_dict())
        layer.implementation = None if name == "botnet" else name
        layers[name] = torch.compile(layer, dynamic=False) if name == "flex" else layer
    return layers


def run(layer: nn.Module, x: Tensor, kind: str) -> Callable[[], None]:
    """One call of a layer: inference, or forward and backward to its input and parameters."""
    if kind == "forward":

        @torch.inference_mode()
        def forward() -> None:
            layer(x)

        return forward
    inputs = [x.detach().requires_grad_(), *layer.parameters()]
    upstream = torch.randn_like(layer(x).detach())

    def training() -> None:
        torch.autograd.grad(layer(inputs[0]), inputs, upstream)

    return training


def multiply_adds(height: int, width: int, stride: int, kind: str) -> int:
    """Multiply-adds of the tiled layer on one image: projections, position logits, the attention itself.

    The backward pass computes the logits again and every product twice. Pooling the weights first divides the
    products with the values by four.
    """
    tokens = height * width
    linear = 3 * tokens * DIM**2 + tokens * (height + width) * DIM
    logits, values = tokens**2 * DIM, tokens**2 * DIM // stride**2
    if kind == "forward":
        return linear + logits + values
    return 3 * linear + 4 * logits + 3 * values


def tabulate(results: dict[str, Any]) -> Table:
    """One row per case and layer."""
    table = Table("case", "layer", "median ms", *(f"{peer} takes" for peer in PEERS), "peak MB", "of roof")
    for case, result in results.items():
        for name, seconds in result["seconds"].items():
            median = statistics.median(seconds)
            own = name not in PEERS
            table.add_row(
                case if name == next(iter(result["seconds"])) else "",
                name,
                f"{1e3 * median:.1f}",
                *(f"{ratio(result['seconds'][peer], seconds):.2f}x" for peer in PEERS),
                f"{result['memory'][name] / 1e6:.0f}",
                f"{result['products'] / result['gemm'] / median:.0%}" if own else "",
            )
        table.add_section()
    return table


def targets(results: dict[str, Any]) -> list[str]:
    """The targets of the layer, beside what the cases measured."""
    lines = []
    for case, least in {
        "float32 64x64 stride 1 forward": 3.0,
        "float32 64x64 stride 2 forward": 3.0,
        "float32 64x64 stride 1 training": 1.5,
        "float32 64x64 stride 2 training": 1.8,
    }.items():
        if case in results:
            seconds = results[case]["seconds"]
            lines.append(
                f"{case}: {ratio(seconds['timm'], seconds['botnet']):.2f}x timm's speed (>= {least})"
            )
    for size, least in {"64x64": 4, "80x80": 6}.items():
        for stride in (1, 2):
            case = f"float32 {size} stride {stride} training"
            if case in results:
                memory = results[case]["memory"]
                share = memory["timm"] / memory["botnet"]
                lines.append(f"{case}: 1/{share:.1f} of timm's peak memory (<= 1/{least})")
    for size in ("7x7", "14x14"):
        for case in (c for c in results if f" {size} " in c):
            seconds = results[case]["seconds"]
            slower = ratio(seconds["botnet"], seconds["reference"])
            lines.append(f"{case}: {slower:.2f} of the reference's time (<= 1.05)")
    return lines


def draw(results: dict[str, Any], out: Path) -> list[str]:
    """Two plots, time and memory against N, and the slopes of log against log from 32x32 on."""
    cases = {
        result["tokens"]: result
        for case, result in sorted(results.items(), key=lambda item: item[1]["tokens"])
        if case.startswith("float32") and case.endswith("stride 1 training") and result["tokens"] >= 32 * 32
    }
    if len(cases) < 2:
        return []
    lines = []
    for quantity, unit in (("seconds", "s"), ("memory", "bytes")):
        figure, axes = plt.subplots(figsize=(6, 4.5))
        for name in ("timm", "pypi", "reference", "sdpa", "botnet"):
            if not all(name in case["seconds"] for case in cases.values()):
                continue  # it is what "botnet" runs
            values = [
                statistics.median(case[quantity][name]) if quantity == "seconds" else case[quantity][name]
                for case in cases.values()
            ]
            fit = slope([math.log(n) for n in cases], [math.log(value) for value in values])
            lines.append(f"{quantity} of {name}: N^{fit:.2f} from {min(cases)} to {max(cases)} cells")
            axes.loglog(list(cases), values, "o-", label=f"{name}, N^{fit:.2f}")
        axes.set(
            xlabel="cells N", ylabel=f"{quantity} ({unit})", title="forward and backward, stride 1, float32"
        )
        axes.legend()
        path = out.with_name(f"attention_{quantity}.png")
        figure.savefig(path, dpi=120, bbox_inches="tight")
        lines.append(f"drawn: {path}")
    return lines


def slope(x: list[float], y: list[float]) -> float:
    """Least-squares slope."""
    return statistics.linear_regression(x, y).slope


if __name__ == "__main__":
    main()
