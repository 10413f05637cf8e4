"""A recipe small enough to train in seconds; recipes as plain YAML."""

from pathlib import Path

import yaml

from botnet.training.recipes import with_bases
from scripts.small_detector import DETECTOR


def write_recipe(path: Path, digits: Path, run: Path, **changes) -> Path:
    """A recipe of two steps an epoch; ``changes`` go to data.init_args."""
    data = {
        "train_instances": str(digits / "instances_train.json"),
        "train_images": str(digits / "train"),
        "val_instances": str(digits / "instances_val.json"),
        "val_images": str(digits / "val"),
        "canvas": 64,
        "jitter": [0.8, 1.2],
        "batch_size": 4,
        "val_batch_size": 3,
        "num_workers": 0,
    }
    recipe = {
        "model": {
            "class_path": "botnet.detection.DetectionModule",
            "init_args": {
                "detector": {"class_path": "botnet.detection.RCNN", "init_args": DETECTOR},
                "learning_rate": 0.01,
                "warmup_steps": 2,
                "warmup_learning_rate": 0.001,
                "pictures": 2,
            },
        },
        "data": {"class_path": "botnet.detection.CocoDataModule", "init_args": {**data, **changes}},
        "trainer": quick_trainer(run),
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


def quick_trainer(run: Path) -> dict:
    """Lightning's arguments for one epoch on a CPU."""
    return {
        "default_root_dir": str(run),
        "max_epochs": 1,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
    }


def whole(recipe: Path) -> dict:
    """A recipe merged over its bases, as a plain YAML reader would do it."""
    merged: dict = {}
    for file in with_bases(["--config", str(recipe)])[1::2]:
        merged = _merged(merged, yaml.safe_load(Path(file).read_text()))
    return merged


def _merged(base, overlay):
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: _merged(base.get(key), value) for key, value in overlay.items()}
