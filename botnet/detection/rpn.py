"""Region proposals: anchors, matching and losses."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from botnet.detection.sampler import Sampler
from botnet.training.distributed import batch_mean


class Anchors(nn.Module):
    """Anchor boxes centred on the cells of each pyramid level, in float32 whatever the features are.

    torchvision's generator puts anchors on the cells' corners, takes the features' dtype (bfloat16 cannot
    represent every integer above 256) and derives strides from sizes, which fails where a canvas
    is not a multiple of 64.

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
        """Anchors per cell of each level."""
        return [len(self.ratios)] * len(self.strides)

    def forward(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        """Each image's anchors, all levels together: (anchors, 4) xyxy in canvas pixels."""
        device = images.tensors.device
        # Filled on the device: a tensor of Python's numbers would be copied there, for which the host waits.
        ratios = torch.stack([torch.full((), ratio, device=device) for ratio in self.ratios])
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
    """torchvision's head with float32 outputs under autocast: boxes are decoded from them."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits and box deltas of each level."""
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class AnchorMatcher(Matcher):
    """An anchor is positive from IoU 0.7 on, and where it is an object's best ([tpu] ``ArgMaxMatcher``).

    An object has one best anchor, the first among equals. torchvision takes all of them: a small object lies
    inside dozens of anchors that overlap it equally.
    """

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """The object of each anchor (objects, anchors) -> (anchors,), or a negative number."""
        matches: Tensor = super().__call__(match_quality_matrix)
        best = match_quality_matrix.argmax(1)
        objects = torch.arange(len(best), device=best.device)
        # Of objects that share a best anchor, the first gets it.
        owner = torch.full_like(matches, len(best)).scatter_reduce_(0, best, objects, "amin")
        return torch.where(owner < len(best), owner, matches)


class RPN(RegionProposalNetwork):
    """torchvision's region proposals with the losses of [tpu] ``RpnScoreLoss`` and ``RpnBoxLoss``."""

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's; also keeps the levels' sizes for the loss."""
        # torchvision passes no level sizes to the loss; its forward always calls this first.
        self.level_sizes = num_anchors_per_level
        return super().filter_proposals(proposals, objectness, image_shapes, num_anchors_per_level)

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The score loss and the box loss.

        Score: cross entropy over the sampled anchors, divided by the number that the images should have.
        Box: Huber (delta 1/9) over all positive anchors, sampled or not; mean over each level's coordinates,
        summed over the levels.
        """
        positive, negative = (torch.stack(masks) for masks in self.fg_bg_sampler(labels))
        sampled = positive | negative
        target = torch.stack(labels)
        objectness = objectness.view_as(target)
        # Masked, not indexed: to find the chosen ones, the host would wait for the device.
        scores = F.binary_cross_entropy_with_logits(objectness, target, reduction="none")
        score_loss = scores.where(sampled, 0).sum() / (self.fg_bg_sampler.batch_size_per_image * len(labels))
        deltas = pred_bbox_deltas.view(*target.shape, 4)
        errors = F.huber_loss(deltas, torch.stack(regression_targets), reduction="none", delta=1 / 9)
        sums, counts = [], []
        levels = (errors.split(self.level_sizes, dim=1), target.split(self.level_sizes, dim=1))
        for level_errors, level_target in zip(*levels, strict=True):
            chosen = level_target == 1
            sums.append(level_errors.where(chosen[..., None], 0).sum())
            counts.append(4 * chosen.sum())
        return score_loss, batch_mean(torch.stack(sums), torch.stack(counts)).sum()


def build_rpn(
    channels: int,
    strides: Sequence[int],
    *,
    anchor_scale: float,
    std: float,
    samples: int,
    pre_nms: dict[str, int],
    post_nms: dict[str, int],
) -> RPN:
    """The region proposals of the paper's codebase; :class:`botnet.detection.rcnn.RCNN` has the arguments."""
    anchors = Anchors(strides, scale=anchor_scale)
    rpn = RPN(
        anchors,
        FloatRPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=samples,
        positive_fraction=0.5,
        pre_nms_top_n=pre_nms,
        post_nms_top_n=post_nms,
        nms_thresh=0.7,
    )
    rpn.proposal_matcher = AnchorMatcher(0.7, 0.3)
    rpn.fg_bg_sampler = Sampler(samples, positive_fraction=0.5)
    for module in rpn.head.conv.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=std)
    return rpn
