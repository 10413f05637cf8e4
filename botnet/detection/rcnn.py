"""Faster and Mask R-CNN on any timm backbone (paper, Section 4; numbers of the authors' TPU codebase).

The parts are torchvision's. What is written here is what differs from torchvision: batch norm on the
outputs of the FPN, p6 by a strided convolution, anchors at the centres of their cells and how objects claim
them, pooling from p6 too, the random choices, the losses, and that the detector takes a prepared canvas:
images are never resized a second time.

``[tpu]`` in the comments is tensorflow/tpu ``models/official/detection``, the codebase of the paper.
docs/fidelity.md lists every setting, its source and where it stands.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock
from torchvision.ops.poolers import LevelMapper

from botnet.distributed import batch_mean
from botnet.models.weights import load_resnet

LEVELS = ("p2", "p3", "p4", "p5", "p6")


class StridedP6(ExtraFPNBlock):
    """p6 as a 3x3 convolution of stride 2 on p5 (torchvision's default only subsamples p5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        return [*results, self.conv(results[-1])], [*names, "p6"]


class FPN(nn.Module):
    """Feature pyramid p2-p6 with batch norm on its five outputs, as in [tpu] ``fpn.py``.

    The norms are plain ``BatchNorm2d``, so that ``SyncBatchNorm.convert_sync_batchnorm`` finds them.

    Args:
        in_channels: widths of c2..c5.
        channels: width of every output, 256 in the paper.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(in_channels), channels, extra_blocks=StridedP6(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in LEVELS)
        for module in self.pyramid.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        outputs = self.pyramid(OrderedDict(zip(LEVELS, features, strict=False)))
        return {name: norm(x) for (name, x), norm in zip(outputs.items(), self.norms, strict=True)}


class Anchors(nn.Module):
    """Anchor boxes centred on the cells of each pyramid level, in float32 whatever the features are.

    torchvision's generator puts anchors on the cells' corners, takes the features' dtype (bfloat16 cannot
    hold a coordinate above 256 to the pixel) and derives strides from sizes, which fails where a canvas
    is no multiple of 64.

    Args:
        strides: canvas pixels per cell of each level.
        scale: anchor side in cells; [tpu] has 8.
        ratios: height / width, each with the area of the square.
    """

    def __init__(
        self, strides: Sequence[int], scale: float = 8.0, ratios: Sequence[float] = (1.0, 2.0, 0.5)
    ) -> None:
        super().__init__()
        self.strides, self.scale, self.ratios = tuple(strides), scale, tuple(ratios)

    def num_anchors_per_location(self) -> list[int]:
        return [len(self.ratios)] * len(self.strides)

    def forward(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        device = images.tensors.device
        ratios = torch.tensor(self.ratios, device=device)
        levels = []
        for level, stride in zip(features, self.strides, strict=True):
            y, x = (stride * (torch.arange(n, device=device) + 0.5) for n in level.shape[-2:])
            centres = torch.cartesian_prod(y, x).flip(-1).repeat(1, 2)  # H*W, 4
            half_h = 0.5 * self.scale * stride * ratios.sqrt()
            half_w = 0.5 * self.scale * stride / ratios.sqrt()
            offsets = torch.stack([-half_w, -half_h, half_w, half_h], dim=1)  # A, 4
            levels.append((centres[:, None] + offsets).flatten(0, 1))
        return [torch.cat(levels)] * len(images.image_sizes)


class FloatRPNHead(RPNHead):
    """torchvision's head, answering in float32 under autocast: boxes are decoded from its output."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class AnchorMatcher(Matcher):
    """An anchor is positive from IoU 0.7 on, and where it is an object's best ([tpu] ``ArgMaxMatcher``).

    An object has one best anchor, the first of the equals. torchvision takes all of them: a small object lies
    inside dozens of anchors that overlap it equally.
    """

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        matches: Tensor = super().__call__(match_quality_matrix)
        best = match_quality_matrix.argmax(1)
        objects = torch.arange(len(best), device=best.device)
        # The first of the objects that share a best anchor has it.
        owner = torch.full_like(matches, len(best)).scatter_reduce_(0, best, objects, "amin")
        return torch.where(owner < len(best), owner, matches)


