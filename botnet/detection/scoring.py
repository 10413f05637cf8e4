"""Pasting, encoding, scoring and drawing while the network computes the next batch of a validation."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from botnet.detection.datasets import EvalTarget
from botnet.detection.metric import CocoMetric, truth_of
from botnet.detection.postprocess import to_original
from botnet.detection.results import ResultRecord, to_coco, true_detections
from botnet.visualize.detections import beside_truth, draw

WAITING = 16  # images at most, of 0.3 MB each: the masks of 100 detections as the network gives them
PICTURE_SCORE = 0.5  # lowest score of a detection that is drawn


class BackgroundScoring:
    """Brings detections to original pixels and scores them, one image after the other, on a thread.

    NumPy and hotcoco leave Python to other threads for most of the time. A second thread would gain nothing.

    Args:
        metric: to which the images are added.
        first, every: place of this device's first image in the data set, and from one to the next.

    Attributes:
        results: records of each image, in order.
        sheets: image id and drawing, ground truth beside prediction, of each image with a picture.
    """

    def __init__(self, metric: CocoMetric, first: int = 0, every: int = 1) -> None:
        self.metric = metric
        self.results: list[list[ResultRecord]] = []
        self.sheets: list[tuple[int, Any]] = []
        self._place, self._every = first, every
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._waiting: deque[Future[None]] = deque()

    def add(
        self, detection: Mapping[str, np.ndarray], target: EvalTarget, picture: Tensor | None = None
    ) -> None:
        """Add an image; waits only where ``WAITING`` others do already.

        Args:
            detection: of :func:`botnet.detection.postprocess.as_arrays`.
            target: of the image.
            picture: (3, H, W) uint8 in its original size, if it is to be drawn.

        Raises:
            Exception: whatever was raised for an earlier image.
        """
        self._waiting.append(self._thread.submit(self._score, detection, target, picture))
        while len(self._waiting) > WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait for all images.

        Raises:
            Exception: whatever was raised for one of them.
        """
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def _score(self, detection: Mapping[str, np.ndarray], target: EvalTarget, picture: Tensor | None) -> None:
        names, ids = self.metric.class_names, self.metric.category_ids
        found = to_original(detection, target["scale"], target["size"], names, ids)
        truth, records = truth_of(target), to_coco(found, target["image_id"])
        self.metric.update(records, truth, self._place)
        self._place += self._every
        self.results.append(records)
        if picture is not None:
            there = true_detections(truth, names, target["size"])
            left, right = draw(picture, there), draw(picture, found, PICTURE_SCORE)
            self.sheets.append((target["image_id"], beside_truth(left, right, PICTURE_SCORE)))
