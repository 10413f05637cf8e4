"""Parts of `make proof-gpu` about training: detectors, precisions, loading, the largest networks, devices."""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image
from proof_report import Proof, Skip
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
CLASSES = 80
PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
NEED_GPUS = ("norms", "scaling")  # torch synchronises batch norms on GPUs only
PAPER_FAMILY = 1.64  # EfficientNet-B7's time at 600 px, of T7's at 384 px (Section 4.7.4)


# ---- detectors


def detectors(proof: Proof) -> dict[str, Callable[[], nn.Module]]:
    """Constructors of Mask R-CNN: ours on a ResNet and on a BoTNet, and torchvision's."""
    canvas = proof.scale.canvas

    def ours(backbone: str) -> nn.Module:
        from botnet.detection.rcnn import RCNN

        return RCNN(backbone, CLASSES, canvas=canvas, **proof.scale.detector_options)

    def theirs() -> nn.Module:
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        return maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=CLASSES + 1,
            min_size=canvas,
            max_size=canvas,
            rpn_post_nms_top_n_train=1000,
            box_batch_size_per_image=proof.scale.detector_options.get("roi_samples", 512),
        )

    resnet, botnet = proof.scale.detectors
    return {"R50, torchvision": theirs, "R50": partial(ours, resnet), "BoT50": partial(ours, botnet)}


def detection_step(
    proof: Proof,
    network: nn.Module,
    batch: int,
    dtype: torch.dtype,
    *,
    fixed: bool = True,
    rate: float = 1e-4,
) -> Callable[[], Tensor]:
    """One training step, which returns its loss.

    Args:
        proof: the device and the canvas.
        network: a detector.
        batch: images.
        dtype: of autocast.
        fixed: all detectors train on the same proposals, of which more than the sampled ones are positive.
        rate: of SGD.
    """
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.append(str(ROOT / "benchmarks"))
    from step import around, example

    canvas, device = proof.scale.canvas, proof.device
    network.to(device).to(memory_format=torch.channels_last).train()
    scaled = dtype == torch.float16
    # As the training has it: torch's fused SGD is wrong where the scaler skips the first step.
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, fused=None if scaled else True)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    image, target = example(canvas, device)
    ours = hasattr(network, "fpn")
    images: Any = [image] * batch
    if ours:
        images = torch.stack(images).contiguous(memory_format=torch.channels_last)
    seeds = {"seeds": list(range(batch))} if ours else {}
    if fixed:
        proposals = [around(target["boxes"], canvas)] * batch
        network.rpn.register_forward_hook(lambda module, inputs, output: (proposals, output[1]))  # type: ignore[union-attr]

    def run() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = network(images, [target] * batch, **seeds)
        total = torch.stack(list(losses.values())).sum()
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        return total.detach()

    return run


