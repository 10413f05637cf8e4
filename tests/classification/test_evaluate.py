"""`botnet evaluate`: accuracy of any classifier, and errors that say what to fix."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file
from timm.data import ImageNetInfo, create_dataset, create_transform, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader

from botnet.classification.classifier import open_classifier, read_label_map
from botnet.classification.datasets import eval_transform
from botnet.classification.evaluate import render, validate
from botnet.cli import main
from botnet.errors import DataError
from tests.support.classification import NETWORK, picture, weights_file

pytestmark = pytest.mark.long


def class_folders(root, names, images: int = 3):
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(images):
            seed = 100 * label + number
            picture(seed, (40 + 9 * number, 60 - 5 * label)).save(root / name / f"{number}.jpg", quality=90)
    return root


@pytest.fixture
def four(tmp_path):
    """Four classes of three images, and a network of four classes."""
    return (
        class_folders(tmp_path / "data", ["ant", "bee", "cat", "dog"]),
        weights_file(tmp_path / "four.safetensors", classes=4),
    )


def run(capsys, *arguments) -> tuple[int, str]:
    code = main(["evaluate", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def by_a_plain_script(name, weights, folder, classes):
    """Logits and labels by a plain loop over timm's data set, in the order of the folder."""
    model = timm.create_model(name, num_classes=classes)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    config = resolve_data_config({}, model=model, use_test_size=True)  # as timm's validate.py
    dataset = create_dataset("", str(folder), transform=create_transform(**config))
    logits, labels = [], []
    with torch.inference_mode():
        for images, targets in DataLoader(dataset, batch_size=5):
            logits.append(model(images))
            labels.append(targets)
    return torch.cat(logits), torch.cat(labels)


# resnet10t was trained at 176 px, and its accuracy is published at 224 px.
@pytest.mark.parametrize(
    ("name", "size", "crop"),
    [("efficientnet_lite0", 224, 0.875), (NETWORK, 224, 0.875), ("resnet10t", 224, 0.95)],
)
def test_equals_a_plain_script_bit_for_bit(name, size, crop, tmp_path):
    folder = class_folders(tmp_path / "data", [f"class{i}" for i in range(7)], images=2)
    weights = weights_file(tmp_path / "w.pth", name, 7)
    logits, labels = by_a_plain_script(name, weights, folder, 7)
    classifier = open_classifier(name, weights, device="cpu")
    seen = []
    classifier.model.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    report = validate(classifier, folder, batch_size=5, num_workers=0)
    assert torch.equal(torch.cat(seen), logits)
    hits = logits.topk(5).indices == labels[:, None]
    assert report["top1"] == 100 * hits[:, 0].sum().item() / 14
    assert report["top5"] == 100 * hits.sum().item() / 14
    assert 0 < report["top5"] < 100
    assert report["images"] == 14
    assert (report["size"], report["crop"]) == (size, crop)
    assert report["images_per_second"] > 0


def test_names_may_have_brackets(tmp_path, capsys):
    data = class_folders(tmp_path / "photos[/v2]", ["[old] cat", "[old] dog"], images=1)
    classifier = open_classifier(NETWORK, weights_file(tmp_path / "two.pth", classes=2), device="cpu")
    classifier = replace(classifier, name="exp[/v2]/best.ckpt", class_names=["cat [a]", "dog [b]"])
    report = validate(classifier, data, batch_size=2, num_workers=0)
    Console(width=300).print(render(report))
    shown = capsys.readouterr().out
    for name in ("exp[/v2]/best.ckpt on", "cat [a] ([old] cat)", "dog [b] ([old] dog)"):
        assert name in shown


def test_the_command_reports_every_class(four, tmp_path, capsys, caplog):
    data, weights = four
    out = tmp_path / "report.json"
    arguments = [NETWORK, "--weights", weights, "--data", data, "--workers", 1, "--device", "cpu"]
    code, shown = run(capsys, *arguments, "--output", out, "--crop", 1, "--size", 64)
    assert code == 0
    report = json.loads(out.read_text())
    assert (report["size"], report["crop"]) == (64, 1.0)
    assert f"{report['top1']:.3f}" in shown
    assert f"{NETWORK}: images at 64 px, crop 1\n" in shown
    assert "in their order" in caplog.text
    assert [row["folder"] for row in report["classes"]] == ["ant", "bee", "cat", "dog"]
    assert sum(row["top1"] * row["images"] for row in report["classes"]) == pytest.approx(12 * report["top1"])
    for row in report["classes"]:
        assert (row["taken_for"] is None) == (row["top1"] == 100)
    assert "top1_among_present" not in report


