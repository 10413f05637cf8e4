"""From the arguments of a recipe to batches."""

import json
import shutil

import pytest
import torch
from PIL import Image

from botnet.cli import main
from botnet.detection import CocoDataModule
from botnet.errors import ConfigError, DataError
from tests.support.layouts import write_coco, write_yolo_set


def module(digits, **arguments) -> CocoDataModule:
    paths = (digits / name for name in ("instances_train.json", "train", "instances_val.json", "val"))
    return CocoDataModule(*paths, **{"canvas": 64, "jitter": (0.5, 1.5), "num_workers": 0} | arguments)


def test_batches_are_ready_for_the_detector(digits):
    data = module(digits, batch_size=4)
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    seen = []
    for images, targets in batches:
        assert images.shape == (4, 3, 64, 64)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert all(target["masks"].shape == (len(target["boxes"]), 64, 64) for target in targets)
        seen += [target["image_id"] for target in targets]
    assert sorted(seen) == list(range(1, 9))
    assert [target["image_id"] for _, targets in data.val_dataloader() for target in targets] == [1, 2, 3, 4]


@pytest.mark.parametrize("copy_paste", [0.0, 1.0])
def test_workers_change_nothing(digits, copy_paste):
    alone, helped = (
        list(module(digits, num_workers=workers, copy_paste=copy_paste).train_dataloader())
        for workers in (0, 2)
    )
    for (images, targets), (others, their_targets) in zip(alone, helped, strict=True):
        assert torch.equal(images, others)
        assert others.is_contiguous(memory_format=torch.channels_last)
        for target, other in zip(targets, their_targets, strict=True):
            assert target["image_id"] == other["image_id"]
            assert all(torch.equal(target[key], other[key]) for key in ("boxes", "labels", "masks"))


def test_the_seed_of_the_run_reaches_the_samples(digits, monkeypatch):
    def first(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        return module(digits).train_set[0, 0][0]

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_copy_paste_brings_more_objects(digits):
    counts = [
        sum(len(module(digits, copy_paste=p).train_set[0, i][1]["labels"]) for i in range(8)) for p in (0, 1)
    ]
    assert counts[1] > counts[0]


@pytest.mark.parametrize("name", ["batch_size", "val_batch_size"])
def test_a_batch_of_nothing_is_refused(digits, name):
    with pytest.raises(ConfigError, match="batch_size: 0 is not allowed"):
        module(digits, **{name: 0})


SMALL = {"canvas": 64, "num_workers": 0, "batch_size": 1}


def test_a_root_gives_the_same_samples_as_four_paths(digits, log):
    named, found = module(digits), CocoDataModule(root=digits, canvas=64, jitter=(0.5, 1.5), num_workers=0)
    for split in ("train", "val"):
        assert f"{split}: {digits / f'instances_{split}.json'}, {digits / split}" in log.text
    for index in range(8):
        assert torch.equal(named.train_set[0, index][0], found.train_set[0, index][0])
    assert len(found.val_set) == 4


def test_named_paths_come_before_the_root(digits, tmp_path):
    file = write_coco(tmp_path / "other.json", tmp_path / "images")
    data = json.loads((digits / "instances_val.json").read_text())
    file.write_text(json.dumps(json.loads(file.read_text()) | {"categories": data["categories"]}))
    found = CocoDataModule(root=digits, val_instances=file, val_images=tmp_path / "images", **SMALL)
    assert (len(found.train_set), len(found.val_set)) == (8, 1)


def test_yolo_is_read_directly(tmp_path, cache, log):
    polygon = "1 0.1 0.1 0.5 0.1 0.5 0.75\n"
    write_yolo_set(tmp_path, polygon)
    data = CocoDataModule(root=tmp_path, jitter=(1, 1), flip=0, **SMALL)
    assert data.class_names == ["cat", "dog"]
    _, target = data.train_set[0, 0]
    assert target["labels"].tolist() == [2]
    # The image is 40 x 20, the canvas 64: a scale of 1.6.
    assert target["boxes"][0].tolist() == pytest.approx([4 * 1.6, 2 * 1.6, 20 * 1.6, 15 * 1.6], abs=1)
    assert "YOLO's layout: train: " in log.text


def test_boxes_of_yolo_train_without_masks(tmp_path, cache):
    write_yolo_set(tmp_path)
    with pytest.raises(DataError, match="no segmentation; add one, or train Faster R-CNN"):
        CocoDataModule(root=tmp_path, **SMALL)
    assert "masks" not in CocoDataModule(root=tmp_path, masks=False, **SMALL).train_set[0, 0][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no train data: give data.root"),
        ({"train_instances": "a.json", "train_images": "a"}, "no val data: give data.root"),
        ({"train_instances": "a.json"}, "data.train_instances needs data.train_images"),
        ({"val_images": "a"}, "data.val_images needs data.val_instances"),
    ],
)
def test_paths_that_say_too_little_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CocoDataModule(**arguments)


def test_a_root_without_validation_is_refused(digits, tmp_path):
    shutil.copy(digits / "instances_train.json", tmp_path / "train.json")
    shutil.copy(digits / "instances_val.json", tmp_path / "test.json")
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
    with pytest.raises(
        DataError, match="without the split val or valid; it has train, test, which is not used"
    ):
        CocoDataModule(root=tmp_path)


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("cat", "cow"), r"only in .*train\.json: dog; only in .*val\.json: cow"),
        (("cat",), r"only in .*train\.json: dog; write"),
        (("dog", "cat"), "their order differs, cat instead of dog, dog instead of cat"),
    ],
)
def test_class_lists_that_differ_are_shown(tmp_path, names, difference):
    write_coco(tmp_path / "train.json", tmp_path / "train")
    write_coco(tmp_path / "val.json", tmp_path / "val", names=names)
    with pytest.raises(DataError, match=f"do not have the same categories: {difference}"):
        CocoDataModule(root=tmp_path, **SMALL)


def test_an_empty_split_is_refused(tmp_path):
    write_coco(tmp_path / "train.json", tmp_path / "train")
    file = write_coco(tmp_path / "val.json", tmp_path / "val")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": [], "annotations": []}))
    with pytest.raises(DataError, match=r"val\.json: images: the list is empty"):
        CocoDataModule(root=tmp_path, **SMALL)


MODES = ("L", "I;16", "P", "RGBA", "CMYK", "1", "LA")


def test_frames_in_deep_folders_of_every_mode_are_trained_on(tmp_path, capsys):
    """As of a video: the same names in several folders."""
    for split in ("train", "val"):
        file = write_coco(tmp_path / f"{split}.json", tmp_path / split)
        truth = json.loads(file.read_text())
        (image,), (annotation,) = truth["images"], truth["annotations"]
        truth["images"], truth["annotations"] = [], []
        for number, mode in enumerate(MODES, 1):
            name = f"videos/{number}/frames/000001.tif"
            path = tmp_path / split / name
            path.parent.mkdir(parents=True)
            Image.new(mode, (40, 20), 200 if mode not in ("RGBA", "CMYK", "LA") else None).save(path)
            truth["images"].append(image | {"id": number, "file_name": name})
            truth["annotations"].append(annotation | {"id": number, "image_id": number})
        file.write_text(json.dumps(truth))
    data = CocoDataModule(root=tmp_path, **SMALL | {"batch_size": 7})
    ((images, targets),) = data.train_dataloader()
    assert images.isfinite().all()
    assert [len(target["labels"]) for target in targets] == [1] * 7
    assert main(["check-data", str(tmp_path / "train.json"), str(tmp_path / "train")]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
