"""Sampling of the anchors and RoIs that each image trains on."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


class Sampler(BalancedPositiveNegativeSampler):
    """torchvision's balanced sampling with a generator for each image.

    With the global generator, an image's samples would depend on the images before it on the same device.
    Set ``generators``, one per image, before each call; None is the global one. After it, ``drawn`` has the
    numbers of positives and negatives of each image, so that nothing has to ask the device for them.
    """

    generators: Sequence[torch.Generator | None] = ()
    drawn: Sequence[tuple[int, int]] = ()

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positives (labels from 1) and of the negatives (0) of each image."""
        positive, negative = (
            [labels >= 1 for labels in matched_idxs],
            [labels == 0 for labels in matched_idxs],
        )
        # The host waits for the device once, for the numbers of all images.
        numbers = torch.stack([mask.sum() for mask in positive + negative]).view(2, -1).T.tolist()
        most = int(self.positive_fraction * self.batch_size_per_image)
        self.drawn = [(min(p, most), min(n, self.batch_size_per_image - min(p, most))) for p, n in numbers]
        images = zip(positive, negative, numbers, self.drawn, self.generators, strict=True)
        chosen = [
            (draw(p, found[0], drawn[0], generator), draw(n, found[1], drawn[1], generator))
            for p, n, found, drawn, generator in images
        ]
        return [p for p, _ in chosen], [n for _, n in chosen]


def draw(candidates: Tensor, found: int, count: int, generator: torch.Generator | None) -> Tensor:
    """A mask of ``count`` of the ``found`` candidates that a mask has."""
    places = torch.nonzero_static(candidates, size=found)[:, 0]
    # A generator of the CPU draws alike for every device.
    device = candidates.device if generator is None else generator.device
    order = torch.randperm(found, generator=generator, device=device)[:count]
    return torch.zeros_like(candidates).index_fill_(0, places[order.to(places.device)], True)