def waits(call: Callable[[], Any]) -> Counter[str]:
    """How often, and where, the host waits for the GPU in a call."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            found[place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def place() -> str:
    """File and line that the present call comes from: torchvision's, if there is one, and botnet's."""
    lines: dict[str, str] = {}
    for frame in traceback.extract_stack():
        parts = Path(frame.filename).parts
        package = next((name for name in ("torchvision", "botnet") if name in parts), "")
        if package:
            start = len(parts) - 1 - parts[::-1].index(package)
            lines[package] = f"{'/'.join(parts[start:])}:{frame.lineno}"
    return " in ".join(lines[name] for name in ("torchvision", "botnet") if name in lines) or "elsewhere"


def detection(proof: Proof) -> None:
    """Training steps of Mask R-CNN beside torchvision's, and where the host waits for the GPU.

    In bfloat16, which CPUs may only emulate: there in float32.
    """

    def measure(build: Callable[[], nn.Module], batch: int) -> dict[str, Any]:
        torch.manual_seed(0)
        step = detection_step(proof, build(), batch, torch.bfloat16 if proof.gpu else torch.float32)
        milliseconds = proof.milliseconds(step)
        assert step().isfinite(), "the loss is not finite"
        result: dict[str, Any] = {"ms": milliseconds, "images/s": 1e3 * batch / milliseconds}
        if proof.gpu:
            places = waits(step)
            result |= {"MB": proof.peak_bytes(step) / 1e6, "waits": places.total()}
            result["at"] = "; ".join(f"{count}x {where}" for where, count in places.most_common())
        return result

    for batch in proof.scale.batches:
        rows = {
            name: proof.row(
                "detection", f"{name} {proof.scale.canvas} px batch {batch}", partial(measure, build, batch)
            )
            for name, build in detectors(proof).items()
        }
        for name, other in (("R50", "R50, torchvision"), ("BoT50", "R50")):
            if "ms" in rows[name] and "ms" in rows[other]:
                rows[name][f"of {other}'s time"] = rows[name]["ms"] / rows[other]["ms"]


# ---- precisions


def write_classes(root: Path, images: int, side: int) -> None:
    """Two folders, train and val, of four classes, which differ in colour."""
    random = np.random.default_rng(0)
    for split, number in (("train", images), ("val", 4)):
        for index in range(number):
            kind = index % 4
            pixels = random.integers(0, 128, (side, side, 3), np.uint8)
            pixels[..., kind % 3] += 64 + 60 * (kind == 3)
            folder = root / split / "abcd"[kind]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index // 4}.jpg")


def check_falls(losses: list[float], steps: int) -> dict[str, Any]:
    """The mean loss of the first and of the last third of a run."""
    assert len(losses) == steps, f"{len(losses)} of {steps} steps"
    first, last = mean(losses[: steps // 3]), mean(losses[-(steps // 3) :])
    assert last < 0.95 * first, f"the loss does not fall: {first:.3g}, then {last:.3g}"
    return {"first loss": first, "last loss": last}


def check_same(found: Tensor, truth: Tensor, most: float) -> float:
    """The relative error of what another device computes."""
    error = float((found.cpu() - truth.cpu()).norm() / truth.norm())
    assert error <= most, f"relative error {error:.2g}"
    return error


def training(proof: Proof) -> None:
    """Steps in each precision with a falling loss, an infinite loss, and a checkpoint read on the CPU."""
    steps = 30 if proof.gpu else 8
    tf32 = torch.backends.cudnn.allow_tf32
    with tempfile.TemporaryDirectory() as folder:
        for precision, dtype in PRECISIONS.items():
            checkpoint = Path(folder) / f"{precision}.ckpt"
            for case, check in {
                f"detector, {steps} steps in {precision}": partial(train_detector, proof, dtype, steps),
                f"classifier, {steps} steps in {precision}": partial(
                    train_classifier, proof, precision, steps, Path(folder) / "images", checkpoint
                ),
                f"an infinite loss in {precision}": partial(
                    stop_at_infinity, proof, precision, steps, Path(folder) / "images"
                ),
            }.items():
                proof.row("training", case, check if proof.gpu or dtype == torch.bfloat16 else needs_gpu)
            torch.backends.cudnn.allow_tf32 = False
            proof.row(
                "training", f"checkpoint of {precision} on the CPU", partial(read_on_cpu, proof, checkpoint)
            )
            torch.backends.cudnn.allow_tf32 = tf32


def needs_gpu() -> dict[str, Any]:
    raise Skip("needs a GPU")


def train_detector(proof: Proof, dtype: torch.dtype, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    network = detectors(proof)["BoT50"]()
    step = detection_step(proof, network, 2, dtype, fixed=False, rate=0.01)
    return check_falls([float(step()) for _ in range(steps)], steps)


def classifier_run(
    proof: Proof, precision: Any, steps: int, images: Path, infinite_at: int | None = None
) -> tuple[Any, Any, list[float]]:
    """A module, its trainer and the losses, which are appended while it trains; not started yet."""
    import lightning.pytorch as L

    from botnet.classification.datamodule import ImageDataModule
    from botnet.classification.module import ClassificationModule
    from botnet.training.finite_loss import FiniteLoss

    class Module(ClassificationModule):
        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = super().training_step(batch, index)
            return loss * torch.inf if self.global_step == infinite_at else loss

    losses: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    name, side, batch = proof.scale.classifier
    if not images.exists():
        write_classes(images, 2 * batch, side)
    L.seed_everything(0, verbose=False)
    data = ImageDataModule(
        images / "train",
        images / "val",
        image_size=side,
        scale=(0.5, 1.0),
        batch_size=batch,
        num_workers=0,
    )
    module = Module(name, 4, side, learning_rate=0.02, warmup_epochs=1)
    trainer = L.Trainer(
        accelerator="gpu" if proof.gpu else "cpu",
        devices=1,
        precision=precision,
        max_epochs=steps // 2,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FiniteLoss(), Watch()],
        default_root_dir=images.parent,
    )
    return (module, data), trainer, losses


def train_classifier(
    proof: Proof, precision: str, steps: int, images: Path, checkpoint: Path
) -> dict[str, Any]:
    (module, data), trainer, losses = classifier_run(proof, precision, steps, images)
    trainer.fit(module, data)
    trainer.save_checkpoint(checkpoint)
    return check_falls(losses, steps)


def stop_at_infinity(proof: Proof, precision: str, steps: int, images: Path) -> dict[str, Any]:
    from botnet.errors import TrainingError

    (module, data), trainer, losses = classifier_run(proof, precision, steps, images, infinite_at=3)
    before: dict[str, Tensor] = {}

    def note(hooked: Any, batch: Any, index: int) -> None:
        if trainer.global_step == 3:
            before.update({name: p.detach().clone() for name, p in module.named_parameters()})

    module.on_train_batch_start = lambda batch, index: note(None, batch, index)
    try:
        trainer.fit(module, data)
    except TrainingError as error:
        message = str(error)
    else:
        raise AssertionError("the run was not stopped")
    assert "step 3 " in message, message
    changed = [name for name, p in module.named_parameters() if not torch.equal(p.cpu(), before[name].cpu())]
    assert not changed, f"the weights have changed: {changed[:3]}"
    return {"losses before": len(losses)}


def read_on_cpu(proof: Proof, checkpoint: Path) -> dict[str, Any]:
    from botnet.classification.checkpoint import load_classifier

    if not checkpoint.exists():
        raise Skip("there is no checkpoint")
    network, _ = load_classifier(checkpoint)
    torch.manual_seed(0)
    side = proof.scale.classifier[1]
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        here = network(images)
        there = network.to(proof.device)(images.to(proof.device))
    return {"error": check_same(there, here, 1e-3)}


# ---- loading


def rate_of(proof: Proof, loader: Iterable[Any], batch: int) -> float:
    """Images a second of a loader, once all of its workers are busy; its data are read as often as needed."""
    skipped, seconds = (64, 5.0) if proof.gpu else (1, 1.0)
    begin, seen = 0.0, 0
    for _ in chain.from_iterable(repeat(loader)):
        seen += 1
        if seen == skipped:
            begin = time.perf_counter()
        elif seen > skipped and time.perf_counter() - begin > seconds:
            break
    return batch * (seen - skipped) / (time.perf_counter() - begin)


def linked(files: list[Path], number: int) -> None:
    """Let further names 0.jpg, 1.jpg, ... stand for some files in the same folder."""
    for index in range(len(files), number):
        os.link(files[index % len(files)], files[0].with_name(f"{index}.jpg"))


def loading(proof: Proof) -> None:
    """Images that the loaders offer a second, beside those that the training consumes."""

    def ratio(offered: float, milliseconds: float, batch: int) -> dict[str, Any]:
        consumed = 1e3 * batch / milliseconds
        return {"offered": offered, "consumed": consumed, "ratio": offered / consumed}

    def classes(folder: Path) -> dict[str, Any]:
        from botnet.classification.datamodule import ImageDataModule

        name, side, batch = proof.scale.classifier
        write_classes(folder, 64, 2 * side)
        for kind in (folder / "train").iterdir():
            linked(sorted(kind.iterdir()), proof.scale.files // 4)
        data = ImageDataModule(
            folder / "train",
            folder / "val",
            image_size=side,
            batch_size=batch,
            num_workers=None if proof.gpu else 0,
        )
        offered = rate_of(proof, data.train_dataloader(), batch)
        return ratio(offered, proof.milliseconds(classifier_step(proof, name, side, batch)), batch)

    def instances(folder: Path) -> dict[str, Any]:
        from botnet.detection.datamodule import CocoDataModule

        batch = proof.scale.batches[-1]
        write_instances(folder, proof.scale.files)
        files = (folder / "instances.json", folder / "images")
        data = CocoDataModule(
            *files,
            *files,
            canvas=proof.scale.canvas,
            batch_size=batch,
            num_workers=None if proof.gpu else 0,
            cache=False,
        )
        offered = rate_of(proof, data.train_dataloader(), batch)
        step = detection_step(
            proof, detectors(proof)["BoT50"](), batch, torch.bfloat16 if proof.gpu else torch.float32
        )
        return ratio(offered, proof.milliseconds(step), batch)

    with tempfile.TemporaryDirectory() as folder:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        for case, check in {"classes": classes, "instances": instances}.items():
            proof.row("loading", f"{case}, {workers} cores", partial(check, Path(folder) / case))


def write_instances(root: Path, images: int) -> None:
    """An instances file and its photographs' stand-ins, of 640 x 480 pixels with seven objects each."""
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    records = []
    annotations: list[dict[str, Any]] = []
    for index in range(images):
        if index < 32:
            coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8))
            coarse.resize((640, 480), Image.Resampling.BICUBIC).save(root / "images" / f"{index}.jpg")
        records.append({"id": index, "file_name": f"{index}.jpg", "height": 480, "width": 640})
        for _ in range(7):
            width, height = random.integers(20, 300, 2).tolist()
            x, y = int(random.integers(0, 640 - width)), int(random.integers(0, 480 - height))
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            outline = np.stack(
                [x + width * (1 + np.cos(angles)) / 2, y + height * (1 + np.sin(angles)) / 2], 1
            )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [outline.round(1).ravel().tolist()],
                }
            )
    linked([root / "images" / f"{index}.jpg" for index in range(min(32, images))], images)
    contents = {"images": records, "categories": [{"id": 1, "name": "ellipse"}], "annotations": annotations}
    (root / "instances.json").write_text(json.dumps(contents))


