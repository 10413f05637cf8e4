"""Turn a ResNet into a BoTNet in place: replace the 3x3 of chosen blocks, or insert new blocks.

Works on any network with stages ``layer1`` ... ``layer4`` of bottleneck blocks (``conv1`` 1x1, ``conv2`` 3x3,
``conv3`` 1x1): timm's resnet, resnet-D, resnext, seresnet, ecaresnet, resnetrs, wide and gluon families, and
torchvision's resnets. Every module that is not replaced stays the same object under the same name, so an
ImageNet checkpoint of the ResNet still fits.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from botnet.layers import MHSA2d
from botnet.layers.attention import Position, QkvStd
from botnet.layers.non_local import NonLocal2d
from botnet.models.shapes import map_sizes

M = TypeVar("M", bound=nn.Module)
STAGES = {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}


def bottleneck_transformer(
    model: M,
    *,
    stages: Sequence[str] = ("c5",),
    blocks: Sequence[int] | None = None,
    heads: int = 4,
    position: Position | None = "relative",
    content: bool = True,
    s1: bool = False,
    shortcut_act: bool = False,
    img_size: int | tuple[int, int] | None = None,
    qkv_std: QkvStd = 0.01,
) -> M:
    """Replace the 3x3 convolution of bottleneck blocks by self-attention (Section 3, Table 1), in place.

    Args:
        model: a ResNet of timm or torchvision with bottleneck blocks; its weights are kept.
        stages: of "c2" ... "c5"; default the last one, as in the paper.
        blocks: indices of blocks within each chosen stage, negative ones from the end; default all of them.
        heads: attention heads; must divide the width of the 3x3. Default 4.
        position: "relative", "absolute" or None (Table 4).
        content: whether the query-key product is part of the logits (Table 4).
        s1: remove the stride of the chosen stages (BoT-S1, Section 4.7.1), so that they and all later ones
            work at twice the resolution.
        shortcut_act: add an activation after the projected shortcut of the chosen stages, as in the authors'
            published snippet; ResNet checkpoints are trained without it. Default False.
        img_size: side, or height and width, in pixels, of the images that the position tables fit; default
            what timm's configuration of the model says, else 224. The network still takes images of any
            size, see `MHSA2d`.
        qkv_std: initial standard deviation of queries, keys and values, see `MHSA2d`. Default 0.01.

    Returns:
        The same model. New layers are randomly initialised, and trainable even where the model's parameters
        are frozen; `botnet.models.fresh_parameters` lists them.

    Raises:
        ValueError: the model has no such stage, block, or bottleneck structure, or the width of a 3x3 is
            not divisible by `heads`.
    """
    targets = _choose_blocks(model, stages, blocks)
    # All checks come first: a network that is refused is left unchanged.
    for where, block in targets.items():
        _check_convertible(where, block, heads)
    for stage in stages if s1 else ():
        _check_bottleneck(f"{stage} block 0", _stage(model, stage)[0])
    for stage in stages:
        if s1:
            _remove_stride(model, stage)
        if shortcut_act:
            first: Any = _stage(model, stage)[0]
            first.downsample.append(copy.deepcopy(first.act3 if hasattr(first, "act3") else first.relu))
    sizes = map_sizes(model, [block.conv2 for block in targets.values()], img_size)
    for block, size in zip(targets.values(), sizes, strict=True):
        block.conv2 = _attention_for(block.conv2, heads, position, content, size, qkv_std)
    return model


def _choose_blocks(model: nn.Module, stages: Sequence[str], blocks: Sequence[int] | None) -> dict[str, Any]:
    """Blocks of some stages by their description, such as "c5 block 0"."""
    chosen: dict[str, Any] = {}
    for stage in stages:
        chain = _stage(model, stage)
        for index in range(len(chain)) if blocks is None else blocks:
            if not -len(chain) <= index < len(chain):
                raise ValueError(f"{stage} has {len(chain)} blocks, there is no block {index}")
            chosen[f"{stage} block {index % len(chain)}"] = chain[index]
    return chosen


def insert_non_local(model: M, *, stages: Sequence[str] = ("c4",), project_values: bool = True) -> M:
    """Insert a Non-Local block before the last block of each stage (Section 4.6, Table 7), in place.

    Args:
        model: a ResNet of timm or torchvision with bottleneck blocks.
        stages: of "c2" ... "c5"; default c4, as in Table 7.
        project_values: see `botnet.layers.NonLocal2d`.

    Returns:
        The same model; it computes the same function until the new blocks are trained.

    Raises:
        ValueError: a stage does not exist, has a single block, or does not consist of bottleneck blocks.
    """
    lasts: dict[str, Any] = {stage: _last_of_several(model, stage) for stage in stages}
    for stage, last in lasts.items():
        _check_bottleneck(f"the last block of {stage}", last)
    for stage, last in lasts.items():
        block = NonLocal2d(last.conv3.out_channels, project_values=project_values)
        _insert_before_last(model, stage, "non_local", block.to(last.conv3.weight).train(last.training))
    return model


def insert_bot(
    model: M,
    *,
    stages: Sequence[str] = ("c4",),
    heads: int = 4,
    position: Position | None = "relative",
    content: bool = True,
    img_size: int | tuple[int, int] | None = None,
    qkv_std: QkvStd = 0.01,
) -> M:
    """Insert a BoT block before the last block of each stage (Section 4.6, Table 7), in place.

    Args:
        model: a ResNet of timm or torchvision with bottleneck blocks.
        stages: of "c2" ... "c5"; Table 7 has c4 (the default), and c4 with c5.
        heads, position, content, img_size, qkv_std: as in `bottleneck_transformer`.

    Returns:
        The same model. The new block has the shape of the last one, with attention in place of its 3x3. The
        weight of its last normalisation is zero, so that the block is the identity until it is trained. All
        of it is trainable, with ordinary batch norms, even where the model's parameters and norms are frozen.

    Raises:
        ValueError: a stage does not exist, has a single block, or does not consist of bottleneck blocks; or
            the width of its 3x3 is not divisible by `heads`.
    """
    lasts: dict[str, Any] = {stage: _last_of_several(model, stage) for stage in stages}
    for stage, last in lasts.items():
        _check_convertible(f"the last block of {stage}", last, heads)
    for stage, last in lasts.items():
        (size,) = map_sizes(model, [last.conv2], img_size)
        block: Any = copy.deepcopy(last)
        _unfreeze_norms(block)
        for module in block.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(block.bn3.weight)
        block.conv2 = _attention_for(last.conv2, heads, position, content, size, qkv_std)
        block.requires_grad_(True)  # copied from a block that may be frozen
        _insert_before_last(model, stage, "bot", block)
    return model


def _unfreeze_norms(block: nn.Module) -> None:
    """Replace frozen batch norms, whose weights are buffers, by new trainable ones."""
    for name, norm in list(block.named_modules()):
        if isinstance(norm, FrozenBatchNorm2d):  # timm's, too
            fresh = nn.BatchNorm2d(len(norm.weight), norm.eps)
            block.set_submodule(name, fresh.to(norm.weight).train(norm.training))


def _last_of_several(model: nn.Module, stage: str) -> nn.Module:
    chain = _stage(model, stage)
    if len(chain) < 2:
        raise ValueError(f"{stage} has a single block, but the new one goes between the last two")
    return chain[-1]


def _insert_before_last(model: nn.Module, stage: str, kind: str, block: nn.Module) -> None:
    # Named after its predecessor: no other block changes its name, so checkpoints still fit, and timm's
    # patterns for layer-wise settings put it into the same layer as its predecessor.
    children = list(_stage(model, stage).named_children())
    name = f"{int(children[-1][0]) - 1}_{kind}"
    before = sum(other.startswith(name) for other, _ in children)
    children.insert(-1, (f"{name}_{before + 1}" if before else name, block))
    setattr(model, STAGES[stage], nn.Sequential(OrderedDict(children)))


def _attention_for(
    conv: nn.Conv2d,
    heads: int,
    position: Position | None,
    content: bool,
    feat_size: tuple[int, int],
    qkv_std: QkvStd,
) -> MHSA2d:
    attention = MHSA2d(
        conv.in_channels,
        heads,
        stride=conv.stride[0],
        position=position,
        content=content,
        feat_size=feat_size,
        qkv_std=qkv_std,
    )
    return attention.to(conv.weight).train(conv.training)


def _stage(model: nn.Module, name: str) -> nn.Sequential:
    if name not in STAGES:
        raise ValueError(f"unknown stage {name!r}; expected one of {', '.join(STAGES)}")
    stage = getattr(model, STAGES[name], None)
    if not isinstance(stage, nn.Sequential) or len(stage) == 0:
        raise ValueError(
            f"{type(model).__name__} has no stage {name} ({STAGES[name]}); expected a ResNet-like network "
            "with bottleneck blocks, such as timm's resnet50 or torchvision's resnet50"
        )
    return stage


def _check_bottleneck(where: str, block: Any) -> None:
    if isinstance(getattr(block, "conv2", None), MHSA2d):
        raise ValueError(f"{where} is an attention block already")
    convs = [getattr(block, f"conv{i}", None) for i in (1, 2, 3)]
    kernels = [conv.kernel_size if isinstance(conv, nn.Conv2d) else None for conv in convs]
    if kernels != [(1, 1), (3, 3), (1, 1)]:
        raise ValueError(
            f"{where} is a {type(block).__name__}, not a bottleneck of 1x1, 3x3 and 1x1; "
            "use a ResNet of bottleneck blocks, such as resnet26 or resnet50"
        )


def _check_convertible(where: str, block: Any, heads: int) -> None:
    _check_bottleneck(where, block)
    conv = block.conv2
    if conv.in_channels != conv.out_channels:
        raise ValueError(
            f"{where}: its 3x3 goes from {conv.in_channels} to {conv.out_channels} channels, but attention "
            "keeps the number of channels; networks like SENet-154 cannot be converted"
        )
    if heads < 1 or conv.in_channels % heads:
        raise ValueError(f"{where}: {heads} heads do not divide the width {conv.in_channels}")


def _remove_stride(model: nn.Module, stage: str) -> None:
    """Set the stride of the first block of a stage to 1; no weight changes."""
    first: Any = _stage(model, stage)[0]
    stride, first.stride = first.stride, 1
    first.conv1.stride = first.conv2.stride = (1, 1)
    if hasattr(first, "aa"):
        first.aa = nn.Identity()
    for i, layer in enumerate(first.downsample):
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        elif isinstance(layer, nn.AvgPool2d):
            first.downsample[i] = nn.Identity()
    levels: Any = getattr(model, "feature_info", [])
    for level in levels[list(STAGES).index(stage) + 1 :]:
        level["reduction"] //= stride
