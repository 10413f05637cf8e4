"""Parameters and multiply-adds of a network, complete and as the paper counts them.

The counts come from hooks on the modules of the network itself during one pass of shapes without data
(the meta device), so that a wrong stride, width or block gives a wrong count. Counting torch's operations
instead would count the kernel that happens to run the attention and not the layer; a layer's own
hook counts what Figure 4 draws, and knows which product is which. Normalisation, activation, softmax,
pooling and additions are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import timm
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from botnet.layers import MHSA2d
from botnet.layers.nonlocal_block import NonLocal2d
from botnet.models.surgery import STAGES, shape_pass
from botnet.models.zoo import NETWORKS

COMPLETE = frozenset({"conv", "fc", "qkv", "content", "position", "values"})
NO_FC = COMPLETE - {"fc"}
NO_QKV = COMPLETE - {"qkv"}
DENSE_POSITION = NO_FC - {"position"} | {"dense position"}

MARK = 0.005  # differences from here on are explained


@dataclass(frozen=True)
class Printed:
    """A count that the paper prints, and the convention that gives it.

    Args:
        network: the paper's name.
        source: where it is printed.
        name: the name in timm.
        size: side of the image in pixels.
        params: millions, as printed; None if not printed.
        madds: billions, as printed; None if not printed.
        kinds: the products that the paper's figure contains.
        first_stride: count with the stride in a block's first 1x1 and not in its 3x3.
        se_in_c5: count the squeeze-and-excitation that c5 would have if its blocks were convolutional,
            in parameters and in multiply-adds.
        params_note, madds_note: why the complete count is another one.
    """

    network: str
    source: str
    name: str
    size: int
    params: str | None
    madds: str | None
    kinds: frozenset[str]
    first_stride: bool = False
    se_in_c5: bool = False
    params_note: str = ""
    madds_note: str = ""


SE_NOTE = "printed with the squeeze-and-excitation in c5 that its attention blocks do not have"

# fmt: off
PRINTED = (
    Printed("R50", "Table 1", "resnet50", 1024, "25.5", "85.4", NO_FC),
    Printed("BoT50", "Table 1", "botnet50", 1024, "20.8", "102.98", NO_FC),
    Printed("BoT50", "note 10", "botnet50", 1024, None, "121", DENSE_POSITION,
            madds_note="121 counts the product with the positions for every pair of cells, once per axis"),
    Printed("R101", "note 10", "resnet101", 1024, None, "162.99", NO_FC),
    Printed("R152", "note 10", "resnet152", 1024, None, "240.56", NO_FC),
    Printed("R50", "Table 9", "resnet50", 224, "25.5", "3.86", COMPLETE, first_stride=True,
            madds_note="3.86 has the strides in the first 1x1 of a block; here, as for 85.4, in the 3x3"),
    Printed("BoT50", "Table 9", "botnet50", 224, "20.8", "3.79", NO_QKV,
            madds_note="3.79 leaves out the projections to queries, keys and values"),
    Printed("BoT-S1-50", "Table 9", "botnet_s1_50", 224, "20.8", "4.27", COMPLETE,
            madds_note="no convention is known that gives 4.27; its way is the complete count"),
    Printed("T3", "appendix", "botnet_t3", 224, "33.5", "7.3", COMPLETE, se_in_c5=True, params_note=SE_NOTE,
            madds_note="7.3 has that squeeze-and-excitation too, and is rounded"),
    Printed("T4", "appendix", "botnet_t4", 224, "54.7", "10.9", COMPLETE, se_in_c5=True, params_note=SE_NOTE,
            madds_note="10.9 is cut, not rounded"),
    Printed("T5", "appendix", "botnet_t5", 256, "75.1", "19.3", COMPLETE, se_in_c5=True, params_note=SE_NOTE),
    Printed("T6", "appendix", "botnet_t6", 320, "53.9", "23.3", COMPLETE, se_in_c5=True, params_note=SE_NOTE),
    Printed("T7", "appendix", "botnet_t7", 384, "75.1", "45.8", COMPLETE, se_in_c5=True, params_note=SE_NOTE),
    Printed("SENet-50", "appendix", "senet_s0", 224, "28.0", "4.09", COMPLETE),
    Printed("SENet-101", "appendix", "senet_s1", 224, "49.2", "7.8", COMPLETE),
    Printed("SENet-152", "appendix", "senet_s3", 288, "66.6", "19.04", COMPLETE),
    Printed("SENet-350", "appendix", "senet_s4", 320, "115.2", "52.9", COMPLETE),
)
# fmt: on


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> dict[tuple[str, str], int]:
    """Multiply-adds for one image, by layer and by what they are spent on.

    Args:
        model: any network of convolutions, linear layers, `MHSA2d` and `NonLocal2d`, on any device.
        size: height and width of the image in pixels.

    Returns:
        {(name of the layer, kind): multiply-adds}; the kinds are "conv", "fc", and for attention "qkv",
        "content" (queries with keys), "position" (queries with the encodings of all offsets),
        "values", and "dense position", which is the position term multiplied out for every pair of
        cells, once per axis: an alternative to "position" that no total but the paper's 121 G contains.
    """
    counts: dict[tuple[str, str], int] = {}
    inside_attention = {child for m in model.modules() if isinstance(m, MHSA2d) for child in m.children()}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | MHSA2d | NonLocal2d) and module not in inside_attention:

            def count(layer: Any, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                for kind, products in _products(layer, inputs[0], output):
                    counts[name, kind] = products

            handles.append(module.register_forward_hook(count))
    try:
        shape_pass(model, size)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _products(layer: Any, x: Tensor, y: Tensor) -> Iterator[tuple[str, int]]:
    if isinstance(layer, nn.Linear):
        yield "fc", y.numel() * layer.in_features
        return
    if isinstance(layer, nn.Conv2d):
        yield "conv", y.numel() * layer.weight[0].numel()
        return
    _, channels, height, width = x.shape
    cells = height * width
    if isinstance(layer, NonLocal2d):
        yield "content", cells * cells * layer.query.out_channels
        yield "values", cells * cells * layer.proj.in_channels
        return
    yield "qkv", cells * layer.qkv.weight.numel()
    if layer.content:
        yield "content", cells * cells * channels
    if layer.position is not None:
        offsets = 2 * height - 1 + 2 * width - 1 if layer.position == "relative" else height + width
        yield "position", cells * offsets * channels
        yield "dense position", 2 * cells * cells * channels
    yield "values", cells * cells * channels


def paper_params(model: nn.Module) -> int:
    """Parameters as the paper counts them: convolutions, projections and classifier.

    Without normalisation, position tables, and the biases of squeeze-and-excitation.
    """
    convs = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    return convs + sum(p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters())


@dataclass(frozen=True)
class Stage:
    """One line of Table 1: a stage, its output in cells, its blocks, parameters and multiply-adds."""

    name: str
    output: tuple[int, ...]
    blocks: str
    params: int
    madds: int


@dataclass(frozen=True)
class Comparison:
    """A printed count beside the same network counted here.

    Args:
        printed: what the paper says.
        params, madds: counted as the paper counts.
        all_params, all_madds: the complete counts.
    """

    printed: Printed
    params: int
    madds: int
    all_params: int
    all_madds: int


@dataclass(frozen=True)
class Info:
    """A network stage by stage, and the counts that the paper prints for it."""

    name: str
    size: tuple[int, int]
    stages: list[Stage]
    printed: list[Comparison]


def info(name: str, size: tuple[int, int] | None = None) -> Info:
    """Count a network stage by stage, in the form of Table 1.

    Args:
        name: a ResNet-like network that timm knows, this project's included.
        size: height and width of the image in pixels; default what the network's configuration says.

    Raises:
        ValueError: timm has no such network, or it is none of the ResNet kind.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}; this project's are {', '.join(NETWORKS)}")
    if size is None:
        config = timm.get_pretrained_cfg(name)
        size = (224, 224) if config is None else config.input_size[1:]
    model = _build(name, size)
    if not all(hasattr(model, layer) for layer in STAGES.values()):
        raise ValueError(f"{name} is no ResNet: it has no stages {', '.join(STAGES.values())}")
    printed = [compare(row) for row in PRINTED if row.name == name]
    return Info(name, size, _stages(model, size), printed)


