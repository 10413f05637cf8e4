"""A trained classifier from its checkpoint, and other weights to start from."""

import json

import pytest
import torch

from botnet.classification import create_classifier, load_classifier
from botnet.classification.checkpoint import start_from
from botnet.cli import main
from botnet.errors import CheckpointError
from botnet.models.weights import save_weights
from tests.support.classification import (
    CLASSES,
    data_module,
    module_of,
    trainer_of,
    write_images,
    write_recipe,
)

pytestmark = pytest.mark.long


def test_the_classifier_is_rebuilt_from_its_checkpoint(run, images):
    """The average of the weights, with which a plain loop finds the accuracy of the run."""
    _, folder = run
    model, about = load_classifier(folder / "checkpoints" / "last.ckpt")
    assert about["class_names"] == list(CLASSES)
    assert about["evaluation"]["image_size"] == 32
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[f"model.{name}"]), name
    samples = data_module(images).val_set
    with torch.no_grad():
        right = sum(int(model(image[None]).argmax()) == label for image, label in samples)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["top1"] == pytest.approx(100 * right / len(samples))


def test_fine_tuning_on_other_classes_reinitialises_the_classifier(run, tmp_path, log):
    _, folder = run
    checkpoint = folder / "checkpoints" / "best.ckpt"
    for split in ("train", "val"):
        write_images(tmp_path / split, ["cyan", "magenta"], count=4)
    # A rate of zero: what comes out is what went in.
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        tmp_path,
        tmp_path / "run",
        {"init_from": str(checkpoint), "learning_rate": 0.0},
    )
    assert main(["fit", "--config", str(recipe)]) == 0
    assert "0 of 2 classes known; the others are reinitialised: cyan, magenta" in log.text
    old, _ = load_classifier(checkpoint)
    tuned = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert tuned["model.fc.weight"].shape[0] == 2
    for name, parameter in old.named_parameters():
        if not name.startswith("fc."):
            assert torch.equal(tuned[f"model.{name}"], parameter), name


@pytest.mark.parametrize("names", [["red", "zebra", "blue"], ["red", "green", "blue"], ["red"]])
def test_fine_tuning_takes_the_rows_of_the_classifier_by_name(run, names):
    """As many classes under other names, in another order, and fewer."""
    checkpoint = run[1] / "checkpoints" / "best.ckpt"
    old, about = load_classifier(checkpoint)
    model = create_classifier("test_resnet", len(names), 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = start_from(model, checkpoint, names)
    known = [name for name in names if name in CLASSES]
    assert f"{len(known)} of {len(names)} classes known" in said
    assert ("; the others are reinitialised: zebra" in said) == ("zebra" in names)
    theirs = old.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(value, theirs[name]), name
            continue
        for row, of_class in enumerate(names):
            expected = theirs[name][about["class_names"].index(of_class)] if of_class in known else None
            assert torch.equal(value[row], before[name][row] if expected is None else expected)


def test_a_file_of_tensors_of_another_class_count(run, tmp_path):
    save_weights(create_classifier("test_resnet", 3, 32), tmp_path / "three.safetensors")
    model = create_classifier("test_resnet", 2, 32)
    before = model.fc.weight.clone()
    said = start_from(model, tmp_path / "three.safetensors", ["cyan", "magenta"])
    assert "its classifier has 3 classes; this one is reinitialised" in said
    assert torch.equal(model.fc.weight, before)


def test_fine_tuning_at_another_size_resizes_the_position_tables(tmp_path):
    """From 2 x 2 cells to 4 x 4; all else is taken over as it is."""
    small, large = create_classifier("botnet_s1_tiny", 3, 32), create_classifier("botnet_s1_tiny", 3, 64)
    save_weights(small, tmp_path / "small.safetensors")
    said = start_from(large, tmp_path / "small.safetensors", CLASSES)
    assert "its 3 classes, which it does not name, are taken in their order" in said
    resized = [
        name for name, value in large.state_dict().items() if value.shape != small.state_dict()[name].shape
    ]
    assert [name.rpartition(".")[2] for name in resized] == ["height_rel", "width_rel"] * 3
    assert all(large.state_dict()[name].shape[0] == 7 for name in resized)
    for name, value in small.state_dict().items():
        if name not in resized:
            assert torch.equal(large.state_dict()[name], value), name


def test_weights_of_another_network_are_refused(run, images):
    _, folder = run
    module = module_of(model="botnet_s1_tiny", init_from=folder / "checkpoints" / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"best\.ckpt: not the weights of this BoTNet"):
        trainer_of().fit(module, data_module(images))
    module = module_of(init_from=folder / "gone.ckpt")
    with pytest.raises(CheckpointError, match=r"gone\.ckpt: no such checkpoint"):
        trainer_of().fit(module, data_module(images))


def test_what_cannot_be_started_from_is_named(run, tmp_path):
    """No checkpoint is taken as a file of tensors without class names, whatever is wrong with it."""
    checkpoint = run[1] / "checkpoints" / "best.ckpt"
    model = create_classifier("test_resnet", 3, 32)
    contents = torch.load(checkpoint, weights_only=True)
    torch.save(contents | {"botnet": contents["botnet"] | {"format": 99}}, tmp_path / "newer.ckpt")
    torch.save({"botnet": {"detector": {}}, "state_dict": {}}, tmp_path / "detector.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text('{"botnet": {"classifier": {}}}')
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("newer.ckpt", "in format 99"),
        ("detector.ckpt", "holds a detector, not a classifier"),
        ("cut.ckpt", "cannot be read as data"),
        ("published", r"its model\.safetensors cannot be read"),
        ("empty", "holds neither a run"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}\b.* {message}"):
            start_from(model, tmp_path / name, CLASSES)
