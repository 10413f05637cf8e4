"""`botnet predict` with a classifier: images of every kind, class names, and pixels in the centre crop."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from botnet.classification.classifier import open_classifier
from botnet.classification.image_classifier import TorchClassifier
from botnet.classification.predict import _place_in_crop, classify
from botnet.cli import main
from botnet.errors import ConfigError, DataError
from botnet.images import denormalise
from tests.support.classification import NETWORK, picture, weights_file


@pytest.fixture
def weights(tmp_path):
    return weights_file(tmp_path / "six.safetensors", classes=6)


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("ant\nbee\ncat\ndog\neel\nfox\n")
    return path


ODD = {
    "grey.png": lambda: picture(1).convert("L"),
    "grey16.png": lambda: Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60) * 20),
    "black-and-white.png": lambda: picture(1).convert("1"),
    "palette.gif": lambda: picture(2).convert("P"),
    "transparent.png": lambda: picture(3).convert("RGBA"),
    "cmyk.jpg": lambda: picture(4).convert("CMYK"),
    "pixel.png": lambda: picture(5, (1, 1)),
    "wide.png": lambda: picture(6, (30_000, 20)),
    "line.png": lambda: picture(7, (30_000, 1)),
    "tall.png": lambda: picture(8, (2, 30_000)),
}


@pytest.mark.parametrize("name", ODD)
def test_images_of_every_kind_are_classified(name, weights, names, tmp_path, capsys):
    ODD[name]().save(tmp_path / name)
    out = tmp_path / "out"
    call = ["predict", NETWORK, str(tmp_path / name), "--weights", str(weights), "--label-map", str(names)]
    assert main([*call, "--size", "64", "--device", "cpu", "--output", str(out)]) == 0
    (record,) = json.loads((out / "predictions.json").read_text())
    assert record["file"] == str(tmp_path / name)
    scores = [found["score"] for found in record["classes"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert all(found["class"][0] == "abcdef"[found["index"]] for found in record["classes"])
    assert record["classes"][0]["class"] in capsys.readouterr().out


def test_names_may_have_brackets(weights, tmp_path, capsys):
    weights = weights.rename(tmp_path / "six [old].safetensors")
    names = tmp_path / "names.json"
    names.write_text(json.dumps([f"[old] cat{i}" for i in range(6)]))
    picture(1).save(tmp_path / "photo [copy].jpg")
    call = ["predict", NETWORK, str(tmp_path / "photo [copy].jpg"), "--weights", str(weights)]
    call += ["--label-map", str(names), "--size", "64", "--device", "cpu"]
    assert main([*call, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "photo [copy].jpg" in shown
    assert "[old] cat" in shown


def test_a_checkpoint_may_have_brackets_in_its_path(weights, tmp_path):
    classifier = open_classifier(NETWORK, weights, size=64, device="cpu")
    classifier = replace(classifier, name="exp[/v2]/best.ckpt")
    picture(1).save(tmp_path / "a.jpg")
    assert len(classify(TorchClassifier(classifier), [tmp_path / "a.jpg"], tmp_path / "out")[0]) == 1


def test_scores_are_the_networks_softmax(weights, names, tmp_path):
    picture(9).save(tmp_path / "a.png")
    out = tmp_path / "out"
    call = ["predict", NETWORK, str(tmp_path / "a.png"), "--weights", str(weights), "--device", "cpu"]
    assert main([*call, "--output", str(out)]) == 0
    classifier = open_classifier(NETWORK, weights, device="cpu")
    with torch.inference_mode():
        probabilities = classifier.model(classifier.transform(picture(9))[None])[0].softmax(0)
    (record,) = json.loads((out / "predictions.json").read_text())
    for found in record["classes"]:
        assert found["score"] == pytest.approx(float(probabilities[found["index"]]))
        assert found["class"] == f"class {found['index']}"


def test_refuses_unusable_requests(weights, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    picture(1).save(tmp_path / "a.png")
    for source, further, message in (
        ("empty", [], "holds no image"),
        ("none.png", [], "no such image or folder"),
        ("text.png", [], "text.png: cannot be decoded"),
        ("a.png", ["--attention"], "no BoT block"),
        ("a.png", ["--pixel", "1", "1"], "--attention"),
    ):
        out = tmp_path / "out"
        call = ["predict", NETWORK, str(tmp_path / source), "--weights", str(weights), "--device", "cpu"]
        assert main([*call, "--output", str(out), *further]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    call = ["predict", NETWORK, str(tmp_path / "a.png"), "--weights", str(weights)]
    assert main([*call, "--output", str(tmp_path / "used")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main(["predict", "botnet5", str(tmp_path / "a.png")]) == 2
    assert "botnet50" in capsys.readouterr().err


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path):
    weights = weights_file(tmp_path / "w.safetensors", "botnet26t_256")  # timm's, of fixed tables
    with pytest.raises(ConfigError, match=r"^--size 96: botnet26t_256 does not take such images"):
        open_classifier("botnet26t_256", weights, size=96, device="cpu")


@pytest.mark.parametrize(
    "option",
    [
        ["--format", "coco"],
        ["--format", "pictures"],
        ["--score", "0"],
        ["--truth", "truth.json"],
        ["--images-json", "listed.json"],
    ],
)
def test_refuses_options_for_detectors(option, capsys):
    assert main(["predict", NETWORK, "a.png", *option]) == 2
    message = f"{option[0]} is for detectors, and {NETWORK} is not a checkpoint of one"
    assert message in capsys.readouterr().err


def test_a_broken_image_is_left_out(weights, tmp_path, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.jpg", "c.webp")):
        picture(number).save(folder / name)
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-300])
    (folder / "notes.pdf").write_text("no image")
    call = ["predict", NETWORK, str(folder), "--weights", str(weights), "--output", str(out)]
    assert main([*call, "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    settings, named = printed.err.splitlines()
    assert "images at" in settings
    assert named.startswith(f"botnet: {folder / 'b.jpg'}: cannot be decoded")
    assert "2 images, 1 left out" in printed.out
    records = json.loads((out / "predictions.json").read_text())
    assert [Path(record["file"]).name for record in records] == ["a.png", "c.webp"]


@pytest.mark.parametrize("crop", [0.875, 1.0])
@pytest.mark.parametrize("size", [(40, 50), (131, 60), (64, 64)])
def test_a_pixel_is_found_in_the_crop(size, crop, tmp_path):
    """A white square on black: its place in the prepared image is where the formula says."""
    classifier = open_classifier(
        "botnet_tiny", weights_file(tmp_path / "w.pth", "botnet_tiny", 2), crop=crop, size=96, device="cpu"
    )
    pixel = (size[0] // 2 - 6, size[1] // 2 + 7)
    image = Image.new("RGB", size)
    image.paste("white", (pixel[0] - 1, pixel[1] - 1, pixel[0] + 2, pixel[1] + 2))
    mean, std = (classifier.preparation[key] for key in ("mean", "std"))
    shown = denormalise(classifier.transform(image), mean, std)[0].float()
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    y, x = _place_in_crop(tmp_path, image, pixel, classifier.preparation)
    assert 96 * y == pytest.approx(float((shown * (rows + 0.5)).sum() / shown.sum()), abs=0.75)
    assert 96 * x == pytest.approx(float((shown * (columns + 0.5)).sum() / shown.sum()), abs=0.75)


def test_a_pixel_outside_the_crop_is_refused(tmp_path):
    classifier = open_classifier(
        "botnet_tiny", weights_file(tmp_path / "w.pth", "botnet_tiny", 2), size=96, device="cpu"
    )
    with pytest.raises(DataError, match=r"pixel \(2, 20\) of its 100 x 40 is outside the centre crop"):
        _place_in_crop(tmp_path, Image.new("RGB", (100, 40)), (2, 20), classifier.preparation)


def test_a_pixel_of_a_strip_is_that_of_the_whole_image(tmp_path):
    """Only the middle of a strip is decoded."""
    weights = weights_file(tmp_path / "w.pth", "botnet_tiny", 2)
    classifier = TorchClassifier(open_classifier("botnet_tiny", weights, size=64, device="cpu"))
    strip = tmp_path / "strip.png"
    picture(1, (3400, 100)).save(strip)
    _, broken = classify(classifier, [strip], tmp_path / "out", attention=True, pixel=(1700, 50))
    assert not broken
    with pytest.raises(DataError, match=r"pixel \(800, 50\) of its 3400 x 100 is outside the centre crop"):
        classify(classifier, [strip], tmp_path / "none", attention=True, pixel=(800, 50))


def test_a_checkpoint_is_read_once(tmp_path, monkeypatch):
    model = timm.create_model("botnet_tiny", num_classes=2, img_size=64)
    evaluation = {"image_size": 64, "crop_pct": 1.0, "interpolation": "bilinear"}
    metadata = {
        "classifier": {"name": "botnet_tiny", "num_classes": 2, "image_size": 64},
        "class_names": ["cat", "dog"],
        "evaluation": evaluation | {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    }
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"botnet": metadata, "state_dict": state}, tmp_path / "last.ckpt")
    picture(1).save(tmp_path / "a.png")
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: reads.append(args) or load(*args, **kwargs))
    call = ["predict", str(tmp_path / "last.ckpt"), str(tmp_path / "a.png"), "--device", "cpu"]
    assert main([*call, "--output", str(tmp_path / "out")]) == 0
    assert len(reads) == 1
