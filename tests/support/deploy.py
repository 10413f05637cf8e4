"""A detector that finds a crowd in every picture, as a checkpoint, and pictures for it."""

from pathlib import Path

import numpy as np
import torch

from botnet.detection import RCNN
from tests.support.detector import small_detector

CANVAS = 96
CLASSES = 12


def crowd_detector() -> RCNN:
    """Every box of every class is a candidate, of which the threshold leaves more than 1,000."""
    detector = small_detector(
        num_classes=CLASSES,
        mask_channels=8,
        rpn_pre_nms_eval=400,
        rpn_post_nms_eval=300,
        score_threshold=0.005,
        max_detections=150,
    ).eval()
    predictor = detector.roi_heads.box_predictor
    with torch.no_grad():
        predictor.cls_score.weight *= 100
        predictor.bbox_pred.weight *= 100
        predictor.cls_score.bias += 0.001  # no other tensor is equal: the exporter would share them
    return detector


def write_checkpoint(path: Path, detector: RCNN) -> Path:
    """A checkpoint as a run leaves it."""
    about = {
        "detector": detector.spec,
        "class_names": [f"class {i}" for i in range(detector.num_classes)],
        "category_ids": list(range(0, 3 * detector.num_classes, 3)),
        "canvas": CANVAS,
    }
    weights = {f"detector.{name}": tensor for name, tensor in detector.state_dict().items()}
    torch.save({"botnet": about, "state_dict": weights}, path)
    return path


def noise(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Pictures (h, w, 3) uint8 of random pixels, of these heights and widths."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
