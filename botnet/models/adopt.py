"""Attention layers of other projects as `MHSA2d`, weights and function kept."""

from typing import Any

from timm.layers.bottleneck_attn import BottleneckAttn
from torch import nn

from botnet.layers import MHSA2d
from botnet.models.weights import M


def adopt_attention(model: M) -> M:
    """Put `MHSA2d` in the place of other projects' BoTNet attention, weights and function kept, in place.

    Knows timm's `BottleneckAttn` (as in timm's botnet26t_256) and the `Attention` of the PyPI package
    bottleneck-transformer-pytorch. A checkpoint of theirs thus moves over by being loaded into
    their network first; afterwards that network's attention takes maps of any size.

    Args:
        model: a network that contains such layers, or such a layer itself.

    Returns:
        The network, or the new layer.

    Raises:
        ValueError: a layer has a form that Figure 4 has not: queries of another width than the
            values, a changed width, or biases.
    """
    found = {name: layer for name, layer in model.named_modules() if _is_foreign(layer)}
    for name, layer in found.items():
        adopted = _adopted(name, layer)
        if not name:
            return adopted  # type: ignore[return-value]
        model.set_submodule(name, adopted)
    return model


def _is_foreign(layer: nn.Module) -> bool:
    kind = type(layer)
    # By name, so that the package need not be installed.
    from_pypi = kind.__module__.startswith("bottleneck_transformer_pytorch") and kind.__name__ == "Attention"
    return from_pypi or isinstance(layer, BottleneckAttn)


def _adopted(name: str, layer: Any) -> MHSA2d:
    if isinstance(layer, BottleneckAttn):
        heads, stride, projection = (
            layer.num_heads,
            2 if isinstance(layer.pool, nn.AvgPool2d) else 1,
            layer.qkv,
        )
        # timm adds the position term unscaled unless told otherwise; the layer here scales queries for both.
        scale = 1.0 if layer.scale_pos_embed else layer.scale**-1
        tables = {"height_rel": layer.pos_embed.height_rel, "width_rel": layer.pos_embed.width_rel}
    else:
        heads, stride, projection, scale = layer.heads, 1, layer.to_qkv, 1.0
        if hasattr(layer.pos_emb, "rel_height"):
            tables = {"height_rel": layer.pos_emb.rel_height, "width_rel": layer.pos_emb.rel_width}
        else:
            tables = {"height_abs": layer.pos_emb.height, "width_abs": layer.pos_emb.width}
    dim = projection.in_channels
    widths = {table.shape[1] for table in tables.values()}
    if projection.out_channels != 3 * dim or widths != {dim // heads} or projection.bias is not None:
        raise ValueError(
            f"{name or type(layer).__name__}: expected queries, keys and values of the input's {dim} "
            f"channels, without bias; found {projection.out_channels} channels in all, tables of width "
            f"{sorted(widths)} for {heads} heads"
        )
    relative = "height_rel" in tables
    height, width = ((len(table) + 1) // 2 if relative else len(table) for table in tables.values())
    adopted = MHSA2d(
        dim, heads, stride, position="relative" if relative else "absolute", feat_size=(height, width)
    ).to(projection.weight)
    state = {f"pos_embed.{key}": table.detach() * scale for key, table in tables.items()}
    adopted.load_state_dict({"qkv.weight": projection.weight.detach(), **state})
    return adopted.train(layer.training)