def paper_table() -> list[Comparison]:
    """Every count that the paper prints, beside the same network counted here."""
    return [compare(row) for row in PRINTED]


def compare(row: Printed) -> Comparison:
    """Count the network of a printed row, completely and in the way that the row was counted."""
    size = (row.size, row.size)
    model = _build(row.name, size)
    counts = multiply_adds(model, size)
    all_madds = _total(counts, COMPLETE)
    if row.first_stride:
        for stage in STAGES.values():
            first: Any = model.get_submodule(f"{stage}.0")
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        counts = multiply_adds(model, size)
    # Two 1x1 on a map of one cell: as many multiply-adds as weights.
    c5: Any = model.get_submodule("layer4")
    se = sum(2 * block.conv3.out_channels**2 // 16 for block in c5) if row.se_in_c5 else 0
    return Comparison(
        row,
        params=paper_params(model) + se,
        madds=_total(counts, row.kinds) + se,
        all_params=sum(p.numel() for p in model.parameters()),
        all_madds=all_madds,
    )


def _total(counts: dict[tuple[str, str], int], kinds: frozenset[str]) -> int:
    return sum(products for (_, kind), products in counts.items() if kind in kinds)


def _build(name: str, size: tuple[int, int]) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, img_size=size if name in NETWORKS else None)


