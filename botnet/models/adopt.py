"""Attention layers of other projects as `MHSA2d`, with their weights, computing the same function."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn

from botnet.layers import MHSA2d


def adopt_attention(model: nn.Module) -> nn.Module:
    """Replace other projects' BoTNet attention by `MHSA2d`, in place; weights and function stay the same.

    Supports timm's `BottleneckAttn` (as in timm's botnet26t_256) and the `Attention` of the PyPI package
    bottleneck-transformer-pytorch. To convert one of their checkpoints, load it into their network first;
    after the conversion that network's attention takes maps of any size.

    Args:
        model: a network that contains such layers, or such a layer itself.

    Returns:
        The network, or the new layer.

    Raises:
        ValueError: a layer has a form that Figure 4 does not have: queries of another width than the
            values, another width of output than input, or biases.
    """
    found = {name: layer for name, layer in model.named_modules() if _is_foreign(layer)}
    for name, layer in found.items():
        adopted = _adopted(name, _read_layer(layer), layer.training)
        if not name:
            return adopted
        model.set_submodule(name, adopted)
    return model


class _ForeignLayer(NamedTuple):
    """Parts of another project's layer; `scale` is the factor from its tables to those of `MHSA2d`."""

    kind: str
    heads: int
    stride: int
    projection: nn.Conv2d
    scale: float
    tables: Mapping[str, Tensor]


def _is_foreign(layer: nn.Module) -> bool:
    kind = type(layer)
    # By name, so that the package need not be installed.
    from_pypi = kind.__module__.startswith("bottleneck_transformer_pytorch") and kind.__name__ == "Attention"
    return from_pypi or isinstance(layer, BottleneckAttn)


def _read_layer(layer: Any) -> _ForeignLayer:
    kind = type(layer).__name__
    if isinstance(layer, BottleneckAttn):
        stride = 2 if isinstance(layer.pool, nn.AvgPool2d) else 1
        # `MHSA2d` scales the queries of both terms; timm by default only those of the content term.
        scale = 1.0 if layer.scale_pos_embed else layer.scale**-1
        tables = {"height_rel": layer.pos_embed.height_rel, "width_rel": layer.pos_embed.width_rel}
        return _ForeignLayer(kind, layer.num_heads, stride, layer.qkv, scale, tables)
    if hasattr(layer.pos_emb, "rel_height"):
        tables = {"height_rel": layer.pos_emb.rel_height, "width_rel": layer.pos_emb.rel_width}
    else:
        tables = {"height_abs": layer.pos_emb.height, "width_abs": layer.pos_emb.width}
    return _ForeignLayer(kind, layer.heads, 1, layer.to_qkv, 1.0, tables)


def _adopted(name: str, theirs: _ForeignLayer, training: bool) -> MHSA2d:
    projection, tables = theirs.projection, theirs.tables
    dim = projection.in_channels
    widths = {table.shape[1] for table in tables.values()}
    if projection.out_channels != 3 * dim or widths != {dim // theirs.heads} or projection.bias is not None:
        raise ValueError(
            f"{name or theirs.kind}: expected queries, keys and values of the input's {dim} "
            f"channels, without bias; found {projection.out_channels} channels in all, tables of width "
            f"{sorted(widths)} for {theirs.heads} heads"
        )
    relative = "height_rel" in tables
    height, width = ((len(table) + 1) // 2 if relative else len(table) for table in tables.values())
    adopted = MHSA2d(
        dim,
        theirs.heads,
        theirs.stride,
        position="relative" if relative else "absolute",
        feat_size=(height, width),
    ).to(projection.weight)
    state = {f"pos_embed.{key}": table.detach() * theirs.scale for key, table in tables.items()}
    adopted.load_state_dict({"qkv.weight": projection.weight.detach(), **state})
    adopted.qkv.weight.requires_grad_(projection.weight.requires_grad)
    for key, table in tables.items():
        adopted.get_parameter(f"pos_embed.{key}").requires_grad_(table.requires_grad)
    return adopted.train(training)
