"""Networks as graphs of fixed outputs: pixels in, normalisation inside, no loop over images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from botnet.deploy.operators import pool_boxes, suppress
from botnet.detection import RCNN
from botnet.detection.roi_heads import RoIAlign


class Normalise(nn.Module):
    """Pixels ``(B, 3, H, W)`` from 0 to 255 as a network takes them.

    Args:
        mean, std: of each channel of images from 0 to 1.
        dtype: of the result.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
        super().__init__()
        deviation = torch.tensor(std)[:, None, None]
        self.register_buffer("scale", 1 / (255 * deviation))
        self.register_buffer("shift", torch.tensor(mean)[:, None, None] / deviation)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """The images, normalised."""
        return (images.float() * self.scale - self.shift).to(self.dtype)


class ClassifierGraph(nn.Module):
    """A classifier on pixels.

    Args:
        network: in evaluation mode.
        mean, std: as in :class:`Normalise`.
        half: compute in float16. Changes the network.
    """

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], half: bool = False
    ) -> None:
        super().__init__()
        dtype = torch.float16 if half else torch.float32
        self.normalise = Normalise(mean, std, dtype)
        self.network = network.to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities ``(B, classes)`` of images ``(B, 3, H, W)`` uint8."""
        return self.network(self.normalise(images)).float().softmax(-1)


class DetectorGraph(nn.Module):
    """Mask or Faster R-CNN on pixels, for all images of a batch at once.

    Where the eager detector leaves a box out, this one gives it the score -1, until the detections are
    counted: they alone have as many rows as there are, so that the mask head works for them only.

    Args:
        detector: in evaluation mode.
        size: height and width of the canvas in pixels.
        mean, std: as in :class:`Normalise`.
        half: compute in float16 all but the boxes, their scores and the pooling. Changes the detector.
    """

    anchors: Tensor

    def __init__(
        self,
        detector: RCNN,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        half: bool = False,
    ) -> None:
        super().__init__()
        with torch.no_grad():
            blank = torch.zeros(1, 3, *size)
            levels = list(detector.pyramid(blank).values())
        self.cells = [level.shape[-2] * level.shape[-1] for level in levels]
        (anchors,) = detector.rpn.anchor_generator(ImageList(blank, [size]), levels)
        self.register_buffer("anchors", anchors)
        dtype = torch.float16 if half else torch.float32
        self.normalise = Normalise(mean, std, dtype)
        self.detector = detector.to(dtype)

    def forward(self, images: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """Detections of all images, one image after the other, the best of an image first.

        Args:
            images: ``(B, 3, H, W)`` uint8 RGB.
            valid: ``(B, 2)`` int64, height and width of each image's unpadded region. What the images hold
                outside of it does not matter.

        Returns:
            ``counts`` ``(B,)`` of each image's detections, ``boxes`` ``(D, 4)`` in canvas pixels, ``scores``
            ``(D,)``, ``labels`` ``(D,)`` from 1, and for Mask R-CNN ``masks`` ``(D, 28, 28)``.
        """
        detector = self.detector
        pixels = self.normalise(images)
        rows = torch.arange(images.shape[2])[:, None] < valid[:, 0, None, None]
        columns = torch.arange(images.shape[3]) < valid[:, 1, None, None]
        pixels = pixels * (rows & columns)[:, None].to(pixels.dtype)  # padded after it is normalised
        features = list(detector.pyramid(pixels).values())
        limits = valid.flip(1).repeat(1, 2).float()[:, None]  # B, 1, 4: the largest x, y, x, y
        proposals, real = self._proposals(features, limits)
        features = [level.float() for level in features]
        counts, image, boxes, scores, labels = self._detections(features, proposals, real, limits)
        if not detector.has_masks:
            return counts, boxes, scores, labels
        return counts, boxes, scores, labels, self._masks(features, image, boxes, labels)

    def _proposals(self, features: list[Tensor], limits: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, K, 4), and which of them there are (B, K)."""
        rpn = self.detector.rpn
        per_cell = rpn.anchor_generator.num_anchors_per_location()
        anchors = self.anchors.split([n * count for n, count in zip(self.cells, per_cell, strict=True)])
        all_boxes, all_scores = [], []
        for logits, deltas, of_level in zip(*rpn.head(features), anchors, strict=True):
            logits = logits.permute(0, 2, 3, 1).flatten(1)  # B, N
            deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # B, N, 4
            best, index = logits.topk(min(logits.shape[1], rpn.pre_nms_top_n()))
            deltas = rows_of(deltas, index)
            boxes = rpn.box_coder.decode_single(deltas.flatten(0, 1), of_level[index].flatten(0, 1))
            boxes = clip(boxes.view_as(deltas), limits)
            scores = torch.where(large(boxes, rpn.min_size), best.sigmoid(), -1.0)
            all_boxes.append(boxes)
            all_scores.append(suppress(boxes, scores, rpn.nms_thresh, rpn.post_nms_top_n()))
        scores = torch.cat(all_scores, 1)
        best, index = scores.topk(min(scores.shape[1], rpn.post_nms_top_n()))
        return rows_of(torch.cat(all_boxes, 1), index), best >= 0

    def _detections(
        self, features: list[Tensor], proposals: Tensor, real: Tensor, limits: Tensor
    ) -> tuple[Tensor, ...]:
        """Counts (B,); and of each detection its image, box, score and label."""
        heads = self.detector.roi_heads
        batch, per_image = real.shape
        image = torch.arange(batch)[:, None].expand(batch, per_image).flatten()
        proposals = proposals.flatten(0, 1)
        pooled, order = pool(heads.box_roi_pool, features, image, proposals)
        logits, deltas = heads.box_predictor(heads.box_head(pooled.to(self.normalise.dtype)))
        probabilities = in_order(logits.float(), order).softmax(-1)[:, 1:]
        boxes = heads.box_coder.decode_single(in_order(deltas.float(), order), proposals)
        # One row for each class of each image: they do not suppress one another.
        boxes = boxes.view(batch, per_image, -1, 4)[:, :, 1:].transpose(1, 2).flatten(1, 2)  # B, C * K, 4
        boxes = clip(boxes, limits)
        scores = probabilities.view(batch, per_image, -1).transpose(1, 2)
        shown = (scores > heads.score_thresh) & real[:, None]
        scores = torch.where(shown.flatten(1) & large(boxes, 1e-2), scores.flatten(1), -1.0)
        of_class = boxes.view(-1, per_image, 4), scores.view(-1, per_image)
        most = heads.detections_per_img
        kept = suppress(*of_class, heads.nms_thresh, most).view_as(scores)
        best, index = kept.topk(min(kept.shape[1], most))
        image, rank = torch.nonzero(best >= 0, as_tuple=True)
        index = index[image, rank]
        return (
            (best >= 0).sum(1),
            image,
            boxes[image, index],
            best[image, rank],
            index.div(per_image, rounding_mode="floor") + 1,
        )

    def _masks(self, features: list[Tensor], image: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """The mask (D, 28, 28) of each box's own class."""
        heads = self.detector.roi_heads
        pooled, order = pool(heads.mask_roi_pool, features, image, boxes)
        predictor, own = heads.mask_predictor, labels[order]
        hidden = heads.mask_head(pooled.to(self.normalise.dtype))
        hidden = predictor.relu(predictor.conv5_mask(hidden))
        last = predictor.mask_fcn_logits
        logits = torch.bmm(last.weight.flatten(1)[own, None], hidden.flatten(2)).float()  # D, 1, 28 * 28
        masks = (logits + last.bias[own, None, None].float()).sigmoid().view(-1, *hidden.shape[2:])
        return in_order(masks, order)


def pool(pooler: RoIAlign, features: list[Tensor], image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """What ``pooler`` takes from the pyramid for boxes (R, 4) of images (R,), as :func:`pool_boxes` does."""
    mapper = pooler.map_levels
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    # Its formula without the logarithm, whose rounding differs between runtimes.
    steps = range(mapper.k_min + 1, mapper.k_max + 1)
    least = torch.tensor([mapper.s0 * 2 ** (step - mapper.lvl0 - mapper.eps) for step in steps])
    levels = (side[:, None] >= least).sum(1)
    rois = torch.cat([image[:, None].to(boxes.dtype), boxes], 1)
    return pool_boxes(features, rois, levels, pooler.scales, pooler.output_size[0])


def in_order(rows: Tensor, order: Tensor) -> Tensor:
    """Rows computed in another order, each brought to its place."""
    return torch.zeros_like(rows).index_copy(0, order, rows)


def rows_of(values: Tensor, index: Tensor) -> Tensor:
    """Of values (B, N, 4), those at ``index`` (B, K)."""
    return values.gather(1, index[..., None].expand(-1, -1, 4))


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes inside of the unpadded region."""
    return torch.minimum(boxes.clamp(min=0), limits)


def large(boxes: Tensor, side: float) -> Tensor:
    """Which boxes have at least this width and height."""
    return (boxes[..., 2:] - boxes[..., :2] >= side).all(-1)
