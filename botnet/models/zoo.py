"""Every network of the paper, one row each, registered with timm.

    timm.create_model("botnet50", img_size=1024, features_only=True, out_indices=(1, 2, 3, 4))

The baselines of the paper are timm's own resnet50, resnet101, resnet152 and resnet200.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet

from botnet.models.surgery import bottleneck_transformer


@dataclass(frozen=True)
class Network:
    """What a name stands for: a ResNet's shape, and where it attends.

    Args:
        blocks: blocks in c2, c3, c4, c5.
        img_size: side in pixels of the images it is meant for; the position tables fit it.
        widths: channels of the 3x3 in c2 ... c5; a block's output is four times as wide.
        stem_width: None for the 7x7 stem of 64 channels; else three 3x3 ending in twice this width.
    """

    blocks: tuple[int, int, int, int]
    img_size: int = 224
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem_width: int | None = None


NETWORKS = {
    "botnet_tiny": Network((1, 2, 2, 3), img_size=160, widths=(32, 48, 96, 192), stem_width=16),
    "botnet26": Network((2, 2, 2, 2)),
    "botnet50": Network((3, 4, 6, 3)),
}


class BoTNet(ResNet):
    """A timm ResNet with attention blocks; everything that is not attention is timm's.

    Args:
        network: the row of the table to build.
        img_size: side, or height and width, in pixels, that the position tables are made for; any
            other size can be given to the network at any time. Default the row's own.
        resnet: timm's arguments of `ResNet`: num_classes, in_chans, output_stride, drop_path_rate, ...
    """

    def __init__(
        self, network: Network, img_size: int | tuple[int, int] | None = None, **resnet: Any
    ) -> None:
        stem = {} if network.stem_width is None else {"stem_width": network.stem_width, "stem_type": "deep"}
        block: Any = Bottleneck  # timm annotates an instance where it takes the class
        super().__init__(block, network.blocks, channels=network.widths, **{**stem, **resnet})
        bottleneck_transformer(self, img_size=img_size or network.img_size)


def _register(name: str, network: Network) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        return build_model_with_cfg(partial(BoTNet, network), name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    register_model(create)


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, network.img_size, network.img_size),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "conv1" if network.stem_width is None else "conv1.0",
            "classifier": "fc",
            "license": "apache-2.0",
            "paper_ids": "arXiv:2101.11605",
        }
        for name, network in NETWORKS.items()
    }
)

for _name, _network in NETWORKS.items():
    _register(_name, _network)
