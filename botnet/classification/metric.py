"""Top-1 and top-5 accuracy."""

from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchmetrics import Metric


class Accuracy(Metric):
    """Top-1 and top-5 accuracy, over all images and by class, exact over any number of devices.

    Args:
        num_classes: classes.
    """

    full_state_update = False
    hits: Tensor
    images: Tensor
    loss: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Counts, by class; their sums over devices are exact.
        self.add_state("hits", torch.zeros(num_classes, 2, dtype=torch.long), "sum")
        self.add_state("images", torch.zeros(num_classes, dtype=torch.long), "sum")
        self.add_state("loss", torch.zeros(()), "sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add images: logits ``(B, classes)``, labels ``(B,)``."""
        logits = logits.float()
        among = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hit = torch.stack([among[:, 0], among.any(1)], dim=1)
        self.hits.index_add_(0, labels, hit.long())
        self.images += torch.bincount(labels, minlength=len(self.images))
        self.loss += F.cross_entropy(logits, labels, reduction="sum")

    def compute(self) -> dict[str, Tensor]:
        """``top1`` and ``top5`` in percent, ``loss``, and ``per_class``, top-1 (NaN without images)."""
        count = self.images.sum()
        top1, top5 = 100 * self.hits.sum(0) / count
        per_class = 100 * self.hits[:, 0] / self.images
        return {"top1": top1, "top5": top5, "loss": self.loss / count, "per_class": per_class}


def accuracy_table(report: dict[str, dict[str, Any]]) -> Table:
    """Accuracies for the terminal, with the classes that are told worst."""
    table = Table("", "top-1 %", "top-5 %", "loss", "worst classes", title="on the validation images")
    for kind, numbers in report.items():
        known = {name: value for name, value in numbers["per_class"].items() if value is not None}
        worst = sorted(known, key=known.__getitem__)[:3]
        table.add_row(
            {"model": "network", "ema": "average of its weights"}[kind],
            f"{numbers['top1']:.2f}",
            f"{numbers['top5']:.2f}",
            f"{numbers['loss']:.3f}",
            Text(", ".join(f"{name} {known[name]:.0f}" for name in worst)),
        )
    return table
