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
# The layers of the picture, those with the largest values first: name and line.
LINES = {
    "pypi": ("bottleneck-transformer-pytorch", "s-C1"),
    "timm": ("timm", "o-C2"),
    "reference": ("plain formula", "^--C7"),
    "botnet": ("this project", "D-C0"),
}
QUANTITIES = (("seconds", "Time of forward and backward", "seconds"), ("memory", "Peak memory", "GB"))
# Batch 32 at the sizes of ImageNet classification, 1 at those of detection.
MAPS = ("7x7", "14x14", "32x32", "64x64", "64x96", "80x80", "96x96")


def main() -> None:
    parser = options(__doc__, "attention.json", 7)
    parser.add_argument("--maps", nargs="+", help="HxW in cells")
    parser.add_argument("--strides", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtypes", nargs="+")
    parser.add_argument("--passes", nargs="+", default=["forward", "training"])
    parser.add_argument("--contended", action="store_true", help="while another process keeps a core busy")
    parser.add_argument("--picture", type=Path, help="of time and memory; by default beside --out")
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
    for line in [*targets(results), *draw(results, args.picture or args.out.with_suffix(".png"))]:
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


def draw(results: dict[str, Any], picture: Path) -> list[str]:
    """Slopes of time and memory against the map, log against log, from 32x32 on; square maps as a picture."""
    cases = {
        case.split()[1]: result
        for case, result in sorted(results.items(), key=lambda item: item[1]["tokens"])
        if case.startswith("float32") and case.endswith("stride 1 training") and result["tokens"] >= 32 * 32
    }
    if len(cases) < 2:
        return []
    tokens = [case["tokens"] for case in cases.values()]
    sides = {n: math.isqrt(n) for n in tokens if f"{math.isqrt(n)}x{math.isqrt(n)}" in cases}
    lines = []
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, (quantity, title, unit) in zip(panels, QUANTITIES, strict=True):
        for name in (*LINES, "sdpa"):
            if not all(name in case["seconds"] for case in cases.values()):
                continue  # it is what "botnet" runs
            measured = [case[quantity][name] for case in cases.values()]
            values = [statistics.median(m) if isinstance(m, list) else m / 1e9 for m in measured]
            fit = slope([math.log(n) for n in tokens], [math.log(value) for value in values])
            lines.append(f"{quantity} of {name}: N^{fit:.2f} from {tokens[0]} to {tokens[-1]} cells")
            if name in LINES:
                label, style = LINES[name]
                drawn = [value for n, value in zip(tokens, values, strict=True) if n in sides]
                axes.plot(list(sides), drawn, style, label=label, linewidth=2)
        axes.set_xticks(list(sides), [f"{side} × {side}\n{16 * side} px" for side in sides.values()])
        axes.set(title=title, ylabel=unit, ylim=0, xlabel="cells of the map; side of the image at stride 16")
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)
    return [*lines, f"drawn: {picture}"]


def slope(x: list[float], y: list[float]) -> float:
    """Least-squares slope."""
    return statistics.linear_regression(x, y).slope


if __name__ == "__main__":
    main()
