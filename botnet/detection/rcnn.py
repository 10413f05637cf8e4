"""Faster and Mask R-CNN on any timm backbone (paper, Section 4; numbers of the authors' TPU codebase).

The parts are torchvision's. Written here is what differs: batch norm on the outputs of the FPN, p6 by a
strided convolution, anchors at the centres of their cells and their matching, pooling from p6 too, the
sampling, the losses, and a detector that takes a prepared canvas: images are never resized a second time.

``[tpu]`` in the comments is tensorflow/tpu ``models/official/detection``, the codebase of the paper.
docs/fidelity.md lists every setting, its source and where it stands.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Annotated, Any

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.detection.image_list import ImageList

from botnet.arguments import Count, Layers, Part, PositiveFactor, PositivePart, Range, Side, Width, checked
from botnet.detection.fpn import FPN
from botnet.detection.inputs import (
    check_images,
    check_statistics,
    check_targets,
    check_values,
    image_sizes,
    input_channels,
)
from botnet.detection.roi_heads import RoIHeads, build_box_branch, build_mask_branch
from botnet.detection.rpn import build_rpn
from botnet.detection.sampler import Sampler
from botnet.errors import ConfigError
from botnet.models.weights import load_resnet
from botnet.models.zoo import NetworkName

# A quarter of the RoIs at most is positive: of fewer than four, none would be.
Samples = Annotated[int, Range(int, 4)]
STAGED = "resnet50, convnext_tiny or swin_tiny_patch4_window7_224"  # for messages


class RCNN(nn.Module):
    """A two-stage detector on a prepared canvas: Mask R-CNN, or Faster R-CNN without ``masks``.

    The defaults are [tpu]'s (paper, Section 4), except the batch norm's constants and ``freeze_c2``, which
    the COCO recipes set.

    Args:
        backbone: name of a timm network that can be built with ``features_only``, or such a module: four
            maps c2..c5 from stride 4 on, and ``feature_info``.
        num_classes: object classes, without background.
        masks: predict masks as well as boxes.
        weights: of the backbone; a ResNet's fill a BoTNet but for its attention (Section 4.1, note 6), a
            BoTNet's all of it. A file, or the name of a timm network with or without tag, such as
            "resnet50.a1_in1k", which is downloaded.
        canvas: side in pixels of the images; sizes the position tables of a BoTNet. Other
            sizes work too.
        fpn_channels: width of the pyramid and of the RPN's convolution.
        anchor_scale: anchor side in cells of its level.
        rpn_std: standard deviation of the initial kernel of the RPN's convolution. [tpu]'s suits 256 channels
            and thousands of steps; the short recipes set the square root of 2 / fan-in.
        rpn_samples: anchors per image that the RPN trains on, half of them positive where there are enough.
        rpn_pre_nms: best proposals per level before non-maximum suppression (IoU 0.7), in training.
        rpn_post_nms: proposals per image after it, in training.
        rpn_pre_nms_eval: as ``rpn_pre_nms``, in evaluation.
        rpn_post_nms_eval: as ``rpn_post_nms``, in evaluation.
        roi_samples: RoIs per image that the heads train on, at most a quarter of them positive; the mask head
            trains on the positive ones.
        roi_canonical_size: side in pixels of a box that is pooled from p4; half of it, from p3.
        box_channels: width of the box head's two fully connected layers.
        mask_channels: width of the mask head.
        mask_convs: its 3x3 convolutions.
        freeze_c2: keep the kernels, and the norms' gains and biases, of the stem and c2 as ``weights`` has
            them, which is [tpu]'s default; the norms' running statistics are still updated.
        score_threshold: minimum score of a detection.
        nms_threshold: IoU of the class-wise suppression.
        max_detections: maximum number of detections per image.
        bn_momentum: of every batch norm, as PyTorch defines it. The paper's codebase has 0.003, which needs
            thousands of steps; the COCO recipes set it.
        bn_eps: of every batch norm; the paper's codebase has 1e-4.

    Attributes:
        num_classes: as given.
        spec: what the detector was built from, plain data that a checkpoint can hold; ``None`` where
            the backbone was passed as a module and cannot be named.

    Raises:
        ConfigError: a number out of its range, a backbone that timm does not know or that does not give four
            maps from stride 4 on, or one whose c2 cannot be found to be frozen.
    """

    @checked
    def __init__(
        self,
        backbone: NetworkName | nn.Module,
        num_classes: Count,
        *,
        masks: bool = True,
        weights: str | None = None,
        canvas: Side = 1024,
        fpn_channels: Width = 256,
        anchor_scale: PositiveFactor = 8.0,
        rpn_std: PositivePart = 0.01,
        rpn_samples: Samples = 256,
        rpn_pre_nms: Count = 2000,
        rpn_post_nms: Count = 1000,
        rpn_pre_nms_eval: Count = 1000,
        rpn_post_nms_eval: Count = 1000,
        roi_samples: Samples = 512,
        roi_canonical_size: Side = 224,
        box_channels: Width = 1024,
        mask_channels: Width = 256,
        mask_convs: Layers = 4,
        freeze_c2: bool = False,
        score_threshold: Part = 0.05,
        nms_threshold: Part = 0.5,
        max_detections: Count = 100,
        bn_momentum: PositivePart = 0.1,
        bn_eps: PositivePart = 1e-5,
    ) -> None:
        # locals() holds the arguments and nothing else only here, before the first assignment. A checkpoint
        # of the detector has its weights, so none need to be fetched for it.
        spec = {
            name: value for name, value in locals().items() if name not in ("self", "__class__", "weights")
        }
        super().__init__()
        self.num_classes = num_classes
        self.spec: dict[str, Any] | None = spec if isinstance(backbone, str) else None
        self.backbone = feature_backbone(backbone, canvas) if isinstance(backbone, str) else backbone
        if weights is not None:
            load_resnet(self.backbone, weights)
        self.in_channels = input_channels(self.backbone)
        channels, strides = feature_maps(self.backbone, backbone if isinstance(backbone, str) else None)
        self.fpn = FPN(channels, fpn_channels)
        self.rpn = build_rpn(
            fpn_channels,
            strides,
            anchor_scale=anchor_scale,
            std=rpn_std,
            samples=rpn_samples,
            pre_nms={"training": rpn_pre_nms, "testing": rpn_pre_nms_eval},
            post_nms={"training": rpn_post_nms, "testing": rpn_post_nms_eval},
        )
        box_branch = build_box_branch(fpn_channels, box_channels, num_classes, strides, roi_canonical_size)
        mask_branch = (
            build_mask_branch(
                fpn_channels, mask_channels, mask_convs, num_classes, strides, roi_canonical_size
            )
            if masks
            else {}
        )
        self.roi_heads = RoIHeads(
            **box_branch,
            **mask_branch,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=roi_samples,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
        )
        self.roi_heads.fg_bg_sampler = Sampler(roi_samples, positive_fraction=0.25)
        for part in (self.rpn, self.roi_heads):
            zero_biases(part)
        set_batch_norms(self, bn_momentum, bn_eps)
        if freeze_c2:
            freeze_through_c2(self.backbone)

    @property
    def has_masks(self) -> bool:
        """Whether the detector predicts masks (Mask R-CNN) or boxes only (Faster R-CNN)."""
        return bool(self.roi_heads.has_mask())

    def forward(
        self,
        images: Tensor,
        targets: list[dict[str, Tensor]] | None = None,
        valid: Sequence[tuple[int, int]] | None = None,
        seeds: Sequence[int | torch.Generator] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: ``(B, 3, H, W)``, normalised and padded to one canvas; any H and W.
            targets: training only, one dictionary per image: ``boxes`` ``(n, 4)`` xyxy float32 canvas
                pixels, ``labels`` ``(n,)`` int64 from 1, ``masks`` ``(n, H, W)`` uint8 for Mask R-CNN.
            valid: ``(height, width)`` of each image's unpadded region; the whole canvas by default.
            seeds: training only, one per image: seeds of the sampling of anchors and RoIs, or generators; by
                default torch's global generator is used.

        Returns:
            In training the losses ``rpn_score``, ``rpn_box``, ``class``, ``box`` and ``mask``, whose
            plain sum is to be minimised. In evaluation, per image: ``boxes`` ``(n, 4)`` in canvas pixels,
            ``scores``, ``labels`` from 1, and ``masks`` ``(n, 1, 28, 28)``, each box's own grid of
            probabilities (:func:`botnet.detection.postprocess.to_original` brings them to the image).

        Raises:
            ValueError: training without targets; images, targets, sizes or seeds that cannot be used, with
                the image and the object; or a single image in training whose p6 is a single cell. While the
                detector is traced, values are not checked.
        """
        check_images(images, self.in_channels)
        sizes = image_sizes(valid, images)
        given = self._training_targets(images, targets)
        if seeds and len(seeds) != len(images):
            raise ValueError(f"{len(seeds)} seeds for {len(images)} images; give one per image")
        check_values(images, given, self.num_classes)
        generators = (
            [
                seed
                if isinstance(seed, torch.Generator)
                else torch.Generator(images.device).manual_seed(seed)
                for seed in seeds
            ]
            if seeds
            else [None] * len(images)
        )
        # torchvision's parts pass nothing but labels to their samplers.
        self.rpn.fg_bg_sampler.generators = self.roi_heads.fg_bg_sampler.generators = generators
        features = self.pyramid(images)
        proposals, rpn_losses = self.rpn(ImageList(images, sizes), features, given)
        detections, roi_losses = self.roi_heads(features, proposals, sizes, given)
        if not self.training:
            return detections
        return {
            "rpn_score": rpn_losses["loss_objectness"],
            "rpn_box": rpn_losses["loss_rpn_box_reg"],
            **roi_losses,
        }

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        """p2..p6 of images ``(B, 3, H, W)``."""
        maps = self.backbone(images)
        if getattr(self.backbone, "output_fmt", None) == "NHWC":  # timm's extractors of Swin, for one
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        found: dict[str, Tensor] = self.fpn(maps)
        return found

    def _training_targets(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None
    ) -> list[dict[str, Tensor]] | None:
        """The targets, their form checked; None in evaluation."""
        if not self.training:
            return None
        if targets is None:
            raise ValueError("in training mode the detector needs targets; call .eval() to detect")
        check_targets(targets, images, self.has_masks)
        check_statistics(images, self.rpn.anchor_generator.strides[-1], self.fpn.norms[-1])
        return targets


