"""Box and mask heads: pooling, targets and losses."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from botnet.detection.fpn import LEVELS
from botnet.training.distributed import batch_mean


class RoIAlign(MultiScaleRoIAlign):
    """torchvision's pooling of RoIs as [tpu] ``multilevel_crop_and_resize`` has it: one bilinear sample at
    the centre of each bin, and the largest from p6.

    torchvision infers the pyramid's strides from the image sizes, which goes wrong on a canvas that is mostly
    padding (jitter 0.1). Here the strides are given, and the third argument of the call is ignored.

    Args:
        size: bins a side.
        strides: canvas pixels per cell of p2..p6.
        canonical_size: side in pixels of a box that is pooled from p4.
    """

    def __init__(self, size: int, strides: Sequence[int], canonical_size: int) -> None:
        super().__init__(list(LEVELS), size, sampling_ratio=1)
        self.scales = [1 / stride for stride in strides]
        self.map_levels = LevelMapper(2, 6, canonical_scale=canonical_size)


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, size: int) -> Tensor:
    """The mask head's target for each box: its object's mask on a ``size x size`` grid.

    The mask is sampled bilinearly at the centres of the grid's cells, pixel ``i`` covering
    ``[i, i + 1)``, and thresholded at one half (as in [tpu]; ``paste_masks`` is the inverse). Only the
    sampled pixels are touched, so a canvas full of masks is never converted to float.

    Args:
        masks: ``(objects, H, W)``, 0 or 1.
        boxes: ``(R, 4)`` xyxy in canvas pixels.
        matched: ``(R,)`` index of each box's object.
        size: side of the grid.

    Returns:
        ``(R, size, size)`` float32, 0 or 1.
    """
    height, width = masks.shape[-2:]
    steps = (torch.arange(size, device=boxes.device) + 0.5) / size
    x = boxes[:, 0, None] + steps * (boxes[:, 2] - boxes[:, 0])[:, None] - 0.5  # R, size
    y = boxes[:, 1, None] + steps * (boxes[:, 3] - boxes[:, 1])[:, None] - 0.5
    x0, y0 = x.floor(), y.floor()
    total = boxes.new_zeros(len(boxes), size, size)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight_x = (x - x0) if dx else (1 - (x - x0))
        weight_y = (y - y0) if dy else (1 - (y - y0))
        column = (x0 + dx).long().clamp(0, width - 1)
        row = (y0 + dy).long().clamp(0, height - 1)
        corner = masks[matched[:, None, None], row[:, :, None], column[:, None, :]]
        total += weight_y[:, :, None] * weight_x[:, None, :] * corner
    return (total >= 0.5).float()


class RoIHeads(TorchvisionRoIHeads):
    """torchvision's box and mask heads with the losses of [tpu], in float32 under autocast."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        valid: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image without targets, losses with them.

        Args:
            features: p2..p6.
            proposals: ``(R, 4)`` xyxy canvas pixels of each image.
            valid: ``(height, width)`` of each image's unpadded region.
            targets: in training, as :meth:`botnet.detection.rcnn.RCNN.forward` takes them.
        """
        # Pooling needs channels first, and float32 under autocast: converted once for boxes and masks, whose
        # gradients are summed there.
        if torch.is_autocast_enabled(proposals[0].device.type):
            features = {name: level.float() for name, level in features.items()}
        features = {name: level.contiguous() for name, level in features.items()}
        if targets is not None:
            return [], self._losses(features, proposals, targets)
        return self._detections(features, proposals, valid), {}

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        """As torchvision's, without asking the device how many were drawn."""
        positives, negatives = self.fg_bg_sampler(labels)
        drawn = self.fg_bg_sampler.drawn
        return [
            torch.nonzero_static(positive | negative, size=sum(counts))[:, 0]
            for positive, negative, counts in zip(positives, negatives, drawn, strict=True)
        ]

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        proposals, matched, labels, regression_targets = self.select_training_samples(proposals, targets)
        logits, deltas = self._box_outputs(features, proposals)
        mask_logits = truth = None
        if self.has_mask():
            positive = [
                torch.nonzero_static(label > 0, size=count)[:, 0]
                for label, (count, _) in zip(labels, self.fg_bg_sampler.drawn, strict=True)
            ]
            boxes = [p[keep] for p, keep in zip(proposals, positive, strict=True)]
            classes = [label[keep] for label, keep in zip(labels, positive, strict=True)]
            mask_logits = self.mask_logits(features, boxes, classes)
            truth = torch.cat(
                [
                    mask_targets(target["masks"], box, index[keep], mask_logits.shape[-1])
                    for target, box, index, keep in zip(targets, boxes, matched, positive, strict=True)
                ]
            )
        return roi_losses(
            logits, deltas, torch.cat(labels), torch.cat(regression_targets), mask_logits, truth
        )

    def _detections(
        self, features: dict[str, Tensor], proposals: list[Tensor], valid: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits, deltas = self._box_outputs(features, proposals)
        all_boxes, all_scores, all_labels = self.postprocess_detections(logits, deltas, proposals, valid)
        detections = [
            {"boxes": boxes, "scores": scores, "labels": labels}
            for boxes, scores, labels in zip(all_boxes, all_scores, all_labels, strict=True)
        ]
        if self.has_mask():
            masks = self.mask_logits(features, all_boxes, all_labels).sigmoid()[:, None]
            for detection, of_image in zip(detections, masks.split([len(b) for b in all_boxes]), strict=True):
                detection["masks"] = of_image
        return detections

    def _box_outputs(self, features: dict[str, Tensor], proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits and box deltas of every proposal."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, [])))
        return logits.float(), deltas.float()

    def mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], classes: list[Tensor]) -> Tensor:
        """The mask ``(R, 28, 28)`` of each box's own class; no other class's is trained or shown."""
        hidden = self.mask_head(self.mask_roi_pool(features, boxes, []))
        hidden = self.mask_predictor.relu(self.mask_predictor.conv5_mask(hidden))
        last, own = self.mask_predictor.mask_fcn_logits, torch.cat(classes)
        # Indexed in the kernel's own memory layout, channels last, so that its gradient has the same layout,
        # as DDP expects.
        logits = torch.einsum("rchw,rc->rhw", hidden, last.weight.permute(0, 2, 3, 1)[own, 0, 0])
        return logits.float() + last.bias[own, None, None]


