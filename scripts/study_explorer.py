"""The explorer of docs/study.md, by `make study-explorer`: BoT of `cue`, seed 0, and a far cue.

Takes the weights that `make study` left in runs/study. Where there are none, it trains that run again, a
minute of one core, and adds no row to docs/study.csv.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import BANDS, CANVAS, CLASSES, DOCS, Reader, cell, pictures, train, weights
from study_report import trained

from botnet.detection.detector import Prepared, TorchDetector
from botnet.explorer.explore import explore

RUN = ("cue", "bot", 0)
PAGE = DOCS / "static" / "explore-cue.html"


class Told(TorchDetector):
    """A network of the study as a detector of a single object: it is told the box and says the class.

    Args:
        model: in evaluation mode.
        class_names: of its outputs.
        box: of the object, left, top, width and height in pixels.
    """

    def __init__(self, model: Reader, class_names: Sequence[str], box: list[float]) -> None:
        trunk: Any = model.trunk  # what is explored: its attention
        super().__init__(trunk, class_names, range(1, len(class_names) + 1), CANVAS)
        self.model, self.box = model, box

    def run(self, prepared: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        """The answer of the read-out at the cell of the box's centre."""
        pixels = torch.from_numpy(np.stack([image.pixels for image in prepared])).permute(0, 3, 1, 2)
        cells = torch.tensor([[cell(self.box)]]).expand(len(pixels), 1, 2)
        with torch.inference_mode():
            scores, classes = self.model(pixels, cells).softmax(-1).max(-1)  # (B, 1)
        left, top, width, height = self.box
        boxes = np.array([[left, top, left + width, top + height]])
        return [
            {"boxes": boxes, "scores": score.numpy(), "labels": label.numpy() + 1}
            for score, label in zip(scores, classes, strict=True)
        ]


def main() -> None:
    torch.set_num_threads(1)  # as in the study
    if weights(RUN).is_file():
        model = trained(*RUN)
    else:
        model, row = train(*RUN)
        print("trained again:", *(f"{band} {row[band]:.3f}" for band in BANDS))
        weights(RUN).parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights(RUN))
    data = pictures("cue", "val")
    first = next(i for i, band in enumerate(data.objects[:, 0, 3]) if BANDS[band] == "far")
    (record,) = data.records[first]
    image = Path("data/relations/cue/val") / f"{record['image_id']:06d}.jpg"
    told = Told(model.eval(), CLASSES["cue"], record["bbox"])
    explore(told, image, PAGE, threshold=0, name="BoT of the study on cue, told where the object is")
    truth = CLASSES["cue"][record["category_id"] - 1]
    print(f"{PAGE}: {image.name}, {truth}, {PAGE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