# ---- the largest networks


def classifier_step(proof: Proof, name: str, side: int, batch: int) -> Callable[[], None]:
    """A training step of a classifier in bfloat16."""
    import timm

    import botnet  # noqa: F401 registers the networks
    from botnet.models.zoo import NETWORKS

    options: dict[str, Any] = {"img_size": side} if name in NETWORKS else {}
    network = (
        timm.create_model(name, **options).to(proof.device).to(memory_format=torch.channels_last).train()
    )
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, fused=True)
    images = torch.randn(batch, 3, side, side, device=proof.device).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64, device=proof.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(proof.device.type, torch.bfloat16):
            logits = network(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def family(proof: Proof) -> None:
    """T7 at 384 px beside EfficientNet-B7 at 600 px."""

    batch = proof.scale.family_batch
    if proof.gpu and torch.cuda.get_device_properties(proof.device).total_memory > 60e9:
        batch *= 4  # where it fits, so that no kernel is too small for the GPU

    def measure(name: str, side: int) -> dict[str, Any]:
        milliseconds = proof.milliseconds(classifier_step(proof, name, side, batch))
        return {"ms": milliseconds, "images/s": 1e3 * batch / milliseconds}

    ours, theirs = (
        proof.row("family", f"{name} {side} px batch {batch}", partial(measure, name, side))
        for name, side in proof.scale.family
    )
    if "ms" in ours and "ms" in theirs:
        theirs["of T7's time"] = theirs["ms"] / ours["ms"]
        theirs["paper"] = PAPER_FAMILY


# ---- several devices


def devices(proof: Proof) -> None:
    """Several devices beside one, in processes of their own; on the CPU what does not need GPUs."""
    number = torch.cuda.device_count() if proof.gpu else 2
    found: dict[str, Any] = {}
    errors = ""
    if number > 1:
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.json"
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
            worker = [str(ROOT / "scripts" / "proof_devices.py"), proof.device.type, str(answer)]
            for count, parts in ((2, ("step", "norms", "stop")), (number, ("scaling",))):
                chosen = [part for part in parts if proof.gpu or part not in NEED_GPUS]
                if chosen:
                    done = subprocess.run(
                        [*launcher, str(count), *worker, *chosen],
                        capture_output=True,
                        text=True,
                        timeout=180,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                    )
                    errors += done.stderr[-500:] if done.returncode else ""
            found = json.loads(answer.read_text()) if answer.exists() else {}

    def check(part: str) -> dict[str, Any]:
        if number < 2 or (not proof.gpu and part in NEED_GPUS):
            raise Skip("needs two GPUs")
        assert part in found, errors
        assert not found[part].pop("wrong", None), found[part]
        return found[part]

    for part in ("step", "norms", "stop", "scaling"):
        proof.row("devices", part, partial(check, part))