def roi_losses(
    logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    targets: Tensor,
    mask_logits: Tensor | None,
    truth: Tensor | None,
) -> dict[str, Tensor]:
    """[tpu] ``FastrcnnClassLoss``, ``FastrcnnBoxLoss`` and ``MaskrcnnLoss``.

    Cross entropy, mean over the sampled RoIs; Huber (delta 1), mean over the coordinates of the positive
    ones at their own class; binary cross entropy, mean over the pixels of their masks.

    Args:
        logits: ``(R, classes + 1)``.
        deltas: ``(R, 4 (classes + 1))``.
        labels: ``(R,)``, 0 for background.
        targets: ``(R, 4)``; those of the background are ignored.
        mask_logits: ``(P, M, M)`` of the P positive RoIs at their own class, or None for Faster R-CNN.
        truth: ``(P, M, M)``, 0 or 1.
    """
    positive = labels > 0
    own = deltas.view(len(labels), -1, 4)[torch.arange(len(labels), device=labels.device), labels]
    errors = F.huber_loss(own, targets, reduction="none", delta=1.0)
    # Empty sums keep every head in the graph where no RoI is positive (DDP needs it).
    sums = {
        "class": F.cross_entropy(logits, labels, reduction="sum"),
        "box": errors.where(positive[:, None], 0).sum(),
    }
    counts = [positive.new_full((), len(labels), dtype=torch.int64), 4 * positive.sum()]
    if mask_logits is not None and truth is not None:
        sums["mask"] = F.binary_cross_entropy_with_logits(mask_logits, truth, reduction="sum")
        counts.append(positive.new_full((), truth.numel(), dtype=torch.int64))
    means = batch_mean(torch.stack(list(sums.values())), torch.stack(counts))
    return dict(zip(sums, means, strict=True))


def build_box_branch(
    in_channels: int, channels: int, num_classes: int, strides: Sequence[int], canonical_size: int
) -> dict[str, nn.Module]:
    """Pooling, head and predictor of the boxes, by the names that :class:`RoIHeads` gives them."""
    head = TwoMLPHead(in_channels * 7**2, channels)
    for layer in head.children():
        nn.init.xavier_uniform_(layer.weight)
    predictor = FastRCNNPredictor(channels, num_classes + 1)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
    return {
        "box_roi_pool": RoIAlign(7, strides, canonical_size),
        "box_head": head,
        "box_predictor": predictor,
    }


def build_mask_branch(
    in_channels: int, channels: int, convs: int, num_classes: int, strides: Sequence[int], canonical_size: int
) -> dict[str, nn.Module]:
    """Pooling, head and predictor of the masks, by the names that :class:`RoIHeads` gives them."""
    return {
        "mask_roi_pool": RoIAlign(14, strides, canonical_size),
        "mask_head": MaskRCNNHeads(in_channels, [channels] * convs, dilation=1),
        "mask_predictor": MaskRCNNPredictor(channels if convs else in_channels, channels, num_classes + 1),
    }
