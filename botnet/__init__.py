"""Bottleneck Transformers for Visual Recognition (Srinivas et al., CVPR 2021), whole.

``import botnet`` makes every network of the paper known to timm::

    import botnet, timm
    model = timm.create_model("botnet50", num_classes=10, img_size=224)

The import itself is light: networks register at the moment timm is imported, and the names below are
loaded on first use, so that ``botnet --help`` and ``import botnet.layers`` stay quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from botnet.detection import faster_rcnn, mask_rcnn
    from botnet.layers import MHSA2d
    from botnet.models import bottleneck_transformer, insert_bot, insert_non_local, load_resnet

__version__ = "0.1.0"

__all__ = [
    "MHSA2d",
    "bottleneck_transformer",
    "faster_rcnn",
    "insert_bot",
    "insert_non_local",
    "load_resnet",
    "mask_rcnn",
]

_HOME = {
    "MHSA2d": "botnet.layers",
    "bottleneck_transformer": "botnet.models",
    "faster_rcnn": "botnet.detection",
    "insert_bot": "botnet.models",
    "insert_non_local": "botnet.models",
    "load_resnet": "botnet.models",
    "mask_rcnn": "botnet.detection",
}


@when_imported("timm")
def _register_networks(_timm: Any) -> None:
    importlib.import_module("botnet.models.zoo")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'botnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
