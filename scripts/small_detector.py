"""A detector that trains in seconds, for proofs that run it many times; the tests have it, too."""

from typing import Any

DETECTOR: dict[str, Any] = {
    "backbone": "botnet_tiny",
    "fpn_channels": 16,
    "anchor_scale": 4,
    "rpn_samples": 32,
    "rpn_pre_nms": 50,
    "rpn_post_nms": 30,
    "rpn_pre_nms_eval": 50,
    "rpn_post_nms_eval": 30,
    "roi_samples": 16,
    "box_channels": 32,
    "mask_channels": 16,
    "mask_convs": 1,
}
