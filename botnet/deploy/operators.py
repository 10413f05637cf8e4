"""Two operators of the exported detector: what they compute in PyTorch, and as nodes of ONNX.

Suppression and multi-level pooling give as many rows as they find, which ``torch.export`` cannot trace
through torchvision's loops. As operators their shapes are known, and their ONNX form is chosen here:
suppression of all images and classes at once, without offsets between the classes, and each box pooled once,
from its own level.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms, roi_align


@torch.library.custom_op("botnet::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou: float, limit: int) -> Tensor:
    """Non-maximum suppression in each row.

    Args:
        boxes: ``(N, K, 4)`` xyxy.
        scores: ``(N, K)``; a box of negative score is not there.
        iou: a box that overlaps a better one by more is suppressed.
        limit: number of boxes that are kept in a row.

    Returns:
        ``(N, K)``: the scores of the boxes that are kept, -1 for the others.
    """
    kept = torch.full_like(scores, -1)
    for row in range(len(scores)):
        there = torch.where(scores[row] >= 0)[0]
        best = there[nms(boxes[row, there], scores[row, there], iou)[:limit]]
        kept[row, best] = scores[row, best]
    return kept


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, limit: int) -> Tensor:
    return torch.empty_like(scores)


@torch.library.custom_op("botnet::pool_boxes", mutates_args=())
def pool_boxes(
    features: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float], size: int
) -> tuple[Tensor, Tensor]:
    """RoIAlign with one sample in each bin, every box from its own level of the pyramid.

    Args:
        features: ``(B, C, H, W)`` of each level.
        rois: ``(R, 5)``: image, and xyxy in pixels of the image.
        levels: ``(R,)`` index of the level of each.
        scales: cells per pixel of each level.
        size: bins a side.

    Returns:
        ``(R, C, size, size)`` level by level, and ``(R,)``, which roi each of them belongs to. Bringing what
        is computed from them back into the order of the rois is cheaper than reordering them.
    """
    places = [torch.where(levels == level)[0] for level in range(len(features))]
    pooled = [
        roi_align(feature, rois[place], size, scale, sampling_ratio=1)
        for feature, place, scale in zip(features, places, scales, strict=True)
    ]
    return torch.cat(pooled), torch.cat(places)


@pool_boxes.register_fake
def _(
    features: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float], size: int
) -> tuple[Tensor, Tensor]:
    return features[0].new_empty(rois.shape[0], features[0].shape[1], size, size), torch.empty_like(levels)


def onnx_forms() -> dict[Any, Callable[..., Any]]:
    """The ONNX form of each operator, as ``torch.onnx.export`` takes them."""
    from onnxscript import opset18

    op: Any = opset18  # its types know no lists and numbers

    def suppress_nodes(boxes: Any, scores: Any, iou: float, limit: int) -> Any:
        found = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, [1]),
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[-0.5]),
        )
        place = op.Gather(found, [0, 2], axis=1)  # row and box; the middle column is the class
        nothing = op.Expand(op.Constant(value_float=-1.0), op.Shape(scores))
        return op.ScatterND(nothing, place, op.GatherND(scores, place))

    def pool_nodes(features: Any, rois: Any, levels: Any, scales: Sequence[float], size: int) -> Any:
        pooled, places = [], []
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            place = op.Squeeze(op.NonZero(op.Equal(levels, op.Constant(value_int=level))), [0])
            of_level = op.Gather(rois, place)
            image = op.Squeeze(op.Slice(of_level, [0], [1], [1]), [1])
            pooled.append(
                op.RoiAlign(
                    feature,
                    op.Slice(of_level, [1], [5], [1]),
                    op.Cast(image, to=7),  # int64
                    coordinate_transformation_mode="output_half_pixel",
                    output_height=size,
                    output_width=size,
                    sampling_ratio=1,
                    spatial_scale=scale,
                )
            )
            places.append(place)
        return op.Concat(*pooled, axis=0), op.Concat(*places, axis=0)

    operators = torch.ops.botnet
    return {operators.suppress.default: suppress_nodes, operators.pool_boxes.default: pool_nodes}
