"""A trained detector from its checkpoint, and other weights to start from."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from botnet.cli import main
from botnet.detection import CocoDataModule, DetectionModule, load_detector, mask_rcnn
from botnet.detection.checkpoint import detector_state, initialise
from botnet.errors import CheckpointError
from botnet.training.checkpoint_file import read_checkpoint
from tests.support.recipes import DETECTOR

pytestmark = pytest.mark.long


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_the_detector_is_rebuilt_from_its_checkpoint(run):
    _, folder = run
    checkpoint = folder / "checkpoints" / "last.ckpt"
    detector, about = load_detector(checkpoint)
    assert about["class_names"][:3] == ["zero", "one", "two"]
    assert about["canvas"] == 64
    assert not detector.training
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in detector.state_dict().items():
        torch.testing.assert_close(value, stored[f"detector.{name}"])


@pytest.mark.parametrize("command", ["fit", "predict", "validate"])
def test_code_in_a_checkpoint_is_not_executed(command, run, tmp_path, capsys):
    recipe, _ = run
    trap, evil = tmp_path / "sprung", tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "botnet": Trap(trap)}, evil)
    assert pickle.loads(pickle.dumps(Trap(tmp_path / "proof")))  # the trap itself works
    assert (tmp_path / "proof").exists()
    image = tmp_path / "image.png"
    Image.new("RGB", (9, 9)).save(image)
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(evil.read_bytes()[:-50])
    commands = {
        "fit": ["fit", "--config", str(recipe), "--ckpt_path", str(evil)],
        "predict": ["predict", str(evil), str(image), "--output", str(tmp_path / "out")],
        "validate": ["validate", "--config", str(recipe), "--ckpt_path", str(evil)],
    }
    for checkpoint in (evil, torn):
        arguments = [str(checkpoint) if argument == str(evil) else argument for argument in commands[command]]
        assert main(arguments) == 2
        assert f"{checkpoint} cannot be read as data" in capsys.readouterr().err
    assert not trap.exists()


def test_fine_tuning_takes_what_fits_and_classes_by_name(run):
    _, folder = run
    checkpoint = folder / "checkpoints" / "last.ckpt"
    stored = read_checkpoint(checkpoint)
    state = detector_state(stored)
    names = ["nine", "zebra", "zero"]
    torch.manual_seed(1)
    detector = mask_rcnn(num_classes=3, canvas=96, **DETECTOR)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with pytest.warns(UserWarning, match="position tables resized"):
        said = initialise(detector, checkpoint, names)
    after = detector.state_dict()
    assert "2 of 3 classes known" in said
    assert f"{len(after)} of {len(after)} tensors taken" in said
    known = stored.metadata["class_names"]
    theirs = [0, known.index("nine") + 1, None, known.index("zero") + 1]
    heads = {"box_predictor.cls_score": 1, "box_predictor.bbox_pred": 4, "mask_predictor.mask_fcn_logits": 1}
    for part, rows in heads.items():
        for kind in ("weight", "bias"):
            name = f"roi_heads.{part}.{kind}"
            for ours, their in enumerate(theirs):
                found = after[name][ours * rows : (ours + 1) * rows]
                if their is None:
                    assert torch.equal(found, before[name][ours * rows : (ours + 1) * rows])
                else:
                    assert torch.equal(found, state[name][their * rows : (their + 1) * rows])
    tables = {name for name in after if "pos_embed" in name}
    assert tables
    for name in after.keys() - tables:
        if not any(part in name for part in heads):
            assert torch.equal(after[name], state[name]), name
    assert all(after[name].shape == before[name].shape != state[name].shape for name in tables)


def test_classes_of_one_name_are_taken_by_their_ids(run, digits, tmp_path):
    files = {}
    for split in ("train", "val"):
        content = json.loads((digits / f"instances_{split}.json").read_text())
        content["categories"][1]["name"] = content["categories"][0]["name"]
        files[f"{split}_instances"], files[f"{split}_images"] = tmp_path / f"{split}.json", digits / split
        files[f"{split}_instances"].write_text(json.dumps(content))
    data = CocoDataModule(**files, canvas=64)
    contents = torch.load(run[1] / "checkpoints" / "last.ckpt", weights_only=True)
    contents["botnet"]["class_names"] = data.class_names
    torch.save(contents, tmp_path / "start.ckpt")
    module = DetectionModule(mask_rcnn(num_classes=10, canvas=64, **DETECTOR))
    module._trainer = SimpleNamespace(datamodule=data)
    assert "10 of 10 classes known" in module.start_from(tmp_path / "start.ckpt", data.class_names)
    for name, value in module.state_dict().items():
        assert torch.equal(value, contents["state_dict"][name]), name


def test_fine_tuning_from_another_network_is_refused(run, tmp_path):
    checkpoint = run[1] / "checkpoints" / "last.ckpt"
    other = mask_rcnn(num_classes=2, canvas=64, **{**DETECTOR, "backbone": "convnext_atto"})
    with pytest.raises(CheckpointError, match="another network"):
        initialise(other, checkpoint, ["a", "b"])
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        initialise(other, tmp_path / "none.ckpt", ["a", "b"])