def mask_rcnn(backbone: str | nn.Module, num_classes: int, **options: Any) -> RCNN:
    """Mask R-CNN (paper, Section 4): :class:`RCNN` with masks; ``options`` are its further arguments."""
    return RCNN(backbone, num_classes, masks=True, **options)


def faster_rcnn(backbone: str | nn.Module, num_classes: int, **options: Any) -> RCNN:
    """Faster R-CNN: :class:`RCNN` without masks; ``options`` are its further arguments."""
    return RCNN(backbone, num_classes, masks=False, **options)


def feature_backbone(name: str, canvas: int) -> nn.Module:
    """The timm network ``name`` as an extractor of c2..c5, with attention that is sized for ``canvas``.

    Raises:
        ConfigError: timm cannot make four maps of it.
    """
    ours = timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith("botnet.")
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    fixed = config is not None and config.fixed_input_size
    sized: dict[str, Any] = {"img_size": canvas} if ours or fixed else {}
    try:
        backbone = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1), **sized)
    except (AssertionError, RuntimeError, TypeError, ValueError, IndexError) as error:  # timm's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"backbone: {name} cannot be made to give four maps on a canvas of {canvas} ({reason}); take a "
            f"network with stages, such as {STAGED}"
        ) from error
    if not ours:
        _check_canvas(backbone, name, canvas)
    return backbone


