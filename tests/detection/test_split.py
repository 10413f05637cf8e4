"""Splitting an instances file."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest

from botnet.cli import main
from botnet.detection.coco import CocoInstances
from botnet.detection.split import split_instances
from botnet.errors import ConfigError, DataError
from tests.support.layouts import write_image


def write_set(path, contents, classes=None):
    """An image for each list of class ids."""
    used = range(1, 1 + (classes or max(max(ids, default=1) for ids in contents)))
    pairs = [(image, category) for image, ids in enumerate(contents, 1) for category in ids]
    truth = {
        "info": {"kept": True},
        "images": [
            {"id": image, "file_name": f"{image:03d}.png", "height": 20, "width": 40, "more": image}
            for image in range(1, len(contents) + 1)
        ],
        "categories": [{"id": category, "name": f"class {category}"} for category in used],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [1, 1, 5, 5], "x": number}
            for number, (image, category) in enumerate(pairs, 1)
        ],
    }
    path.write_text(json.dumps(truth))
    return path


def classes_of(path):
    return {annotation["category_id"] for annotation in json.loads(path.read_text())["annotations"]}


def test_every_record_is_kept_unchanged_on_one_side(tmp_path):
    file = write_set(tmp_path / "instances.json", [[1, 2], [1], [], [2, 2], [1]] * 4)
    made = split_instances(file, 0.25)
    before, sides = (
        json.loads(file.read_text()),
        [json.loads(path.read_text()) for path in made.files.values()],
    )
    assert [len(side["images"]) for side in sides] == [made.images["train"], made.images["val"]] == [15, 5]
    for key in ("images", "annotations"):
        found = sorted(sides[0][key] + sides[1][key], key=lambda record: record["id"])
        assert found == before[key]
    for side in sides:
        assert side["info"] == before["info"]
        assert side["categories"] == before["categories"]
        ids = {image["id"] for image in side["images"]}
        assert {annotation["image_id"] for annotation in side["annotations"]} <= ids


def test_it_depends_on_the_seed_alone(tmp_path):
    file = write_set(tmp_path / "instances.json", [[1], [2], [1, 2]] * 10)

    def split(name, seed):
        files = split_instances(file, 0.2, seed, output=tmp_path / name).files
        return [path.read_bytes() for path in files.values()]

    assert split("a", 0) == split("b", 0) != split("c", 1)
    data = json.loads(file.read_text())
    data["images"].reverse()  # the order of the records does not matter
    file.write_text(json.dumps(data))
    again = json.loads(split("d", 0)[1])["images"]
    assert again[::-1] == json.loads((tmp_path / "a" / "val.json").read_text())["images"]


def most_on_both_sides(contents):
    """By trying every split."""
    best = 0
    for inside in itertools.product((False, True), repeat=len(contents)):
        sides = [
            set().union(*(ids for ids, v in zip(contents, inside, strict=True) if v == s))
            for s in (False, True)
        ]
        if len(set(inside)) == 2:
            best = max(best, len(sides[0] & sides[1]))
    return best


@pytest.mark.parametrize("trial", range(30))
def test_as_many_classes_as_can_be_are_on_both_sides(tmp_path, trial):
    rng = np.random.default_rng(trial)
    contents = [(rng.permutation(6)[: rng.integers(0, 4)] + 1).tolist() for _ in range(9)]
    file = write_set(tmp_path / "instances.json", contents, classes=6)
    made = split_instances(file, 0.3, seed=trial)
    both = classes_of(made.files["train"]) & classes_of(made.files["val"])
    assert len(both) == most_on_both_sides([set(ids) for ids in contents])


def test_rare_classes_are_dealt_out_in_proportion(tmp_path):
    rng = np.random.default_rng(0)
    contents = [(rng.random(5) < [0.9, 0.5, 0.2, 0.05, 0.02]).nonzero()[0] + 1 for _ in range(500)]
    file = write_set(tmp_path / "instances.json", [ids.tolist() for ids in contents], classes=5)
    made = split_instances(file, 0.2)
    assert made.images["val"] == pytest.approx(100, abs=10)
    for name, number in made.objects["val"].items():
        assert number == pytest.approx(0.2 * (number + made.objects["train"][name]), abs=8)


def test_classes_of_one_name_are_counted_apart(tmp_path):
    file = write_set(tmp_path / "instances.json", [[1, 2, 2]] * 4)
    file.write_text(file.read_text().replace("class 2", "class 1"))
    made = split_instances(file, 0.25)
    assert made.objects["train"] == {"class 1 (id 1)": 3, "class 1 (id 2)": 6}


def test_files_of_the_same_content_stay_together(tmp_path):
    file = write_set(tmp_path / "instances.json", [[1]] * 20)
    folder = tmp_path / "images"
    for number in range(1, 21):
        write_image(folder / f"{number:03d}.png", shade=number // 2)  # pairs
    for seed in range(5):
        made = split_instances(file, 0.3, seed, folder, tmp_path / str(seed))
        assert made.same_content == 9
        sides = [
            {(folder / image["file_name"]).read_bytes() for image in json.loads(path.read_text())["images"]}
            for path in made.files.values()
        ]
        assert not sides[0] & sides[1]


def test_the_command_and_its_layout(tmp_path, capsys):
    write_set(tmp_path / "instances.json", [[1], [1], [1], [2], []])
    assert main(["split", str(tmp_path / "instances.json"), "--val", "0.4"]) == 0
    shown = capsys.readouterr().out
    assert "train.json: 3 images" in shown
    assert "val.json: 2 images" in shown
    assert "classes that are not on both sides: class 2" in shown
    assert re.search(r"class 1\W+[12]\W+[12]\b", shown)
    assert CocoInstances(tmp_path / "val.json").class_names == ["class 1", "class 2"]
    assert main(["split", str(tmp_path / "instances.json")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("val", [0, 1, -1, 0.01, 0.99, float("nan")])
def test_an_empty_side_is_refused(tmp_path, val):
    file = write_set(tmp_path / "instances.json", [[1]] * 5)
    with pytest.raises(ConfigError, match="leaves a side empty"):
        split_instances(file, val)
    assert list(tmp_path.iterdir()) == [file]


def test_copies_of_one_image_cannot_be_split(tmp_path):
    file = write_set(tmp_path / "instances.json", [[1]] * 4)
    for number in range(1, 5):
        write_image(tmp_path / "images" / f"{number:03d}.png")
    with pytest.raises(ConfigError, match=r"4 images \(1 different\)"):
        split_instances(file, 0.5, images=tmp_path / "images")


def test_a_missing_image_is_named_and_nothing_is_written(tmp_path):
    file = write_set(tmp_path / "instances.json", [[1]] * 4)
    for number in range(1, 4):
        write_image(tmp_path / "images" / f"{number:03d}.png", number)
    with pytest.raises(DataError, match=r"004\.png: cannot be read \(No such file"):
        split_instances(file, 0.5, images=tmp_path / "images")
    shutil.rmtree(tmp_path / "images")
    assert list(tmp_path.iterdir()) == [file]
