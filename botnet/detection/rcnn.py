"""Faster and Mask R-CNN on any timm backbone (paper, Section 4; numbers of the authors' TPU codebase).

The parts are torchvision's. What is written here is what differs from torchvision: batch norm on the
outputs of the FPN, p6 by a strided convolution, anchors at the centres of their cells and how objects claim
them, pooling from p6 too, the random choices, the losses, and that the detector takes a prepared canvas:
images are never resized a second time.

``[tpu]`` in the comments is tensorflow/tpu ``models/official/detection``, the codebase of the paper.
docs/fidelity.md lists every setting, its source and where it stands.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from botnet.detection.fpn import FPN
from botnet.detection.roi_heads import RoIAlign, RoIHeads
from botnet.detection.rpn import RPN, AnchorMatcher, Anchors, FloatRPNHead
from botnet.detection.sampler import Sampler
from botnet.models.weights import load_resnet


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
            probabilities (:func:`botnet.detection.postprocess.to_original` brings them to the image).

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
