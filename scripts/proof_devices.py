"""One of several devices of `make proof-gpu`, started by torchrun: `proof_devices.py DEVICE ANSWER PART ...`.

The first device adds what it finds to the file ANSWER after each part, with `wrong` where devices disagree.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

SMALL: dict[str, Any] = {
    "fpn_channels": 16, "rpn_samples": 32, "rpn_pre_nms": 50, "rpn_post_nms": 30, "roi_samples": 16,
    "box_channels": 32, "mask_channels": 16, "mask_convs": 1,
}  # fmt: skip


def scenes(number: int, canvas: int, device: torch.device) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Images of noise, each with one object more than the one before."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(number, 3, canvas, canvas, generator=random)
    targets = []
    for index in range(number):
        corners = torch.rand(index + 1, 2, generator=random) * canvas / 2
        boxes = torch.cat([corners, corners + canvas / 4], 1)
        masks = torch.zeros(index + 1, canvas, canvas, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        targets.append({"boxes": boxes, "labels": torch.ones(index + 1, dtype=torch.int64), "masks": masks})
    return images.to(device), [{name: x.to(device) for name, x in target.items()} for target in targets]


def detector(backbone: str, canvas: int, device: torch.device, **options: Any) -> nn.Module:
    from botnet.detection.rcnn import RCNN

    torch.manual_seed(0)
    network = RCNN(backbone, 3, canvas=canvas, **options).train()
    return network.to(device).to(memory_format=torch.channels_last)


def gradients(network: nn.Module, rows: list[int], canvas: int, device: torch.device) -> dict[str, Tensor]:
    """Of some of two images, by the names of the parameters."""
    images, targets = scenes(2, canvas, device)
    losses = network(images[rows], [targets[row] for row in rows], seeds=rows)
    torch.stack(list(losses.values())).sum().backward()
    return {
        name.removeprefix("module."): p.grad for name, p in network.named_parameters() if p.grad is not None
    }


def worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The greatest relative error of a tensor."""
    assert found.keys() == truth.keys()
    return max(
        float((x - truth[name]).norm() / truth[name].norm().clamp(min=1e-6)) for name, x in found.items()
    )


def step(device: torch.device, rank: int) -> dict[str, Any]:
    """The gradients of two images, one on each device, beside those of one device; norms are frozen."""
    from botnet.training.distributed import alone

    def frozen() -> nn.Module:
        network = detector("botnet_tiny", 64, device, **SMALL)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return network

    ids = [device.index] if device.type == "cuda" else None
    found = gradients(DistributedDataParallel(frozen(), ids), [rank], 64, device)
    with alone():
        truth = gradients(frozen(), [0, 1], 64, device)
    error = worst(found, truth)
    return {"error": error, "wrong": error > 1e-3}


def norms(device: torch.device, rank: int) -> dict[str, Any]:
    """A network with synchronised norms beside one device that has the whole batch."""
    import timm

    import botnet  # noqa: F401 registers the networks

    def build() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model("botnet_s1_tiny", img_size=64, num_classes=3).to(device).train()

    torch.manual_seed(1)
    images = torch.randn(8, 3, 64, 64).to(device)
    alone, shared = build(), nn.SyncBatchNorm.convert_sync_batchnorm(build())
    shared = DistributedDataParallel(shared, [device.index])
    halves = images.chunk(2)
    shared(halves[rank]).square().mean().backward()
    alone(images).square().mean().backward()
    grads, statistics = (
        [{name: pick(x) for name, x in tensors(network)} for network in (shared.module, alone)]
        for tensors, pick in (
            (nn.Module.named_parameters, lambda p: p.grad),
            (nn.Module.named_buffers, Tensor.float),
        )
    )
    states = {"gradients": worst(*grads), "statistics": worst(*statistics)}
    return states | {"wrong": max(states.values()) > 1e-3}


def stop(device: torch.device, rank: int) -> dict[str, Any]:
    """SIGTERM on the second device stops both after the same step, with a checkpoint."""
    import lightning.pytorch as L
    from lightning.pytorch.utilities.exceptions import SIGTERMException
    from torch.utils.data import DataLoader, TensorDataset

    from botnet.training.checkpoint_io import AtomicCheckpointIO
    from botnet.training.checkpoints import LastCheckpoint

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 1)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    class Kill(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 2 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    folder = Path(sys.argv[2]).parent
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LastCheckpoint(folder / "last.ckpt"), Kill()],
        plugins=AtomicCheckpointIO(),
        default_root_dir=folder,
    )
    data = DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=2)
    stopped = False
    try:
        trainer.fit(Module(), data)
    except SIGTERMException:
        stopped = True
    steps = torch.tensor([trainer.global_step, int(stopped)], device=device)
    everyone = [torch.empty_like(steps) for _ in range(2)]
    dist.all_gather(everyone, steps)
    found = [tuple(x.tolist()) for x in everyone]
    saved = (folder / "last.ckpt").exists()
    right = found[0] == found[1] and found[0][0] in (3, 4) and found[0][1] == 1 and saved
    return {"steps and stops": found, "checkpoint": saved, "wrong": not right}


def scaling(device: torch.device, rank: int) -> dict[str, Any]:
    """Images a second of BoT50 Mask R-CNN, two images on each device, beside one device."""
    from botnet.training.distributed import alone

    images, targets = scenes(2, 1024, device)

    def rate(network: nn.Module) -> float:
        optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, fused=True)
        for turn in range(13):
            if turn == 3:
                torch.cuda.synchronize()
                begin = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                losses = network(images, targets, seeds=[0, 1])
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
        torch.cuda.synchronize()
        return 20 / (time.perf_counter() - begin)

    with alone():
        one = rate(detector("botnet50", 1024, device))
    dist.barrier()
    every = rate(DistributedDataParallel(detector("botnet50", 1024, device), [device.index]))
    number = dist.get_world_size()
    return {"devices": number, "images/s of one": one, "images/s": number * every, "efficiency": every / one}


def main() -> None:
    kind, answer, *parts = sys.argv[1:]
    rank = int(os.environ["LOCAL_RANK"])
    device = torch.device(f"{kind}:{rank}" if kind == "cuda" else kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    functions: dict[str, Callable[[torch.device, int], dict[str, Any]]] = {
        "step": step,
        "norms": norms,
        "stop": stop,
        "scaling": scaling,
    }
    for part in parts:
        found = functions[part](device, rank)
        if rank == 0:
            path = Path(answer)
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | {part: found}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
