"""Turn a ResNet into its BoTNet in place: replace the 3x3 of chosen blocks, or insert whole blocks.

Works on any network whose stages are called ``layer1`` ... ``layer4`` and consist of bottleneck blocks
(``conv1`` 1x1, ``conv2`` 3x3, ``conv3`` 1x1): timm's resnet, resnet-D, resnext, seresnet, ecaresnet,
resnetrs, wide and gluon families, and torchvision's resnets. Every module that is not replaced stays the
very same object with the very same name, so an ImageNet checkpoint of the ResNet still fits.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from botnet.layers import MHSA2d
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
    position: Literal["relative", "absolute"] | None = "relative",
    content: bool = True,
    s1: bool = False,
    shortcut_act: bool = False,
    img_size: int | tuple[int, int] | None = None,
    qkv_std: float | Literal["fan_in"] = 0.01,
) -> M:
    """Replace the 3x3 convolution of bottleneck blocks by self-attention (Section 3, Table 1), in place.

    Args:
        model: a ResNet of timm or torchvision with bottleneck blocks; weights already in it are kept.
        stages: which of "c2" ... "c5"; default the last one only, as in the paper.
        blocks: indices of the blocks within each chosen stage, negative ones count from the end;
            default all of them.
        heads: attention heads; must divide the width of the 3x3. Default 4.
        position: "relative", "absolute" or None (Table 4).
        content: whether the query-key product is part of the logits (Table 4).
        s1: take the stride out of the chosen stages (BoT-S1, Section 4.7.1), so that everything from
            there on runs at twice the resolution.
        shortcut_act: add an activation after the projected shortcut of the chosen stages, as the authors'
            published snippet has it; ResNet checkpoints are trained without it. Default False.
        img_size: side, or height and width, in pixels of the images that the position tables are made
            for; default what timm's configuration of the model says, else 224. Other sizes work at
            any time, see `MHSA2d`.
        qkv_std: standard deviation that queries, keys and values start from, see `MHSA2d`. Default 0.01.

    Returns:
        The same model. New layers are randomly initialised; `botnet.models.fresh_parameters` lists them.

    Raises:
        ValueError: the model has no such stage, block, or bottleneck structure, or the width of a 3x3 is
            not divisible by `heads`.
    """
    targets: dict[tuple[str, int], Any] = {}
    for stage in stages:
        chain = _stage(model, stage)
        for index in range(len(chain)) if blocks is None else blocks:
            if not -len(chain) <= index < len(chain):
                raise ValueError(f"{stage} has {len(chain)} blocks, there is no block {index}")
            targets[stage, index % len(chain)] = chain[index]
        if s1:
            _check_bottleneck(f"{stage} block 0", chain[0])
    for (stage, index), block in targets.items():
        _check_convertible(f"{stage} block {index}", block, heads)

    for stage in stages:
        if s1:
            _remove_stride(model, stage)
        first: Any = _stage(model, stage)[0]
        if shortcut_act:
            first.downsample.append(copy.deepcopy(first.act3 if hasattr(first, "act3") else first.relu))

    sizes = map_sizes(model, [block.conv2 for block in targets.values()], img_size)
    for block, size in zip(targets.values(), sizes, strict=True):
        block.conv2 = _attention_for(block.conv2, heads, position, content, size, qkv_std)
    return model


def insert_non_local(model: M, *, stages: Sequence[str] = ("c4",), project_values: bool = True) -> M:
    """Insert a Non-Local block before the last block of each stage (Section 4.6, Table 7), in place.

    Args:
        model: a ResNet of timm or torchvision with bottleneck blocks.
        stages: which of "c2" ... "c5"; default c4, as in Table 7.
        project_values: see `botnet.layers.NonLocal2d`.

    Returns:
        The same model, computing the same function until the new blocks are trained.

    Raises:
        ValueError: the model has no such stage, or a single block in it, or one without a bottleneck.
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
    position: Literal["relative", "absolute"] | None = "relative",
    content: bool = True,
    img_size: int | tuple[int, int] | None = None,
    qkv_std: float | Literal["fan_in"] = 0.01,
) -> M:
    """Insert a BoT block before the last block of each stage (Section 4.6, Table 7), in place.

    Args:
        model: a ResNet of timm or torchvision with bottleneck blocks.
        stages: which of "c2" ... "c5"; Table 7 has c4 (the default), and c4 with c5.
        heads, position, content, img_size, qkv_std: as in `bottleneck_transformer`.

    Returns:
        The same model. The new block has the shape of the last one, with attention for its 3x3; its
        last normalisation starts at zero, so that it passes on its input until it is trained. All of it is
        trainable, with plain batch norms, also where the model's own parameters and norms are frozen.

    Raises:
        ValueError: the model has no such stage, or a single block in it, or one without a bottleneck.
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
        block.requires_grad_(True)  # whatever is frozen around it, a new block has all to learn
        _insert_before_last(model, stage, "bot", block)
    return model


def _unfreeze_norms(block: nn.Module) -> None:
    """Put fresh batch norms in the place of frozen ones, whose weights are buffers that nothing trains."""
    for name, norm in list(block.named_modules()):
        if isinstance(norm, FrozenBatchNorm2d):  # timm's, too
            fresh = nn.BatchNorm2d(len(norm.weight), norm.eps)
            block.set_submodule(name, fresh.to(norm.weight).train(norm.training))


def _last_of_several(model: nn.Module, stage: str) -> nn.Module:
    chain = _stage(model, stage)
    if len(chain) < 2:
        raise ValueError(f"{stage} has a single block: there is no place between its last two")
    return chain[-1]


def _insert_before_last(model: nn.Module, stage: str, kind: str, block: nn.Module) -> None:
    # Numbered after its predecessor, so that no other block changes its name (checkpoints keep fitting)
    # and timm's patterns for layer-wise settings count it with that predecessor.
    children = list(_stage(model, stage).named_children())
    name = f"{int(children[-1][0]) - 1}_{kind}"
    before = sum(other.startswith(name) for other, _ in children)
    children.insert(-1, (f"{name}_{before + 1}" if before else name, block))
    setattr(model, STAGES[stage], nn.Sequential(OrderedDict(children)))


def _attention_for(
    conv: nn.Conv2d,
    heads: int,
    position: Literal["relative", "absolute"] | None,
    content: bool,
    feat_size: tuple[int, int],
    qkv_std: float | Literal["fan_in"],
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
        raise ValueError(f"unknown stage {name!r}; the stages of a ResNet are {', '.join(STAGES)}")
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
            f"{where} is a {type(block).__name__}, which is no 1x1, 3x3, 1x1 bottleneck; "
            "take a ResNet made of bottleneck blocks, such as resnet26 or resnet50"
        )


def _check_convertible(where: str, block: Any, heads: int) -> None:
    _check_bottleneck(where, block)
    conv = block.conv2
    if conv.in_channels != conv.out_channels:
        raise ValueError(
            f"{where}: its 3x3 goes from {conv.in_channels} to {conv.out_channels} channels; "
            "attention keeps the width, so this network (an SENet-154 form) cannot be converted"
        )
    if conv.in_channels % heads:
        raise ValueError(f"{where}: {heads} heads do not divide the width {conv.in_channels}")


def _remove_stride(model: nn.Module, stage: str) -> None:
    """Make the first block of a stage keep its resolution, without touching a weight."""
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
