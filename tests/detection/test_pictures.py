"""Pictures: what is drawn where."""

import numpy as np
import torch

from botnet.curves import plot_curves
from botnet.detection.masks import encode_mask
from botnet.detection.pictures import colour_of, draw


def two_squares():
    """A large square and a small one inside it, on black."""
    masks = np.zeros((2, 480, 480), np.uint8)
    masks[0, 100:400, 100:400] = 1
    masks[1, 200:260, 200:260] = 1
    boxes = torch.tensor([[100.0, 100, 400, 400], [200, 200, 260, 260]])
    return {
        "boxes": boxes,
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, 0.4]),
        "masks": [encode_mask(mask) for mask in masks],
    }


def test_a_small_object_shows_on_top_of_a_large_one():
    result = two_squares()
    picture = np.asarray(draw(torch.zeros(3, 480, 480, dtype=torch.uint8), result, ["a", "b"], 0.1)).astype(
        int
    )
    for (row, column), label in (((350, 350), 1), ((240, 240), 2)):
        pixel, colour = picture[row, column], np.array(colour_of(label))
        assert pixel.argmax() == colour.argmax()
        assert pixel.max() > 60
    assert not picture[50, 50].any()


def test_what_scores_too_little_is_not_drawn():
    result = two_squares()
    black = torch.zeros(3, 480, 480, dtype=torch.uint8)
    strong = np.asarray(draw(black, result, ["a", "b"], 0.5))
    alone = {key: value[:1] for key, value in result.items()}
    assert np.array_equal(strong, np.asarray(draw(black, alone, ["a", "b"], 0.5)))


def test_curves_of_a_resumed_run_and_of_one_without_validation(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("epoch,step,train/loss\n0,9,1.5\n0,19,1.2\n")
    second.write_text("epoch,step,train/loss,val/box_AP\n1,29,1.0,\n1,29,,0.2\n")
    for number, tables in enumerate(([first], [first, second])):
        plot_curves(tables, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5_000