def _stages(model: nn.Module, size: tuple[int, int]) -> list[Stage]:
    names = [name for name, _ in model.named_children()]
    first, last = names.index("layer1"), names.index("layer4")
    stage_of = dict.fromkeys(names[:first], "c1") | dict.fromkeys(names[last + 1 :], "head")
    stage_of |= {layer: stage for stage, layer in STAGES.items()} | {"maxpool": "c2"}
    outputs: dict[str, tuple[int, ...]] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, y, stage=stage_of[name]: outputs.__setitem__(stage, tuple(y.shape[1:]))
        )
        for name, module in model.named_children()
        if name != "maxpool"
    ]
    counts = multiply_adds(model, size)
    for handle in handles:
        handle.remove()
    return [
        Stage(
            stage,
            outputs[stage],
            "; ".join(filter(None, (_describe(model.get_submodule(n)) for n in group))),
            sum(p.numel() for n in group for p in model.get_submodule(n).parameters()),
            sum(
                c for (layer, kind), c in counts.items() if layer.split(".")[0] in group and kind in COMPLETE
            ),
        )
        for stage in ("c1", *STAGES, "head")
        if (group := [n for n in names if stage_of[n] == stage])
    ]


def _describe(module: Any) -> str:
    """A stage's blocks as Table 1 writes them, a layer by its kernel and width."""
    if isinstance(module, nn.Conv2d):
        return f"{module.kernel_size[0]}×{module.kernel_size[1]}, {module.out_channels}"
    if isinstance(module, nn.Linear):
        return f"linear, {module.out_features}"
    if isinstance(module, nn.MaxPool2d):
        return f"{module.kernel_size}×{module.kernel_size} max pool"
    if isinstance(module, MHSA2d):
        return f"MHSA, {module.dim}"
    if isinstance(module, NonLocal2d):
        return f"Non-Local, {module.proj.out_channels}"
    if isinstance(module, nn.Sequential):
        blocks = ((len(list(same)), text) for text, same in groupby(map(_describe, module)) if text)
        return "; ".join(text if n == 1 else f"{n} × {text}" for n, text in blocks)
    layers = [_describe(getattr(module, f"conv{i}")) for i in (1, 2, 3) if hasattr(module, f"conv{i}")]
    if layers and getattr(module, "se", None) is not None:
        layers.append("SE")
    return f"[{' | '.join(layers)}]" if layers else ""


def render_info(counted: Info) -> Group:
    """A network's stages, and under them the counts that the paper prints for it."""
    table = Table(title=f"{counted.name}, {counted.size[0]}×{counted.size[1]} pixels")
    table.add_column("stage")
    table.add_column("output")
    table.add_column("block")
    table.add_column("parameters", justify="right")
    table.add_column("M.Adds", justify="right")
    for stage in counted.stages:
        output = " × ".join(map(str, stage.output[1:] or stage.output))
        table.add_row(stage.name, output, stage.blocks, f"{stage.params:,}", f"{stage.madds / 1e9:.3f} G")
    table.add_section()
    params = sum(stage.params for stage in counted.stages)
    madds = sum(stage.madds for stage in counted.stages)
    table.add_row("all", "", "", f"{params:,}", f"{madds / 1e9:.3f} G")
    return Group(table, *([render_paper(counted.printed)] if counted.printed else []))


def render_paper(rows: list[Comparison]) -> Group:
    """Printed counts, the same counted in the paper's way and completely, and why they differ."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="Counts the paper prints, and ours")
    table.add_column("network")
    table.add_column("printed in")
    for column in ("px", "printed", "its way", "complete", "diff."):
        table.add_column(column, justify="right")
    notes: list[str] = []
    for row in rows:
        p = row.printed
        for printed, its_way, complete, unit, note in (
            (p.params, row.params / 1e6, row.all_params / 1e6, "M", p.params_note),
            (p.madds, row.madds / 1e9, row.all_madds / 1e9, "G", p.madds_note),
        ):
            if printed is None:
                continue
            difference = complete / float(printed) - 1
            mark = "    "
            if abs(difference) >= MARK:
                if note not in notes:
                    notes.append(note)
                mark = f" [bold]({notes.index(note) + 1})[/]"
            table.add_row(
                p.network,
                p.source,
                str(p.size),
                f"{printed} {unit}",
                f"{as_printed(its_way, printed)} {unit}",
                f"{complete:.3f} {unit}",
                f"{difference:+.1%}{mark}",
            )
    return Group(
        table,
        "M: million parameters. G: billion multiply-adds for one square image of that side.",
        "its way: counted as the paper counts, to the printed digits; … where these are cut, not rounded.",
        f"diff.: of the complete count from the printed one; from {MARK:.1%} on with its reason.",
        *(f"({number}) {note}." for number, note in enumerate(notes, 1)),
    )


def as_printed(value: float, printed: str) -> str:
    """A value with as many decimals as a printed one: rounded, or cut (with …) if that is what agrees."""
    decimals = len(printed.partition(".")[2])
    rounded = f"{value:.{decimals}f}"
    cut = f"{int(value * 10**decimals) / 10**decimals:.{decimals}f}"
    return f"{cut}…" if rounded != printed == cut else rounded