def _check_canvas(backbone: nn.Module, name: str, canvas: int) -> None:
    """Refuse a network whose attention does not take images of this size.

    Shapes alone are computed, and numbers only where that fails: it may be for another reason.

    Raises:
        ConfigError: with a size that the network takes.
    """
    tensors = dict(backbone.named_parameters()) | dict(backbone.named_buffers())
    shapes = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
    try:
        with torch.no_grad():
            functional_call(backbone, shapes, (torch.empty(1, 3, canvas, canvas, device="meta"),))
        return
    except (AssertionError, RuntimeError, ValueError):
        pass
    backbone.eval()
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, 3, canvas, canvas))
    except (AssertionError, RuntimeError, ValueError) as error:
        own: Any = backbone.pretrained_cfg
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"backbone: {name} does not take a canvas of {canvas} pixels ({reason}); it takes one of "
            f"{own['input_size'][-1]}, and networks such as {STAGED} take any"
        ) from error
    backbone.train()


def feature_maps(backbone: nn.Module, name: str | None = None) -> tuple[list[int], list[int]]:
    """Widths of c2..c5, and strides of p2..p6.

    Args:
        backbone: an extractor of timm.
        name: of its network, for the message.

    Raises:
        ConfigError: the backbone does not give four maps from stride 4 on.
    """
    feature_info: Any = backbone.feature_info
    strides: list[int] = feature_info.reduction()
    if len(strides) != 4 or strides[0] != 4:
        raise ConfigError(
            f"backbone: {name or type(backbone).__name__} gives maps of strides {strides}; a detector needs "
            f"four maps, the first of stride 4: take a network with stages, such as {STAGED}"
        )
    return feature_info.channels(), [*strides, 2 * strides[-1]]


