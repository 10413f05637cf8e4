"""The training losses of validation images."""

from typing import Any

import torch
from torch import Tensor

from botnet.detection.datamodule import CocoDataModule
from botnet.detection.datasets import TrainDataset
from botnet.detection.rcnn import RCNN
from botnet.detection.transforms import TrainTransform
from botnet.training.distributed import alone, sum_over_devices
from botnet.training.seeding import generator, run_seed

# The losses are computed on every eighth image: each takes another pass through the network.
EVERY = 8


class ValidationLoss:
    """The mean of the training losses over every eighth validation image.

    Each image is a batch of its own, with the targets of training, but without augmentation, and with the
    running statistics of the norms. Its anchors and RoIs are sampled on the CPU from a seed of its own: the
    losses depend neither on the batch nor on the device.

    Args:
        detector: in evaluation mode.
        data: its validation images and canvas.
    """

    def __init__(self, detector: RCNN, data: CocoDataModule) -> None:
        self.detector = detector
        whole = TrainTransform(data.canvas, jitter=(1, 1), flip=0)  # the placement of evaluation
        self._dataset = TrainDataset(data.val_instances, data.val_set.folder, whole, data.masks)
        images = data.val_instances.images
        self._chosen = {images[index].id: index for index in range(0, len(images), EVERY)}
        self.names = ["rpn_score", "rpn_box", "class", "box"] + ["mask"] * detector.has_masks
        self._sums: Tensor | None = None  # of each loss, and the number of images

    @torch.no_grad()
    def update(self, image: Tensor, image_id: int) -> None:
        """Add the losses of an image (3, canvas, canvas) if it is one of the chosen."""
        if image_id not in self._chosen:
            return
        target: Any = self._dataset.target(self._chosen[image_id])
        target |= {key: value.to(image.device) for key, value in target.items() if isinstance(value, Tensor)}
        own = torch.Generator().manual_seed(generator(run_seed(), 0, image_id).initial_seed())
        # Their own flags alone: the norms inside stay in evaluation mode.
        parts = (self.detector, self.detector.rpn, self.detector.roi_heads)
        for part in parts:
            part.training = True
        try:
            with alone():
                batch = image[None].contiguous(memory_format=torch.channels_last)
                losses = self.detector(batch, [target], [target["valid"]], [own])
        finally:
            for part in parts:
                part.training = False
        found = torch.stack([losses[name].float() for name in self.names] + [losses["class"].new_ones(())])
        self._sums = found if self._sums is None else self._sums + found

    def compute(self, device: torch.device) -> dict[str, Tensor]:
        """The mean of each loss over the chosen images of all devices, and of their sum, ``loss``."""
        sums = self._sums if self._sums is not None else torch.zeros(len(self.names) + 1, device=device)
        sums = sum_over_devices(sums)
        means = sums[:-1] / sums[-1].clamp(min=1)
        return {"loss": means.sum(), **dict(zip(self.names, means, strict=True))}
