"""Parameters and multiply-adds of a network.

The counts come from hooks on the modules of the network, in one forward pass on the meta device, so that a
wrong stride, width or block gives a wrong count. Counting torch's operations instead would count whichever
kernel computes the attention; a hook on the layer counts what Figure 4 draws, product by product.
Normalisation, activation, softmax, pooling and additions are not counted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any

import timm
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from botnet.arguments import SIDE, checked
from botnet.errors import ConfigError
from botnet.layers import MHSA2d
from botnet.layers.non_local import NonLocal2d
from botnet.models.shapes import shape_pass
from botnet.models.surgery import STAGES
from botnet.models.zoo import KNOWN_NETWORKS, NETWORKS, no_network

# Kinds of products; "dense position" is another way to compute "position", see `multiply_adds`.
COMPLETE = frozenset({"conv", "fc", "qkv", "content", "position", "values"})


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> dict[tuple[str, str], int]:
    """Multiply-adds for one image, by layer and kind of product.

    Args:
        model: any network of convolutions, linear layers, `MHSA2d` and `NonLocal2d`, on any device.
        size: height and width of the image in pixels.

    Returns:
        {(name of the layer, kind): multiply-adds}. The kinds are "conv" and "fc", and for attention "qkv",
        "content" (queries with keys), "position" (queries with the encodings of all offsets), "values", and
        "dense position": the position term computed for every pair of cells, once per axis. It is an
        alternative to "position", and `COMPLETE` does not contain it.
    """
    counts: dict[tuple[str, str], int] = {}
    inside_attention = {child for m in model.modules() if isinstance(m, MHSA2d) for child in m.children()}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | MHSA2d | NonLocal2d) and module not in inside_attention:

            def count(layer: Any, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                for kind, products in _products(layer, inputs[0], output):
                    counts[name, kind] = counts.get((name, kind), 0) + products  # it may run twice

            handles.append(module.register_forward_hook(count))
    try:
        shape_pass(model, size)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _products(layer: Any, x: Tensor, y: Tensor) -> Iterator[tuple[str, int]]:
    """Kinds and multiply-adds of a layer, from its input and output."""
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


@dataclass(frozen=True)
class Stage:
    """A line of Table 1; `output` is (channels, height, width), or (channels,) of the head."""

    name: str
    output: tuple[int, ...]
    blocks: str
    params: int
    madds: int


@dataclass(frozen=True)
class Info:
    """A network stage by stage.

    Args:
        name: the network's name in timm.
        size: height and width of the image in pixels.
        stages: c1 to c5 and the head.
    """

    name: str
    size: tuple[int, int]
    stages: list[Stage]

    @property
    def params(self) -> int:
        """Parameters of the whole network."""
        return sum(stage.params for stage in self.stages)

    @property
    def madds(self) -> int:
        """Multiply-adds of the whole network for one image."""
        return sum(stage.madds for stage in self.stages)


@checked
def info(name: str, size: Annotated[tuple[int, int], SIDE] | None = None) -> Info:
    """Count a network stage by stage, in the form of Table 1.

    Args:
        name: a ResNet-like network of timm; those of this project are registered there.
        size: height and width of the image in pixels; default what timm's configuration of the network says.

    Raises:
        ConfigError: timm has no such network, it is not a ResNet, or ``size`` is out of range.
    """
    if not (timm.is_model(name) and name in KNOWN_NETWORKS):  # no hub's
        raise ConfigError(no_network(name))
    if size is None:
        config = timm.get_pretrained_cfg(name)
        size = (224, 224) if config is None else config.input_size[1:]
    model = build_on_meta(name, size)
    if not all(hasattr(model, layer) for layer in STAGES.values()):
        raise ConfigError(f"{name} is not a ResNet: it has no stages {', '.join(STAGES.values())}")
    return Info(name, size, _stages(model, size))


def total(counts: dict[tuple[str, str], int], kinds: frozenset[str] = COMPLETE) -> int:
    """Sum of the counts of `multiply_adds` over some kinds of products; by default the complete count."""
    return sum(products for (_, kind), products in counts.items() if kind in kinds)


def build_on_meta(name: str, size: tuple[int, int]) -> nn.Module:
    """A network of timm on the meta device; position tables fit images of `size` (height, width) pixels."""
    with torch.device("meta"):
        return timm.create_model(name, img_size=size if name in NETWORKS else None)


def _stages(model: nn.Module, size: tuple[int, int]) -> list[Stage]:
    counts, outputs = _count_with_outputs(model, size)
    return [
        Stage(
            stage,
            outputs[stage],
            "; ".join(filter(None, (_describe(model.get_submodule(name)) for name in names))),
            sum(p.numel() for name in names for p in model.get_submodule(name).parameters()),
            total({key: products for key, products in counts.items() if key[0].split(".")[0] in names}),
        )
        for stage, names in _modules_by_stage(model).items()
    ]


def _modules_by_stage(model: nn.Module) -> dict[str, list[str]]:
    """Names of the top-level modules of a ResNet, from c1 to the head."""
    names = [name for name, _ in model.named_children()]
    first, last = names.index("layer1"), names.index("layer4")
    by_stage = {"c1": [name for name in names[:first] if name != "maxpool"]}
    by_stage |= {stage: [layer] for stage, layer in STAGES.items()}
    if "maxpool" in names:
        by_stage["c2"].insert(0, "maxpool")  # Table 1 has it in c2
    by_stage["head"] = names[last + 1 :]
    return {stage: names for stage, names in by_stage.items() if names}


def _count_with_outputs(
    model: nn.Module, size: tuple[int, int]
) -> tuple[dict[tuple[str, str], int], dict[str, tuple[int, ...]]]:
    """Multiply-adds as `multiply_adds` returns them, and the output shape of each stage for one image."""
    outputs: dict[str, tuple[int, ...]] = {}

    def record(stage: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, y: outputs.update({stage: tuple(y.shape[1:])})

    # The last module of a stage to run overwrites the shapes of those before it.
    handles = [
        model.get_submodule(name).register_forward_hook(record(stage))
        for stage, names in _modules_by_stage(model).items()
        for name in names
    ]
    try:
        return multiply_adds(model, size), outputs
    finally:
        for handle in handles:
            handle.remove()


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


def render_info(counted: Info) -> Table:
    """A network's stages as a table for the terminal."""
    table = Table(title=f"{counted.name}, {counted.size[0]}×{counted.size[1]} pixels")
    table.add_column("stage")
    table.add_column("output")
    table.add_column("block")
    table.add_column("parameters", justify="right")
    table.add_column("M.Adds", justify="right")
    for stage in counted.stages:
        output = " × ".join(map(str, stage.output[1:] or stage.output))
        table.add_row(
            stage.name, output, Text(stage.blocks), f"{stage.params:,}", f"{stage.madds / 1e9:.3f} G"
        )
    table.add_section()
    table.add_row("all", "", "", f"{counted.params:,}", f"{counted.madds / 1e9:.3f} G")
    return table
