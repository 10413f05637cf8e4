"""Checkpoints of earlier versions resume and load.

``fixtures/0.1.0`` holds two, each stopped within its second epoch by commit 7e4d195 and compressed by xz: a
classifier with its own values, and a detector whose tensors are filled with one number so that it packs well.
"""

import lzma
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from botnet.classification import load_classifier
from botnet.cli import main
from botnet.detection import load_detector
from tests.support import classification as images
from tests.support import detection as objects
from tests.support.recipes import write_recipe

FIXTURES = Path(__file__).parent / "fixtures" / "0.1.0"


def unpack(kind: str, run: Path) -> Path:
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(lzma.decompress((FIXTURES / f"{kind}.ckpt.xz").read_bytes()))
    return checkpoint


def classifier_recipe(folder: Path) -> Path:
    for split in ("train", "val"):
        images.write_images(folder / "data" / split)
    shape = {"channels": [8, 8, 8, 16], "stem_width": 4}
    model = {"model": "botnet_s1_tiny", "model_kwargs": shape}
    return images.write_recipe(folder / "recipe.yaml", folder / "data", folder / "run", model)


def detector_recipe(folder: Path) -> Path:
    data = objects.Set(folder)
    for number, name in ((13, "c.png"), (14, "d.png")):
        data.data["images"].append({"id": number, "file_name": name, "height": 30, "width": 40})
        shutil.copy(data.folder / "a.png", data.folder / name)
    files = {f"{split}_instances": str(data.write()) for split in ("train", "val")}
    files |= {f"{split}_images": str(data.folder) for split in ("train", "val")}
    return write_recipe(
        folder / "recipe.yaml", folder, folder / "run", **files, batch_size=2, val_batch_size=2
    )


@pytest.mark.parametrize(
    ("kind", "write", "load", "step", "end"),
    [
        ("classifier", classifier_recipe, load_classifier, 4, 9),
        ("detector", detector_recipe, load_detector, 3, 6),
    ],
)
def test_a_checkpoint_of_0_1_0_resumes_and_loads(kind, write, load, step, end, tmp_path):
    recipe, checkpoint = write(tmp_path), unpack(kind, tmp_path / "run")
    before = torch.load(checkpoint, weights_only=True)
    assert (before["epoch"], before["global_step"]) == (1, step)
    model, about = load(checkpoint)
    assert not model.training
    assert len(about["class_names"]) == {"classifier": 3, "detector": 2}[kind]

    content = yaml.safe_load(recipe.read_text())
    content["trainer"]["max_epochs"] = 3
    recipe.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(recipe), "--ckpt_path", "last"]) == 0
    after = torch.load(checkpoint, weights_only=True)
    assert (after["epoch"], after["global_step"]) == (2, end)
    own = {name for name in before["state_dict"] if not name.startswith("ema.")}
    assert own == after["state_dict"].keys()
    if kind == "classifier":  # its average goes on, in another place
        assert len(own) < len(before["state_dict"])
        assert own == after["current_model_state"].keys()
        assert after["averaging_state"]["n_averaged"] == end
    momentum = [
        [state["momentum_buffer"].shape for state in c["optimizer_states"][0]["state"].values()]
        for c in (before, after)
    ]
    assert momentum[0] == momentum[1]
    assert load(checkpoint)
