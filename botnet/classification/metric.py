"""Top-1 and top-5 accuracy."""

from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from torch import Tensor

from botnet.training.distributed import sum_over_devices


class Accuracy:
    """Top-1 and top-5 accuracy, over all images and by class, exact over any number of devices.

    Args:
        num_classes: classes.
        device: of the logits.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.hits = torch.zeros(num_classes, 2, dtype=torch.long, device=device)  # top-1, top-5
        self.images = torch.zeros(num_classes, dtype=torch.long, device=device)
        self.loss = torch.zeros((), device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add images: logits ``(B, classes)``, labels ``(B,)``."""
        logits = logits.float()
        among = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hit = torch.stack([among[:, 0], among.any(1)], dim=1)
        self.hits.index_add_(0, labels, hit.long())
        self.images += torch.bincount(labels, minlength=len(self.images))
        self.loss += F.cross_entropy(logits, labels, reduction="sum")

    def compute(self) -> dict[str, Tensor]:
        """The numbers over all devices, on each of them.

        Returns:
            ``top1`` and ``top5`` in percent, the unit of logs, ``metrics.json`` and ``best.ckpt``; ``loss``;
            and ``per_class``, top-1 in percent (NaN without images).
        """
        hits, images, loss = map(sum_over_devices, (self.hits, self.images, self.loss))
        count = images.sum()
        top1, top5 = 100 * hits.sum(0) / count
        return {"top1": top1, "top5": top5, "loss": loss / count, "per_class": 100 * hits[:, 0] / images}


def accuracy_table(numbers: dict[str, Any]) -> Table:
    """Accuracies as a table for the terminal, with the worst classes.

    Args:
        numbers: under ``model`` in the report of :class:`ClassificationModule`.
    """
    table = Table("top-1 %", "top-5 %", "loss", "worst classes", title="on the validation images")
    known = {name: value for name, value in numbers["per_class"].items() if value is not None}
    worst = sorted(known, key=known.__getitem__)[:3]
    table.add_row(
        f"{numbers['top1']:.2f}",
        f"{numbers['top5']:.2f}",
        f"{numbers['loss']:.3f}",
        Text(", ".join(f"{name} {known[name]:.0f}" for name in worst)),
    )
    return table