def zero_biases(module: nn.Module) -> None:
    """Set every bias to zero."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)


def set_batch_norms(module: nn.Module, momentum: float, eps: float) -> None:
    """Set the constants of every batch norm."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum, norm.eps = momentum, eps


def stage_names(backbone: nn.Module, number: int, option: str) -> list[str]:
    """Names of the parts of a timm extractor that give c2 and the maps after it.

    Raises:
        ConfigError: the backbone has no such part, for which the option is named.
    """
    feature_info: Any = backbone.feature_info
    # As timm names the parts of an extractor.
    names = [name.replace(".", "_") for name in feature_info.module_name()[:number]]
    parts = dict(backbone.named_children())
    for level, name in enumerate(names, 2):
        if name not in parts:
            raise ConfigError(f"{option}: the backbone has no part {name!r} that c{level} comes from")
    return names


def freeze_through_c2(backbone: nn.Module) -> None:
    """Freeze the parameters of all parts of a timm extractor up to the one that gives c2.

    Raises:
        ConfigError: no part of the backbone is known to give c2.
    """
    c2 = stage_names(backbone, 1, "freeze_c2")[0]
    names = [name for name, _ in backbone.named_children()]
    for name in names[: names.index(c2) + 1]:
        backbone.get_submodule(name).requires_grad_(False)


def checkpoint_activations(backbone: nn.Module) -> None:
    """Let c2, c3 and c4 of a timm extractor be computed again in the backward pass, where they are not yet.

    What they compute for it is not kept, and the names of the parameters in checkpoints stay.

    Raises:
        ConfigError: the backbone is not known to have such parts.
    """
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        CheckpointWrapper,
        checkpoint_wrapper,
    )

    for name in stage_names(backbone, 3, "activation_checkpointing"):
        stage = backbone.get_submodule(name)
        if not isinstance(stage, CheckpointWrapper):
            wrapped = checkpoint_wrapper(stage, context_fn=partial(_contexts, stage))
            wrapped.grad_checkpointing = True  # type: ignore[assignment]  # as timm marks it
            setattr(backbone, name, wrapped)


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Those in which a stage is computed, and computed again."""
    return nullcontext(), _without_statistics(stage)


@contextmanager
def _without_statistics(stage: nn.Module) -> Iterator[None]:
    """Batch norms do not update their running statistics a second time.

    They still take part: what autograd keeps must be the same both times.
    """
    norms = [norm for norm in stage.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
