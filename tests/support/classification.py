"""Small image folders, weights and recipes for the tests of classification."""

from pathlib import Path

import lightning.pytorch as L
import numpy as np
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from botnet.classification import ClassificationModule, ImageDataModule
from tests.support.recipes import quick_trainer

CLASSES = ("blue", "green", "red")
NETWORK = "mobilenetv3_small_050"


def write_images(
    root: Path, classes=CLASSES, count: int = 4, size: tuple[int, int] = (40, 30), seed=0
) -> Path:
    """Class folders of noisy images, each class brighter in its own channel."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = rng.integers(0, 160, (size[1], size[0], 3), dtype=np.uint8)
            pixels[..., label % 3] += 90
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def picture(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    """A smooth image of random colours, for which JPEG and resizing matter."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def weights_file(path, name: str = NETWORK, classes: int = 1000):
    """A network of fixed random weights and statistics, whose outputs depend on the image."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return path


def write_recipe(path: Path, data: Path, run: Path, model: dict | None = None, **changes) -> Path:
    """A recipe of three steps an epoch; ``changes`` go to data.init_args."""
    recipe = {
        "model": {
            "class_path": "botnet.classification.ClassificationModule",
            "init_args": {
                "model": "test_resnet",
                "learning_rate": 0.05,
                "warmup_epochs": 0.5,
                "label_smoothing": 0.1,
                "ema_decay": 0.9,
                "pictures": 4,
                **(model or {}),
            },
        },
        "data": {
            "class_path": "botnet.classification.ImageDataModule",
            "init_args": {
                "train": str(data / "train"),
                "val": str(data / "val"),
                "image_size": 32,
                "batch_size": 4,
                "val_batch_size": 4,
                "num_workers": 0,
                **changes,
            },
        },
        "trainer": quick_trainer(run),
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


def data_module(images: Path, **changes) -> ImageDataModule:
    """Small batches of small images."""
    settings = {"image_size": 32, "batch_size": 4, "val_batch_size": 4, "num_workers": 0} | changes
    return ImageDataModule(images / "train", images / "val", **settings)


def trainer_of(**options) -> L.Trainer:
    """A trainer of one epoch that writes nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    common = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**(common | quiet | {"enable_model_summary": False} | options))


def module_of(**options) -> ClassificationModule:
    """A small ResNet of three classes."""
    return ClassificationModule(**({"model": "test_resnet", "num_classes": 3, "image_size": 32} | options))