class Sampler(BalancedPositiveNegativeSampler):
    """torchvision's choice of anchors and RoIs to learn from, each image's drawn from a generator of its own.

    Drawn from the global one, it would depend on the images before it on the same device.
    """

    generators: Sequence[torch.Generator | None] = ()

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        chosen = [
            self.choose(labels, generator)
            for labels, generator in zip(matched_idxs, self.generators, strict=True)
        ]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def choose(self, labels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """One image's positives and negatives, as masks: positive labels and 0; others are passed over."""
        left, masks = self.batch_size_per_image, []
        most = int(self.positive_fraction * self.batch_size_per_image)
        for candidates, limit in ((labels >= 1, most), (labels == 0, self.batch_size_per_image)):
            found = torch.where(candidates)[0]
            order = torch.randperm(len(found), generator=generator, device=labels.device)
            drawn = found[order[: min(limit, left)]]
            left -= len(drawn)
            masks.append(torch.zeros_like(candidates).index_fill_(0, drawn, True))
        return masks[0], masks[1]


class RPN(RegionProposalNetwork):
    """torchvision's region proposals with the losses of [tpu] ``RpnScoreLoss`` and ``RpnBoxLoss``."""

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        # torchvision hands the loss no level sizes; its forward always comes through here first.
        self.level_sizes = num_anchors_per_level
        return super().filter_proposals(proposals, objectness, image_shapes, num_anchors_per_level)

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Score: cross entropy over the sampled anchors, by the number that an image should have. Box: Huber
        (delta 1/9) over all positive anchors, sampled or not; mean over each level's coordinates, summed."""
        positive, negative = (torch.stack(masks) for masks in self.fg_bg_sampler(labels))
        sampled = positive | negative
        target = torch.stack(labels)
        objectness = objectness.view_as(target)
        score_sum = F.binary_cross_entropy_with_logits(objectness[sampled], target[sampled], reduction="sum")
        score_loss = score_sum / (self.fg_bg_sampler.batch_size_per_image * len(labels))
        deltas = pred_bbox_deltas.view(*target.shape, 4)
        errors = F.huber_loss(deltas, torch.stack(regression_targets), reduction="none", delta=1 / 9)
        sums, counts = [], []
        levels = (errors.split(self.level_sizes, dim=1), target.split(self.level_sizes, dim=1))
        for level_errors, level_target in zip(*levels, strict=True):
            chosen = level_target == 1
            sums.append(level_errors[chosen].sum())
            counts.append(4 * chosen.sum())
        return score_loss, batch_mean(torch.stack(sums), torch.stack(counts)).sum()


class RoIAlign(MultiScaleRoIAlign):
    """torchvision's pooling of RoIs as [tpu] ``multilevel_crop_and_resize`` has it: one bilinear sample at
    the centre of each bin, and the largest from p6.

    torchvision infers the pyramid's strides from the sizes of the images; on a canvas that is mostly padding
    (jitter 0.1) these mislead it, so the strides are given, and the third argument of the call is not read.

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
    """What the mask head should say of each box: its object's mask on a ``size x size`` grid.

    The mask is sampled bilinearly at the centres of the grid's cells, pixel ``i`` covering
    ``[i, i + 1)``, and cut at one half ([tpu] does so; ``paste_mask`` is the inverse). Only the sampled
    pixels are touched, so a canvas full of masks is never converted to float.

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
    """torchvision's box and mask heads with the losses of [tpu], right under autocast."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        valid: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if targets is not None:
            proposals, matched, labels, regression_targets = self.select_training_samples(proposals, targets)
        # Pooling wants channels first: turned once for boxes and masks, and their gradients summed there.
        features = {name: level.contiguous() for name, level in features.items()}
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, [])))
        logits, deltas = logits.float(), deltas.float()

        if targets is not None:
            positive = [torch.where(label > 0)[0] for label in labels]
            truth = mask_logits = None
            if self.has_mask():
                boxes = [p[keep] for p, keep in zip(proposals, positive, strict=True)]
                classes = [label[keep] for label, keep in zip(labels, positive, strict=True)]
                mask_logits = self.mask_logits(features, boxes, classes)
                truth = torch.cat(
                    [
                        mask_targets(target["masks"], box, index[keep], mask_logits.shape[-1])
                        for target, box, index, keep in zip(targets, boxes, matched, positive, strict=True)
                    ]
                )
            target = torch.cat(regression_targets)
            return [], roi_losses(logits, deltas, torch.cat(labels), target, mask_logits, truth)

        all_boxes, all_scores, all_labels = self.postprocess_detections(logits, deltas, proposals, valid)
        detections = [
            {"boxes": boxes, "scores": scores, "labels": labels}
            for boxes, scores, labels in zip(all_boxes, all_scores, all_labels, strict=True)
        ]
        if self.has_mask():
            masks = self.mask_logits(features, all_boxes, all_labels).sigmoid()[:, None]
            for detection, of_image in zip(detections, masks.split([len(b) for b in all_boxes]), strict=True):
                detection["masks"] = of_image
        return detections, {}

    def mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], classes: list[Tensor]) -> Tensor:
        """The mask ``(R, 28, 28)`` of each box's own class; the others' are neither learnt from nor shown."""
        hidden = self.mask_head(self.mask_roi_pool(features, boxes, []))
        hidden = self.mask_predictor.relu(self.mask_predictor.conv5_mask(hidden))
        last, own = self.mask_predictor.mask_fcn_logits, torch.cat(classes)
        # The kernel is read as it lies in memory, channels last: so then lies its gradient, as DDP wants it.
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
    ones, each read at its own class; binary cross entropy, mean over the pixels of their masks.

    Args:
        logits: ``(R, classes + 1)``.
        deltas: ``(R, 4 (classes + 1))``.
        labels: ``(R,)``, 0 for background.
        targets: ``(R, 4)``; background's are not read.
        mask_logits: ``(P, M, M)`` of the P positive RoIs at their own class, or None for Faster R-CNN.
        truth: ``(P, M, M)``, 0 or 1.
    """
    positive = torch.where(labels > 0)[0]
    own = deltas.view(len(labels), -1, 4)[positive, labels[positive]]
    # Sums of nothing keep every head in the graph where no RoI is positive (DDP needs it).
    sums = {
        "class": F.cross_entropy(logits, labels, reduction="sum"),
        "box": F.huber_loss(own, targets[positive], reduction="sum", delta=1.0),
    }
    counts = [len(labels), own.numel()]
    if mask_logits is not None and truth is not None:
        sums["mask"] = F.binary_cross_entropy_with_logits(mask_logits, truth, reduction="sum")
        counts.append(truth.numel())
    means = batch_mean(torch.stack(list(sums.values())), torch.tensor(counts, device=logits.device))
    return dict(zip(sums, means, strict=True))


class RCNN(nn.Module):
    """A two-stage detector on a prepared canvas: Mask R-CNN, or Faster R-CNN without ``masks``.

    The defaults are [tpu]'s (paper, Section 4), but for the batch norm's constants and ``freeze_c2``, which
    the COCO recipes set.

    Args:
        backbone: name of a timm network that can be built with ``features_only``, or such a module: four
            maps c2..c5 from stride 4 on, and ``feature_info``.
        num_classes: object classes, without background.
        masks: predict masks as well as boxes.
        weights: ImageNet weights for all of the backbone that is a ResNet (Section 4.1, note 6): a file, or
            the name of a timm network with or without tag, such as "resnet50.a1_in1k", which is downloaded.
        canvas: side in pixels of the images to come; sizes the position tables of a BoTNet. Other
            sizes work too.
        fpn_channels: width of the pyramid and of the RPN's convolution.
        anchor_scale: anchor side in cells of its level.
        rpn_std: deviation that the kernel of the RPN's convolution starts with. [tpu]'s is for 256 channels
            and thousands of steps; the short recipes set the root of 2 / fan-in.
        rpn_samples: anchors an image that the RPN learns from, half of them positive where there are
            enough.
        rpn_pre_nms: best proposals per level before non-maximum suppression (IoU 0.7), in training.
        rpn_post_nms: proposals an image after it, in training.
        rpn_pre_nms_eval: as ``rpn_pre_nms``, in evaluation.
        rpn_post_nms_eval: as ``rpn_post_nms``, in evaluation.
        roi_samples: RoIs an image that the heads learn from, at most a quarter of them positive; the mask
            head sees the positive ones.
        roi_canonical_size: side in pixels of a box that is pooled from p4; half of it, from p3.
        box_channels: width of the box head's two fully connected layers.
        mask_channels: width of the mask head.
        mask_convs: its 3x3 convolutions.
        freeze_c2: keep the kernels, and the norms' gains and biases, of the stem and c2 as ``weights`` has
            them, which is [tpu]'s default; their batch statistics go on.
        score_threshold: least score of a detection.
        nms_threshold: IoU of the class-wise suppression.
        max_detections: detections an image at the most.
        bn_momentum: of every batch norm, PyTorch's sense. The paper's codebase has 0.003, which wants
            thousands of steps; the COCO recipes set it.
        bn_eps: of every batch norm; the paper's codebase has 1e-4.

    Attributes:
        num_classes: as given.
        spec: what the detector was built from, plain data that a checkpoint can hold; ``None`` where
            the backbone was passed as a module and cannot be named.

    Raises:
        ValueError: ``num_classes`` below 1, a backbone that does not give four maps from stride 4 on, or one
            whose c2 cannot be told apart to be frozen.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        masks: bool = True,
        weights: str | None = None,
        canvas: int = 1024,
        fpn_channels: int = 256,
        anchor_scale: float = 8.0,
        rpn_std: float = 0.01,
        rpn_samples: int = 256,
        rpn_pre_nms: int = 2000,
        rpn_post_nms: int = 1000,
        rpn_pre_nms_eval: int = 1000,
        rpn_post_nms_eval: int = 1000,
        roi_samples: int = 512,
        roi_canonical_size: int = 224,
        box_channels: int = 1024,
        mask_channels: int = 256,
        mask_convs: int = 4,
        freeze_c2: bool = False,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        bn_momentum: float = 0.1,
        bn_eps: float = 1e-5,
    ) -> None:
        # First of all, while the local names are the arguments and nothing else.
        # A checkpoint of the detector brings its weights along: nothing is to be fetched for it.
        spec = {
            name: value for name, value in locals().items() if name not in ("self", "__class__", "weights")
        }
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes counts the object classes without background, got {num_classes}")
        self.num_classes = num_classes
        self.spec: dict[str, Any] | None = spec if isinstance(backbone, str) else None
        self.backbone = feature_backbone(backbone, canvas) if isinstance(backbone, str) else backbone
        if weights is not None:
            load_resnet(self.backbone, weights)
        feature_info: Any = self.backbone.feature_info
        reductions = feature_info.reduction()
        if len(reductions) != 4 or reductions[0] != 4:
            raise ValueError(
                f"the backbone must give four maps from stride 4 on, but its strides are {reductions}"
            )
        self.fpn = FPN(feature_info.channels(), fpn_channels)
        strides = [*reductions, 2 * reductions[-1]]
        anchors = Anchors(strides, scale=anchor_scale)
        self.rpn = RPN(
            anchors,
            FloatRPNHead(fpn_channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=rpn_samples,
            positive_fraction=0.5,
            pre_nms_top_n={"training": rpn_pre_nms, "testing": rpn_pre_nms_eval},
            post_nms_top_n={"training": rpn_post_nms, "testing": rpn_post_nms_eval},
            nms_thresh=0.7,
        )

        self.rpn.proposal_matcher = AnchorMatcher(0.7, 0.3)
        self.rpn.fg_bg_sampler = Sampler(rpn_samples, positive_fraction=0.5)
        for module in self.rpn.head.conv.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=rpn_std)
        box_head = TwoMLPHead(fpn_channels * 7**2, box_channels)
        for layer in box_head.children():
            nn.init.xavier_uniform_(layer.weight)
        box_predictor = FastRCNNPredictor(box_channels, num_classes + 1)
        for layer, std in ((box_predictor.cls_score, 0.01), (box_predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
        mask_parts: dict[str, nn.Module] = {}
        if masks:
            mask_parts = {
                "mask_roi_pool": RoIAlign(14, strides, roi_canonical_size),
                "mask_head": MaskRCNNHeads(fpn_channels, [mask_channels] * mask_convs, dilation=1),
                "mask_predictor": MaskRCNNPredictor(
                    mask_channels if mask_convs else fpn_channels, mask_channels, num_classes + 1
                ),
            }
        self.roi_heads = RoIHeads(
            RoIAlign(7, strides, roi_canonical_size),
            box_head,
            box_predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=roi_samples,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
            **mask_parts,
        )
        self.roi_heads.fg_bg_sampler = Sampler(roi_samples, positive_fraction=0.25)
        for name, bias in [*self.rpn.named_parameters(), *self.roi_heads.named_parameters()]:
            if name.endswith("bias"):
                nn.init.zeros_(bias)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum, module.eps = bn_momentum, bn_eps
        if freeze_c2:
            c2 = feature_info.module_name()[0].replace(".", "_")  # as timm names the parts of an extractor
            names = [name for name, _ in self.backbone.named_children()]
            if c2 not in names:
                raise ValueError(f"freeze_c2: the backbone has no part {c2!r} that c2 comes from")
            for name in names[: names.index(c2) + 1]:
                self.backbone.get_submodule(name).requires_grad_(False)

    @property
    def has_masks(self) -> bool:
        """Whether the detector predicts masks (Mask R-CNN) or boxes only (Faster R-CNN)."""
        return bool(self.roi_heads.has_mask())

    def forward(
        self,
        images: Tensor,
        targets: list[dict[str, Tensor]] | None = None,
        valid: Sequence[tuple[int, int]] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: ``(B, 3, H, W)``, normalised and padded to one canvas; any H and W.
            targets: training only, one dictionary an image: ``boxes`` ``(n, 4)`` xyxy float32 canvas
                pixels, ``labels`` ``(n,)`` int64 from 1, ``masks`` ``(n, H, W)`` uint8 for Mask R-CNN.
            valid: ``(height, width)`` of each image's unpadded region; the whole canvas by default.
            seeds: training only, one an image, from which the anchors and RoIs to learn from are drawn; by
                default from torch's global generator.

        Returns:
            In training the losses ``rpn_score``, ``rpn_box``, ``class``, ``box`` and ``mask``, whose
            plain sum is to be minimised. In evaluation, an image: ``boxes`` ``(n, 4)`` in canvas pixels,
            ``scores``, ``labels`` from 1, and ``masks`` ``(n, 1, 28, 28)``, each box's own grid of
            probabilities (:func:`botnet.detection.results.to_original` brings them to the image).

        Raises:
            ValueError: training without targets, or images that are no batch of canvases.
        """
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise ValueError("images must be one batch (B, 3, H, W) of canvases")
        if self.training and targets is None:
            raise ValueError("in training mode the detector needs targets; call .eval() to detect")
        canvas = (images.shape[-2], images.shape[-1])
        sizes = [(int(h), int(w)) for h, w in valid] if valid is not None else [canvas] * len(images)
        generators = (
            [torch.Generator(images.device).manual_seed(seed) for seed in seeds]
            if seeds
            else [None] * len(images)
        )
        # torchvision's parts hand their samplers nothing but labels.
        self.rpn.fg_bg_sampler.generators = self.roi_heads.fg_bg_sampler.generators = generators
        features = self.fpn(self.backbone(images))
        given = targets if self.training else None
        proposals, rpn_losses = self.rpn(ImageList(images, sizes), features, given)
        detections, roi_losses = self.roi_heads(features, proposals, sizes, given)
        if not self.training:
            return detections
        return {
            "rpn_score": rpn_losses["loss_objectness"],
            "rpn_box": rpn_losses["loss_rpn_box_reg"],
            **roi_losses,
        }


def mask_rcnn(backbone: str | nn.Module, num_classes: int, **options: Any) -> RCNN:
    """Mask R-CNN (paper, Section 4): :class:`RCNN` with masks; ``options`` are its further arguments."""
    return RCNN(backbone, num_classes, masks=True, **options)


def faster_rcnn(backbone: str | nn.Module, num_classes: int, **options: Any) -> RCNN:
    """Faster R-CNN: :class:`RCNN` without masks; ``options`` are its further arguments."""
    return RCNN(backbone, num_classes, masks=False, **options)


def feature_backbone(name: str, canvas: int) -> nn.Module:
    """The timm network ``name`` as an extractor of c2..c5, a BoTNet's tables sized for ``canvas``."""
    ours = timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith("botnet.")
    sized: dict[str, Any] = {"img_size": canvas} if ours else {}
    return timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1), **sized)
