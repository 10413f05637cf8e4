"""Drawings of detections, and training curves."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import ExifTags, Image
from torchvision.utils import draw_segmentation_masks

from botnet.detection import predict
from botnet.detection.coco import CocoInstances
from botnet.errors import DataError
from botnet.masks import decode_mask, encode_mask
from botnet.visualize.curves import plot_curves
from botnet.visualize.detections import colour_of, draw


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


def test_masks_are_blended_as_torchvision_does():
    image = torch.randint(
        0, 256, (3, 480, 480), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    result = two_squares()
    picture = np.asarray(draw(image, result | {"boxes": torch.zeros(2, 4)}, ["", ""], 0.1)).astype(int)
    for mask, label in zip(result["masks"], (1, 2), strict=True):
        inside = torch.from_numpy(decode_mask(mask, 480, 480)).bool()
        image = draw_segmentation_masks(image, inside, alpha=0.55, colors=[colour_of(label)])
    expected = image.permute(1, 2, 0).numpy().astype(int)
    assert abs(picture - expected)[50:].max() <= 1  # above are the names


def test_drawing_a_mask_takes_little_memory():
    """Twenty masks on 12 megapixels: the image itself takes 36 MiB, twenty dense masks 240 MiB."""
    mask = np.zeros((3000, 4000), np.uint8)
    mask[100:2900, 100:3900] = 1
    boxes = torch.tensor([[100.0, 100, 3900, 2900]]).expand(20, 4)
    result = {"boxes": boxes, "labels": torch.ones(20, dtype=int), "masks": [encode_mask(mask)] * 20}
    image = torch.zeros(3, 3000, 4000, dtype=torch.uint8)
    tracemalloc.start()
    try:
        draw(image, result, ["a"], 0.5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150 * 2**20


@pytest.mark.parametrize("as_stored", [True, False])
@pytest.mark.parametrize("kind", ["polygon", "run lengths", "null", "absent"])
def test_truth_is_drawn_in_the_frame_of_its_record(made, monkeypatch, tmp_path, as_stored, kind):
    """An image with an EXIF orientation, annotated as stored (40 x 30) or as shown (30 x 40)."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 30)).save(made.folder / "a.png", exif=exif)
    height, width = (30, 40) if as_stored else (40, 30)
    made.data["images"][0] |= {"height": height, "width": width}
    mask = np.zeros((height, width), np.uint8)
    mask[10:25, 5:15] = 1
    segmentation = {
        "polygon": [[5, 10, 15, 10, 15, 25, 5, 25]],
        "run lengths": encode_mask(mask),
        "null": None,
    }
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 10, 10, 15]}
    made.data["annotations"] = [
        annotation | ({} if kind == "absent" else {"segmentation": segmentation[kind]})
    ]
    found = {"boxes": torch.zeros(1, 4), "scores": torch.ones(1), "labels": torch.tensor([1])}
    sizes, drawn = [], []

    def detect(detector, image, placement):
        sizes.append(placement.size)
        return found

    def record(image, result, *rest):
        drawn.append((image.shape, result))
        return draw(image, result, *rest)

    about = {"canvas": 40, "category_ids": [3, 90], "class_names": ["dog", "cat"]}
    monkeypatch.setattr(predict, "load_detector", lambda path: (torch.nn.Identity(), about))
    monkeypatch.setattr(predict, "_detect", detect)
    monkeypatch.setattr(predict, "draw", record)
    output = tmp_path / "out"
    predict.predict(Path(), [made.folder / "a.png"], output, truth=made.write(), device="cpu")
    assert sizes == [(height, width)]
    (_, prediction), (shape, truth) = drawn
    assert prediction is found
    assert shape == (3, height, width)
    assert truth["boxes"].tolist() == [[5, 10, 15, 25]]
    drawn_mask = decode_mask(truth["masks"][0], height, width)
    np.testing.assert_array_equal(drawn_mask, mask * (kind in ("polygon", "run lengths")))
    assert (output / "a.png").is_file()


def test_a_true_mask_that_cannot_be_decoded_is_named(made):
    made.annotation(segmentation={"size": [30, 40], "counts": "o"})
    instances, image = CocoInstances(made.write()), torch.zeros(3, 30, 40, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"instances\.json: annotation 200 of image 7 .*cannot be decoded"):
        predict._beside_truth(image, Image.new("RGB", (40, 30)), instances, 7, 0.5)


def test_low_scores_are_not_drawn():
    result = two_squares()
    black = torch.zeros(3, 480, 480, dtype=torch.uint8)
    strong = np.asarray(draw(black, result, ["a", "b"], 0.5))
    alone = {key: value[:1] for key, value in result.items()}
    assert np.array_equal(strong, np.asarray(draw(black, alone, ["a", "b"], 0.5)))


def test_curves_leave_out_undefined_metrics(tmp_path, monkeypatch):
    """COCO's AP is -1 where the validation images have no objects."""
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    table = tmp_path / "metrics.csv"
    table.write_text("step,train/loss,val/box_AP,val/mask_AP\n1,2,,\n1,,-1.0,0.25\n2,,-1.0,0.5\n")
    plot_curves([table], tmp_path / "curves.png")
    monkeypatch.undo()
    _, metrics = drawn[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in metrics.lines} == {
        "val/mask_AP": [0.25, 0.5]
    }
    plt.close(drawn[0])


def test_curves_of_a_resumed_run_and_of_one_without_validation(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("epoch,step,train/loss\n0,9,1.5\n0,19,1.2\n")
    second.write_text("epoch,step,train/loss,val/box_AP\n1,29,1.0,\n1,29,,0.2\n")
    for number, tables in enumerate(([first], [first, second])):
        plot_curves(tables, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5_000