class FixedLogits(nn.Module):
    """Returns the next of given logits for each image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.images = logits, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return self.logits[self.images - len(images) : self.images]


def test_subset_of_imagenet_by_its_synsets(tmp_path):
    """Two classes of a thousand: accuracy over all thousand, and over the two only."""
    tench, goldfish = ImageNetInfo().label_names()[:2]
    # In another order than the network's: its outputs must be found by name.
    label_map = tmp_path / "map.json"
    label_map.write_text(json.dumps({"b": 0, "a": 1}))
    data = class_folders(tmp_path / "data", [goldfish, tench], images=2)
    mapped = class_folders(tmp_path / "mapped", ["a", "b"], images=2)  # a is the goldfish
    for root, said in ((data, None), (mapped, label_map)):
        weights = weights_file(tmp_path / "w.safetensors")
        classifier = open_classifier(NETWORK, weights, label_map=said, device="cpu")
        logits = torch.zeros(4, 1000)
        logits[:, 1] = 1.0  # the goldfish for every image,
        logits[1:, 7] = 2.0  # but for three of them something else first
        order = [1, 1, 0, 0] if said else [0, 0, 1, 1]  # n01440764 is the tench
        object.__setattr__(classifier, "model", FixedLogits(logits))
        report = validate(classifier, root, batch_size=3, num_workers=0)
        assert [row["index"] for row in report["classes"]] == list(dict.fromkeys(order))
        # Over all: the goldfish's one image without a 7 if it comes first, which under synsets is a tench.
        assert report["top1"] == (25.0 if said else 0.0)
        assert report["top1_among_present"] == 50.0
        goldfishes = next(row for row in report["classes"] if row["index"] == 1)
        assert goldfishes["top5"] == 100.0
    assert "tench" in ImageNetInfo().label_descriptions()[0]


def test_a_checkpoint_is_given_images_as_in_its_validation(tmp_path):
    """timm squashes images for this network; its training here crops them."""
    name = "convnextv2_nano.fcmae_ft_in22k_in1k_384"
    state = timm.create_model(name, num_classes=2).state_dict()
    evaluation = {"image_size": 64, "crop_pct": 0.875, "interpolation": "bicubic"}
    evaluation |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    about = {
        "classifier": {"name": name, "num_classes": 2, "image_size": 64},
        "class_names": ["cat", "dog"],
        "evaluation": evaluation,
    }
    path = tmp_path / "best.ckpt"
    torch.save({"botnet": about, "state_dict": {f"model.{key}": t for key, t in state.items()}}, path)
    image = picture(1, (100, 70))
    classifier = open_classifier(str(path), device="cpu")
    assert torch.equal(classifier.transform(image), eval_transform(**evaluation)(image))


def test_checkpoints_know_their_classes_and_preparation(tmp_path, capsys):
    """A checkpoint needs no options; its class names match the class folders."""
    state = load_file(weights_file(tmp_path / "w.safetensors", classes=3))
    preparation = {
        "crop_pct": 0.5,
        "interpolation": "bilinear",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
    }
    about = {
        "classifier": {"name": NETWORK, "num_classes": 3, "image_size": 64},
        "class_names": ["cat", "ant", "bee"],
        "evaluation": {"image_size": 64} | preparation,
    }
    path = tmp_path / "best.ckpt"
    torch.save({"botnet": about, "state_dict": {f"model.{name}": t for name, t in state.items()}}, path)
    classifier = open_classifier(str(path), device="cpu")
    assert ({"input_size": (3, 64, 64)} | preparation).items() <= classifier.preparation.items()
    for name, tensor in classifier.model.state_dict().items():
        assert torch.equal(tensor, state[name])
    report = validate(classifier, class_folders(tmp_path / "data", ["ant", "bee", "cat"]), num_workers=0)
    assert {row["folder"]: row["index"] for row in report["classes"]} == {"ant": 1, "bee": 2, "cat": 0}
    out = tmp_path / "out"
    assert main(["predict", str(path), str(tmp_path / "data" / "ant"), "--output", str(out)]) == 0
    for record in json.loads((out / "predictions.json").read_text()):
        assert {c["index"]: c["class"] for c in record["classes"]} == {0: "cat", 1: "ant", 2: "bee"}
    status, said = run(capsys, path, "--data", tmp_path / "data", "--weights", tmp_path / "w.safetensors")
    assert (status, "has its own weights" in said) == (2, True)
    torch.save({"botnet": {"detector": {}}}, path)
    status, said = run(capsys, path, "--data", tmp_path / "data")
    assert (status, "give a checkpoint of a classifier" in said) == (2, True)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "botnet_tiny"])
def test_networks_with_position_tables_take_other_sizes(name, tmp_path):
    data = class_folders(tmp_path / "data", ["a", "b"], images=1)
    classifier = open_classifier(name, weights_file(tmp_path / "w.pth", name, 2), size=96, device="cpu")
    assert classifier.transform(picture(0)).shape == (3, 96, 96)
    assert validate(classifier, data, num_workers=0)["size"] == 96


@pytest.mark.parametrize(
    ("asked", "expected"), [({}, (288, 1.0)), ({"size": 224}, (224, 1.0)), ({"crop": 0.9}, (288, 0.9))]
)
def test_the_test_size_is_used_unless_another_is_given(asked, expected, monkeypatch):
    """resnet50.a1_in1k: 224 px and a crop of 0.95 in training, 288 px and the whole image in tests."""
    with torch.device("meta"):
        network = timm.create_model("resnet50.a1_in1k")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: network.to_empty(device="cpu"))
    preparation = open_classifier("resnet50.a1_in1k", device="cpu", **asked).preparation
    assert (preparation["input_size"][-1], preparation["crop_pct"]) == expected


def test_label_maps(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("ant\nbee\n")
    assert read_label_map(path, 2) == {"ant": 0, "bee": 1}
    listed = tmp_path / "names.json"
    for content, message in (
        ('["ant"]', "names 1 classes, the network has 2"),
        ('["ant", "ant"]', "more than once"),
        ('{"ant": 2}', "'ant' is class 2, the network has classes 0 to 1"),
        ('{"ant": true}', "expected a list"),
        ("[1, 2]", "expected a list"),
        ("{", "cannot be read as a label map"),
    ):
        listed.write_text(content)
        with pytest.raises(DataError, match=message):
            read_label_map(listed, 2)
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        read_label_map(tmp_path / "none.json", 2)


def test_refuses_unknown_networks_and_unusable_weights(four, tmp_path, capsys):
    data, weights = four
    broken = tmp_path / "broken.pth"
    broken.write_bytes(weights.read_bytes()[:1000])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:1000])
    code = tmp_path / "code.pth"
    torch.save({"weight": nn.Linear(1, 1)}, code)
    for model, file, message in (
        ("mobilenetv3_smal_050", weights, "did you mean mobilenetv3_small_050"),
        ("runs/best.ckpt", None, "no file runs/best.ckpt"),
        (NETWORK, tmp_path / "none.pth", "none.pth: no such file\n"),
        (NETWORK, broken, "broken.pth"),
        (NETWORK, cut, "cut.safetensors: damaged"),
        (NETWORK, code, "code.pth: refused"),
        ("resnet18", weights, "not the weights of resnet18"),
        (f"{NETWORK}.no_such_tag", weights, "no_such_tag"),
    ):
        given = [] if file is None else ["--weights", file]
        status, said = run(capsys, model, *given, "--data", data)
        assert (status, message in said) == (2, True), said


def test_refuses_data_that_do_not_match(four, tmp_path, capsys):
    data, weights = four
    call = [NETWORK, "--weights", weights, "--workers", 0, "--output", tmp_path / "r.json"]
    (tmp_path / "nothing").mkdir()
    three = class_folders(tmp_path / "three", ["ant", "bee", "cat"], images=1)
    torn = class_folders(tmp_path / "torn", ["ant", "bee", "cat", "dog"], images=1)
    (torn / "cat" / "0.jpg").write_bytes((torn / "cat" / "0.jpg").read_bytes()[:300])
    hollow = class_folders(tmp_path / "hollow", ["ant", "bee", "cat", "dog"], images=1)
    (hollow / "bee" / "0.jpg").unlink()
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\neel\n")
    for folder, further, message in (
        (tmp_path / "missing", [], "no such file or folder"),
        (tmp_path / "nothing", [], "no images"),
        (three, [], "3 classes, the network 4"),
        (torn, [], "cat/0.jpg: cannot be decoded"),
        (torn, ["--workers", 1], "cat/0.jpg: cannot be decoded"),
        (hollow, [], "bee: a class folder without images"),
        (data, ["--label-map", names], "dog; map them to its classes by --label-map"),
        (data, ["--crop", 1.5], "--crop: 1.5"),
        (data, ["--size", 0], "--size: 0"),
        (data, ["--device", "abacus"], "--device abacus"),
        (data, ["--crop", 0.05], "--crop: 0.05 is not allowed; give a number from 0.1 to 1"),
        (data, ["--output", tmp_path], "--output"),
        (data, ["--output", tmp_path / ("long" * 99)], "cannot be written"),
    ):
        status, said = run(capsys, *call, "--data", folder, *further)
        assert (status, message in said) == (2, True), said
        assert "Traceback" not in said
    assert not (tmp_path / "r.json").exists()
