"""Check that two devices do what one does: a training step on two images, and a validation of three.

    python scripts/ddp.py COCO_BY          a folder with instances_val.json and images/

The devices are CPU processes that communicate over gloo, started by torchrun. Norms are frozen: torch
synchronises batch norms on GPUs only. Every parameter is compared after the step; after an evaluation through
the same wrapper, the twelve numbers, every record of the results and the pictures' names.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from botnet.detection import CocoDataModule, DetectionModule, mask_rcnn

SMALL: dict[str, Any] = {
    "fpn_channels": 16, "rpn_samples": 32, "rpn_pre_nms": 50, "rpn_post_nms": 30, "rpn_pre_nms_eval": 50,
    "rpn_post_nms_eval": 30, "roi_samples": 16, "box_channels": 32, "mask_channels": 16, "mask_convs": 1,
}  # fmt: skip


class FrozenNorms(Callback):
    """Freezes every batch norm: each image's forward pass then depends on that image alone."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        for module in pl_module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def run(instances: Path, images: Path, canvas: int, backbone: str, batch: int, folder: Path) -> None:
    """A step of ``batch`` images and a validation on one device of WORLD_SIZE, into ``folder``."""
    devices, of_machine = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    options: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": of_machine,
        "num_nodes": devices // of_machine,
        "strategy": "ddp" if devices > 1 else "auto",
        "limit_train_batches": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }

    def fit(learning_rate: float, **more: Any) -> tuple[dict[str, Tensor], DetectionModule]:
        """The detector's state before, and the module after."""
        L.seed_everything(0)
        data = CocoDataModule(
            instances, images, instances, images,
            canvas=canvas, jitter=(0.8, 1.25), batch_size=batch // devices, val_batch_size=1, num_workers=0,
        )  # fmt: skip
        small = SMALL if backbone == "botnet_tiny" else {}
        # An untrained detector has low scores; its detections are compared all the same.
        detector = mask_rcnn(backbone, data.num_classes, canvas=canvas, score_threshold=0.0, **small)
        before = {name: value.clone() for name, value in detector.state_dict().items()}
        module = DetectionModule(detector, learning_rate, warmup_learning_rate=learning_rate, pictures=2)
        trainer = L.Trainer(callbacks=[FrozenNorms()], **{**options, "max_epochs": 1, **more})
        trainer.fit(module, data)
        return before, module

    first = int(os.environ.get("RANK", 0)) == 0
    before, module = fit(0.0067, limit_val_batches=0)
    if first:
        torch.save({"before": before, "after": module.detector.state_dict()}, folder / "step.pt")
    fit(1e-30)  # the parameters stay as they are


def prove(
    instances: Path, images: Path, canvas: int, backbone: str, folder: Path, machines: int = 1
) -> dict[str, Any]:
    """Run on one device and on two of each machine, and compare.

    A step sees as many of the first images as there are devices; one more is validated.

    Returns:
        ``moved``, the greatest change of a parameter in the step on one device; ``apart``, the greatest
        difference between the two steps; ``same``, whether each part of the validation is equal; and
        ``records``, the number of results.
    """
    alone, two = folder / "one", folder / "two"
    for place in (alone, two):
        place.mkdir(parents=True)
    truth = json.loads(instances.read_text())
    devices = 2 * machines
    truth["images"] = truth["images"][: devices + 1]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [record for record in truth["annotations"] if record["image_id"] in kept]
    instances = folder / "instances.json"
    instances.write_text(json.dumps(truth))
    # The same number of threads in both: it changes the rounding of products.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(instances, images, canvas, backbone, devices, alone)
    finally:
        torch.set_num_threads(threads)
    arguments = [str(instances), str(images), str(canvas), backbone, str(devices), str(two)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ["--master_addr", "127.0.0.1", "--master_port", str(free.getsockname()[1])]
    launched = []
    for machine in range(machines):
        of_machine = [
            "--nnodes",
            str(machines),
            "--node_rank",
            str(machine),
            "--nproc_per_node",
            "2",
            *address,
        ]
        command = [sys.executable, "-m", "torch.distributed.run", *of_machine, __file__, *arguments]
        launched.append(subprocess.Popen(command, env=environment))
    codes = [process.wait(3600) for process in launched]
    if any(codes):
        raise RuntimeError("a process failed")
    one, other = (torch.load(place / "step.pt", weights_only=True) for place in (alone, two))
    names = ("metrics.json", "results_bbox.json", "results_segm.json")
    same = {name: (alone / name).read_bytes() == (two / name).read_bytes() for name in names}
    pictures = [sorted(path.name for path in (place / "pictures").iterdir()) for place in (alone, two)]
    return {
        "moved": apart(one["before"], one["after"]),
        "apart": apart(one["after"], other["after"]),
        "same": same | {"pictures": pictures[0] == pictures[1]},
        "records": len(json.loads((two / "results_bbox.json").read_text())),
    }


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The greatest difference between two states."""
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("coco_by", type=Path)
    parser.add_argument("--canvas", type=int, default=1024)
    parser.add_argument("--backbone", default="botnet50")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        proof = prove(
            args.coco_by / "instances_val.json",
            args.coco_by / "images",
            args.canvas,
            args.backbone,
            Path(folder),
        )
    print(
        f"one step with a batch of 2: 2 devices' parameters differ from those of 1 by up to "
        f"{proof['apart']:.1e}; the step itself moves them by up to {proof['moved']:.1e}"
    )
    for what, equal in proof["same"].items():
        print(f"validation on 1 and on 2 devices, {what}: {'the same' if equal else 'DIFFERENT'}")
    if proof["apart"] > 1e-6 or not all(proof["same"].values()):
        sys.exit("one device and two devices differ")


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # started by torchrun, from prove()
        instances, images, canvas, backbone, batch, folder = sys.argv[1:]
        run(Path(instances), Path(images), int(canvas), backbone, int(batch), Path(folder))
    else:
        main()
