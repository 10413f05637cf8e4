"""The networks of the paper, one row of a table each, registered with timm.

    timm.create_model("botnet50", img_size=1024, features_only=True, out_indices=(1, 2, 3, 4))

The plain baselines are timm's own resnet50, resnet101, resnet152 and resnet200.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SEModule
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_notrace_module
from timm.models.resnet import Bottleneck, ResNet

from botnet.arguments import Choice
from botnet.errors import nearest
from botnet.layers import MHSA2d
from botnet.layers.attention import QkvStd
from botnet.layers.non_local import NonLocal2d
from botnet.layers.torchscript import scriptable
from botnet.models.surgery import bottleneck_transformer, insert_bot, insert_non_local


@dataclass(frozen=True)
class Network:
    """A row of the table: the shape of a ResNet, and the surgery on it.

    Args:
        paper: tables or figures of the paper that the network is in.
        blocks: number of blocks in c2, c3, c4, c5.
        surgery: function that changes the ResNet in place; None for a convolutional network.
        img_size: side in pixels of the images that it is meant for; the position tables fit them.
        se: squeeze-and-excitation in the convolutional blocks, with 1/16 of their output width, and SiLU
            everywhere, as in the scaled families (Section 4.7.4).
        widths: channels of the 3x3 in c2 ... c5; a block's output is four times as wide.
        stem_width: None for the 7x7 stem of 64 channels; else three 3x3, the last one twice this width.
        qkv_std: initial standard deviation of queries, keys and values, see `MHSA2d`.
    """

    paper: str
    blocks: tuple[int, int, int, int]
    surgery: Callable[..., Any] | None
    img_size: int = 224
    se: bool = False
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem_width: int | None = None
    qkv_std: QkvStd = 0.01

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the last map."""
        return 16 if self.surgery is bot_s1 else 32


bot = bottleneck_transformer
bot_s1 = partial(bottleneck_transformer, s1=True)


def _non_local(model: ResNet, img_size: Any, qkv_std: Any) -> ResNet:
    return insert_non_local(model)  # has neither position tables nor an `MHSA2d`


TINY: dict[str, Any] = {"widths": (32, 48, 96, 192), "stem_width": 16}

# The depths and sizes of T3 ... T7 and of the SENets are not in the main text; see docs/networks.md.
# fmt: off
NETWORKS = {
    # Section 3 and Table 5
    "botnet50":           Network("Tables 1-10", (3, 4, 6, 3), bot),
    "botnet101":          Network("Tables 5, 6", (3, 4, 23, 3), bot),
    "botnet152":          Network("Tables 5, 8", (3, 8, 36, 3), bot),
    "botnet200":          Network("Table 8", (3, 24, 36, 3), bot),
    # Table 4: content alone, position alone, absolute positions; the sum of both is botnet50
    "botnet50_qk":        Network("Table 4", (3, 4, 6, 3), partial(bot, position=None)),
    "botnet50_qr":        Network("Table 4", (3, 4, 6, 3), partial(bot, content=False)),
    "botnet50_absolute":  Network("Table 4", (3, 4, 6, 3), partial(bot, position="absolute")),
    # Table 7: blocks added, none replaced
    "resnet50_nl":        Network("Table 7", (3, 4, 6, 3), _non_local),
    "resnet50_bot_c4":    Network("Table 7", (3, 4, 6, 3), insert_bot),
    "resnet50_bot_c4_c5": Network("Table 7", (3, 4, 6, 3), partial(insert_bot, stages=("c4", "c5"))),
    # Tables 9, 10 and Figure 5
    "botnet_s1_50":       Network("Tables 9, 10", (3, 4, 6, 3), bot_s1),
    "botnet_t3":          Network("Figure 5", (3, 4, 6, 6), bot_s1, 224, se=True),
    "botnet_t4":          Network("Figure 5", (3, 4, 23, 6), bot_s1, 224, se=True),
    "botnet_t5":          Network("Figure 5", (3, 4, 23, 12), bot_s1, 256, se=True),
    "botnet_t6":          Network("Figure 5", (3, 4, 6, 12), bot_s1, 320, se=True),
    "botnet_t7":          Network("Figure 5", (3, 4, 23, 12), bot_s1, 384, se=True),
    "senet_s0":           Network("Figure 5", (3, 4, 6, 3), None, 224, se=True),
    "senet_s1":           Network("Figure 5", (3, 4, 23, 3), None, 224, se=True),
    "senet_s2":           Network("Figure 5", (3, 8, 36, 3), None, 224, se=True),
    "senet_s3":           Network("Figure 5", (3, 8, 36, 3), None, 288, se=True),
    "senet_s4":           Network("Figure 5", (3, 44, 66, 3), None, 320, se=True),
    "senet_s5":           Network("Figure 5", (3, 44, 66, 3), None, 384, se=True),
    # Not the paper's: for tests, and for training on a CPU
    "botnet26":           Network("-", (2, 2, 2, 2), bot, qkv_std="fan_in"),
    "botnet_tiny":        Network("-", (1, 2, 2, 3), bot, 160, **TINY, qkv_std="fan_in"),
    "botnet_s1_tiny":     Network("-", (1, 2, 2, 3), bot_s1, 96, **TINY, qkv_std="fan_in"),
    "resnet_tiny":        Network("-", (1, 2, 2, 3), None, 96, **TINY),
}
# fmt: on


