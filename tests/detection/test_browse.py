"""What a training sees of a data set."""

import base64
import html.parser
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from botnet.cli import main
from botnet.detection.browse import LARGEST, SCALES, STRIDES, advise, browse_data, plain_data, recipe_data
from botnet.detection.rpn import Anchors
from botnet.errors import DataError
from botnet.training.command import TrainingCLI
from tests.support.layouts import write_coco
from tests.support.recipes import write_recipe


class Page(html.parser.HTMLParser):
    """The sources of a page's images, and every other address in it."""

    def __init__(self, text):
        super().__init__()
        self.images, self.addresses = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href"):
                (self.images if tag == "img" else self.addresses).append(value)


@pytest.mark.parametrize("config", [False, True])
def test_the_command_draws_samples_and_a_page_of_its_own(digits, tmp_path, capsys, config):
    out = tmp_path / "out"
    if config:
        arguments = ["--config", str(write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run"))]
    else:
        arguments = [str(digits / "instances_train.json"), str(digits / "train")]
    canvas = [] if config else ["--canvas", "64"]
    assert main(["browse-data", *arguments, str(out), "--samples", "3", *canvas]) == 0
    shown = capsys.readouterr().out
    assert "at canvas 64, in cells of p2 (4 pixels)" in shown
    assert sorted(path.name for path in out.iterdir()) == [
        *("aspects.png", "classes.png", "index.html", "objects.png", "samples", "sizes.png")
    ]
    files = [*sorted(out.glob("*.png")), *sorted((out / "samples").iterdir())]
    text = (out / "index.html").read_text()
    page = Page(text)
    assert not page.addresses
    embedded = [base64.b64decode(source.partition(";base64,")[2]) for source in page.images]
    assert sorted(embedded) == sorted(path.read_bytes() for path in files)
    assert all(Image.open(io.BytesIO(content)).size[0] >= 480 for content in embedded)
    assert all(line in text for line in shown.splitlines()[:3])
    assert main(["browse-data", *arguments, str(out)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_a_sample_is_that_of_the_first_epoch(digits, tmp_path):
    data = plain_data(digits / "instances_train.json", digits / "train", 480)
    browse_data(data, tmp_path / "out", samples=2)
    assert [path.name for path in sorted((tmp_path / "out" / "samples").iterdir())] == [
        "000000.jpg",
        "000004.jpg",
    ]
    image, target = data[0, 4]
    height, width = target["valid"]
    drawn = np.asarray(Image.open(tmp_path / "out" / "samples" / "000004.jpg")).astype(float)
    assert drawn.shape == (480, 480, 3)
    covered = np.zeros((480, 480), bool)
    for x1, y1, x2, y2 in target["boxes"].int().tolist():  # with their names
        covered[max(y1 - 40, 0) : y2 + 40, max(x1 - 90, 0) : x2 + 90] = True
    covered[height:], covered[:, width:] = True, True
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (image.permute(1, 2, 0).numpy() * std + mean) * 255
    assert not covered.all()
    assert abs(drawn - pixels)[~covered].mean() < 6


def test_shares_below_cells():
    # Sides of 3, 15, 31 and 33 pixels on a canvas as large as the images.
    boxes = np.array([[3, 3], [15, 15], [31, 31], [33, 33]], float)
    advice = advise(boxes, np.full(4, 100.0), 100)
    assert advice.below == {1: 0.25, 4: 0.5, 8: 0.75}
    assert advise(boxes, np.full(4, 100.0), 200).below == {1: 0.0, 4: 0.25, 8: 0.5}


@pytest.mark.parametrize("seed", range(5))
def test_the_canvas_is_the_smallest_that_leaves_a_tenth_below_4_cells(seed):
    rng = np.random.default_rng(seed)
    boxes, longer = rng.uniform(20, 300, (1001, 2)), rng.uniform(400, 900, 1001)
    canvas = advise(boxes, longer, 640).canvas

    def below(side):
        return advise(boxes, longer, side).below[4]

    assert canvas % 64 == 0
    assert below(canvas) <= 0.1 < below(canvas - 64)
    assert advise(boxes / 100, longer, 640).canvas == LARGEST


@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_the_overlap_is_that_with_the_anchors_of_the_detector(scale):
    rng = np.random.default_rng(0)
    boxes = rng.uniform(8, 300, (50, 2))
    features = [torch.zeros(1, 1, 1, 1) for _ in STRIDES]  # one cell of each level: centred at stride / 2
    (anchors,) = Anchors(STRIDES, scale)(ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), features)
    centred = anchors - ((anchors[:, :2] + anchors[:, 2:]) / 2).repeat(1, 2)
    sides = torch.tensor(boxes, dtype=torch.float32)
    ious = box_iou(torch.cat([-sides / 2, sides / 2], 1), centred).max(1).values
    assert advise(boxes, np.full(50, 640.0), 640).overlap[scale] == pytest.approx(
        ious.mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("side", [8, 16, 32])
def test_small_objects_want_small_anchors(side):
    advice = advise(np.full((9, 2), float(side)), np.full(9, 640.0), 640)
    assert advice.anchor_scale * 4 <= side
    assert advice.overlap[advice.anchor_scale] == pytest.approx(1)
    assert set(advice.overlap) == set(SCALES)


def test_a_recipe_gives_its_data(digits, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run", jitter=[0.9, 1.0], flip=0.0)
    transform = recipe_data(recipe).train_set.transform
    assert (transform.canvas, tuple(transform.jitter), transform.flip) == (64, (0.9, 1.0), 0.0)


@pytest.mark.parametrize("place", [0, 2, 3])
def test_options_of_the_data_override_the_recipe(digits, tmp_path, capsys, place):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run")
    words = ["--config", str(recipe), str(tmp_path / "out"), "--samples", "1"]
    words[place:place] = ["--data.canvas", "96", "--data.masks=false", "--data.jitter", "[1, 1]"]
    assert main(["browse-data", *words]) == 0
    assert "at canvas 96, in cells of p2" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "samples" / "000000.jpg").size[0] % 96 == 0
    assert not (tmp_path / "run").exists()


def test_options_of_the_data_are_those_of_fit(digits, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run")
    options = [
        "--data.canvas",
        "96",
        "--data.flip=0.25",
        "--data.jitter",
        "[0.5, 1]",
        "--data.masks",
        "false",
    ]
    data = recipe_data(recipe, [*options, "--data.color_jitter", "0.3"]).train_set
    made = []

    class Made(TrainingCLI):
        def instantiate_trainer(self, **kwargs):
            made.append(self.datamodule.train_set)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Made(["fit", "--config", str(recipe), *options, "--data.color_jitter", "0.3"])
    assert vars(data.transform) | {"augmentation": None} == vars(made[0].transform) | {"augmentation": None}
    assert (data.transform.canvas, data.transform.flip, data.masks) == (96, 0.25, False)
    assert all(
        torch.equal(*pair) for pair in zip(data[0, 1][1]["boxes"], made[0][0, 1][1]["boxes"], strict=True)
    )
    assert torch.equal(data[0, 1][0], made[0][0, 1][0])


@pytest.mark.parametrize(
    "option", [["--data.canva", "64"], ["--data.canvas", "wide"], ["--data.flip", "2"], ["--data.flip"]]
)
def test_a_wrong_option_is_answered_as_by_fit(digits, tmp_path, capsys, option):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run")
    assert main(["fit", "--config", str(recipe), *option]) == 2
    answer = capsys.readouterr().err
    assert main(["browse-data", "--config", str(recipe), str(tmp_path / "out"), *option]) == 2
    assert capsys.readouterr().err == answer
    assert answer.startswith(("botnet: --data.", "botnet: argument --data: "))


def test_a_set_without_objects_leaves_nothing(tmp_path):
    file = write_coco(tmp_path / "train.json", tmp_path / "train")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(DataError, match=r"train\.json: has no objects"):
        browse_data(plain_data(file, tmp_path / "train", 64), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.json"],
        ["a.json", "b", "c", "d"],
        ["--config", "a.yaml", "b", "c"],
        ["--samples", "0", *"abc"],
        ["--data.flip", "0", *"abc"],
        ["--config", "a.yaml", "--canvas", "64", "b"],
    ],
)
def test_wrong_arguments_are_refused(arguments, capsys):
    assert main(["browse-data", *arguments]) == 2
    assert capsys.readouterr().err.startswith("botnet: ")


def test_a_recipe_of_a_classifier_is_refused(capsys, tmp_path):
    assert main(["browse-data", "--config", "recipes/quickstart_classify.yaml", str(tmp_path / "out")]) == 2
    assert "its data are not those of a detector" in capsys.readouterr().err
