"""Bottleneck Transformers for Visual Recognition (Srinivas et al., CVPR 2021) in PyTorch.

``import botnet`` registers every network of the paper with timm::

    import botnet, timm
    model = timm.create_model("botnet50", num_classes=10, img_size=224)

The import is light: the networks are registered when timm is imported, and the names below are imported on
first use. ``botnet --help`` and ``import botnet.layers`` stay fast.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from botnet.lazy import lazy

if TYPE_CHECKING:
    from botnet.detection import faster_rcnn, mask_rcnn
    from botnet.detection.results import to_coco
    from botnet.explorer.explore import explore
    from botnet.layers import MHSA2d
    from botnet.loading import load
    from botnet.models import bottleneck_transformer, insert_bot, insert_non_local, load_resnet
    from botnet.visualize.detections import draw

__version__ = "0.2.0"

__all__ = [
    "MHSA2d",
    "bottleneck_transformer",
    "draw",
    "explore",
    "faster_rcnn",
    "insert_bot",
    "insert_non_local",
    "load",
    "load_resnet",
    "mask_rcnn",
    "to_coco",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "MHSA2d": "botnet.layers",
        "bottleneck_transformer": "botnet.models",
        "draw": "botnet.visualize.detections",
        "explore": "botnet.explorer.explore",
        "faster_rcnn": "botnet.detection",
        "insert_bot": "botnet.models",
        "insert_non_local": "botnet.models",
        "load": "botnet.loading",
        "load_resnet": "botnet.models",
        "mask_rcnn": "botnet.detection",
        "to_coco": "botnet.detection.results",
    },
)


# supervision warns on import without OpenCV, which nothing here needs of it.
warnings.filterwarnings("ignore", "OpenCV .* is not installed", UserWarning)


@when_imported("timm")
def _register_networks(_timm: Any) -> None:
    importlib.import_module("botnet.models.zoo")