class BoTNet(ResNet):
    """A timm ResNet built from a row of the table; everything but the attention is timm's.

    Args:
        network: the row.
        img_size: side, or height and width, in pixels, of the images that the position tables fit; default
            the row's. The network still takes images of any size.
        qkv_std: initial standard deviation of queries, keys and values, see `MHSA2d`; default the row's.
        resnet: arguments of timm's `ResNet`: num_classes, in_chans, output_stride, drop_path_rate, ...
    """

    def __init__(
        self,
        network: Network,
        img_size: int | tuple[int, int] | None = None,
        qkv_std: QkvStd | None = None,
        **resnet: Any,
    ) -> None:
        block: Any = Bottleneck  # timm's annotation says an instance, but it takes the class
        form: dict[str, Any] = {"channels": network.widths}
        if network.stem_width is not None:
            form.update(stem_type="deep", stem_width=network.stem_width)
        if network.se:
            form.update(
                act_layer=torch.nn.SiLU, block_args={"attn_layer": partial(SEModule, rd_ratio=1 / 16)}
            )
        super().__init__(block, network.blocks, **{**form, **resnet})
        if network.surgery is not None:
            network.surgery(
                self,
                img_size=img_size or network.img_size,
                qkv_std=network.qkv_std if qkv_std is None else qkv_std,
            )
        for block in self.modules():
            if isinstance(getattr(block, "conv2", None), MHSA2d):
                block.se = None

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Draw all weights again: timm's as timm does, those of attention by their own rule."""
        super().init_weights(zero_init_last)
        for module in self.modules():
            if isinstance(module, MHSA2d | NonLocal2d):
                module.reset_parameters()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the position tables."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, MHSA2d)
            for name in module.no_weight_decay()
        }

    def __prepare_scriptable__(self) -> "BoTNet":
        """The network that `torch.jit.script` compiles in place of this one."""
        return scriptable(self)


class KnownNetworks(Choice):
    """What timm can create: its networks and those of this project, or one of a hub, with a colon.

    timm's list is asked at each check: programs add networks of their own.
    """

    def __init__(self) -> None:
        super().__init__((), "a network of timm or of this project", ".+:.+")

    def __contains__(self, value: str) -> bool:
        return super().__contains__(value) or (timm.is_model(value) and _has_tag(value))

    def near(self, value: str) -> str:
        """A hint at the networks of the nearest names."""
        return nearest(value, timm.list_models())


def _has_tag(name: str) -> bool:
    """Whether timm knows the tag of a network, ``a1_in1k`` of ``resnet50.a1_in1k``."""
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        return False
    return True


KNOWN_NETWORKS = KnownNetworks()
NetworkName = Annotated[str, KNOWN_NETWORKS]


def no_network(name: str) -> str:
    """The message about a name that timm does not know, with the nearest that it does."""
    return f"no network {name!r} in timm or here{KNOWN_NETWORKS.near(name)}"


def _register(name: str, network: Network) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        return build_model_with_cfg(partial(BoTNet, network), name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name} ({network.paper})"
    register_model(create)


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, network.img_size, network.img_size),
            "pool_size": (network.img_size // network.stride, network.img_size // network.stride),
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

# torch.fx traces attention as one operation, because its shape arithmetic depends on the size of the map.
register_notrace_module(MHSA2d)
