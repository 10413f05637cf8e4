"""Sampling of the anchors and RoIs that each image trains on."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


class Sampler(BalancedPositiveNegativeSampler):
    """torchvision's balanced sampling with a generator for each image.

    With the global generator, an image's samples would depend on the images before it on the same device.
    Set ``generators``, one per image, before each call; None is the global one.
    """

    generators: Sequence[torch.Generator | None] = ()

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positives and of the negatives of each image."""
        chosen = [
            self.choose(labels, generator)
            for labels, generator in zip(matched_idxs, self.generators, strict=True)
        ]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def choose(self, labels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """One image's positives (labels from 1) and negatives (0), as masks; other labels are ignored."""
        left, masks = self.batch_size_per_image, []
        max_positive = int(self.positive_fraction * self.batch_size_per_image)
        for candidates, limit in ((labels >= 1, max_positive), (labels == 0, self.batch_size_per_image)):
            found = torch.where(candidates)[0]
            device = labels.device if generator is None else generator.device
            order = torch.randperm(len(found), generator=generator, device=device)[: min(limit, left)]
            drawn = found[order.to(found.device)]
            left -= len(drawn)
            masks.append(torch.zeros_like(candidates).index_fill_(0, drawn, True))
        return masks[0], masks[1]
