"""The feature pyramid p2-p6 (paper, Section 4)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

LEVELS = ("p2", "p3", "p4", "p5", "p6")


class StridedP6(ExtraFPNBlock):
    """p6 as a 3x3 convolution of stride 2 on p5 (torchvision's default only subsamples p5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """The outputs and their names with p6 added."""
        return [*results, self.conv(results[-1])], [*names, "p6"]


class FPN(nn.Module):
    """Feature pyramid p2-p6 with batch norm on its five outputs, as in [tpu] ``fpn.py``.

    The norms are plain ``BatchNorm2d``, so that ``SyncBatchNorm.convert_sync_batchnorm`` finds them.

    Args:
        in_channels: widths of c2..c5.
        channels: width of every output, 256 in the paper.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(in_channels), channels, extra_blocks=StridedP6(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in LEVELS)
        for module in self.pyramid.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """p2..p6 from c2..c5."""
        outputs = self.pyramid(OrderedDict(zip(LEVELS, features, strict=False)))
        return {name: norm(x) for (name, x), norm in zip(outputs.items(), self.norms, strict=True)}
