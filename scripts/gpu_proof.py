"""Prove and measure the attention layer and its networks on this machine's GPU: `make proof-gpu`.

    python scripts/gpu_proof.py                  # on the GPU, in at most about 8 minutes, without downloads
    python scripts/gpu_proof.py --parts time,detection   # some parts of it, by the names in the report
    python scripts/gpu_proof.py --device cpu     # a tiny version, in a minute

Writes build/proof/<gpu>-<commit>.json and .md: rows with PASS, FAIL or SKIPPED, what was measured, and a
proposed table for `botnet.layers.kernels.choose`. The exit status is 1 if a result is wrong, never because it
is slow. A part whose time is up skips the rest of its checks, and the report is written after each part.
"""

import argparse
import contextlib
import gc
import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import proof_training
import torch
from proof_report import FULL, TINY, Proof, Skip, write
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from botnet.layers import MHSA2d
from botnet.layers.kernels import Implementation, relative_attention

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
TERMS = {"both terms": (True, True), "content": (True, False), "position": (False, True)}
PAPER_NETWORK = 1.31  # BoT50's time of a training step at 1024 px, of R50's (Table 1)


def usable(name: str, device: torch.device) -> None:
    """Skip an implementation that this machine cannot run."""
    if name in ("triton", "flex") and device.type != "cuda":
        raise Skip("needs a GPU")


def attention(name: Implementation) -> Callable[..., Tensor]:
    """`relative_attention` by one implementation."""
    call = partial(relative_attention, implementation=name)
    if name != "flex":
        return call
    # Uncompiled it stores N x N logits, and so it does after torch's limit of compilations of one function.
    torch.compiler.reset()
    return torch.compile(call, dynamic=False)


def draw(
    proof: Proof, size: tuple[int, int], dtype: torch.dtype, terms: tuple[bool, bool] = (True, True)
) -> tuple[Any, ...]:
    """Inputs of 2 images and 2 heads, laid out as the layer has them."""
    torch.manual_seed(0)
    tokens, d = size[0] * size[1], proof.scale.width
    qkv = torch.randn(2, tokens, 3, 2, d, device=proof.device).to(dtype).unbind(2)
    q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in qkv)
    position = torch.randn(2, 2, tokens, sum(size), device=proof.device).to(dtype).requires_grad_()
    return q, k if terms[0] else None, v, position if terms[1] else None


def with_gradients(
    call: Callable[..., Tensor], inputs: Any, size: tuple[int, int], pool: int
) -> list[Tensor]:
    """The output and the gradients of all inputs that it depends on, for one upstream gradient."""
    out = call(*inputs, size, inputs[2].shape[-1] ** -0.5, pool)
    torch.manual_seed(1)
    upstream = torch.randn(out.shape, dtype=torch.float32).to(out)
    used = [x for x in (inputs if inputs[1] is not None else inputs[2:]) if x is not None]
    return [out.detach(), *torch.autograd.grad(out, used, upstream)]


def environment(proof: Proof) -> None:
    def versions() -> dict[str, Any]:
        found: dict[str, Any] = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": sys.version.split()[0],
        }
        if proof.gpu:
            properties = torch.cuda.get_device_properties(proof.device)
            found |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
            found |= {"GiB": properties.total_memory / 2**30, "gpus": torch.cuda.device_count()}
        return found

    def product_rate(dtype: torch.dtype) -> dict[str, Any]:
        side = 8192 if proof.gpu else 128
        a, b = (torch.randn(side, side, device=proof.device).to(dtype) for _ in range(2))
        return {"TFLOP/s": 2e-9 * side**3 / proof.milliseconds(lambda: a @ b)}

    def copy_rate() -> dict[str, Any]:
        source = torch.zeros(2**28 if proof.gpu else 2**16, device=proof.device)
        target = torch.empty_like(source)
        return {"GB/s": 8e-6 * source.numel() / proof.milliseconds(lambda: target.copy_(source))}

    proof.row("machine", "versions", versions)
    for name, dtype in DTYPES.items():
        proof.row("machine", f"matrix product, {name}", partial(product_rate, dtype))
    proof.row("machine", "copy", copy_rate)


def kernels_of_sdpa(proof: Proof) -> None:
    """Which kernel torch takes, and that its memory stays linear."""

    def run(size: tuple[int, int], dtype: torch.dtype, training: bool) -> Callable[[], Any]:
        inputs = draw(proof, size, dtype)
        if training:
            return lambda: with_gradients(attention("sdpa"), inputs, size, 1)
        return torch.no_grad()(lambda: attention("sdpa")(*inputs, size, 0.1, 1))

    def check(side: int, dtype: torch.dtype, training: bool) -> dict[str, Any]:
        call = run((side, side), dtype, training)
        with profile(activities=[ProfilerActivity.CPU]) as record:
            call()
        names = {event.name for event in record.events()}
        found = sorted(
            name.removeprefix("aten::_scaled_dot_product_")
            for name in names
            if re.fullmatch(r"aten::_scaled_dot_product_\w*attention\w*", name) and "backward" not in name
        )
        assert side**2 <= 1024 or not any("math" in name for name in found), f"the formula: {found}"
        result: dict[str, Any] = {"kernel": " ".join(found)}
        if proof.gpu and side**2 > 1024:
            # Wider maps have wider heads too: growth is that of memory beyond the inputs'.
            growth = proof.peak_bytes(run((side, 2 * side), dtype, training)) / proof.peak_bytes(call)
            wider = (proof.scale.width + 3 * side) / (proof.scale.width + 2 * side)
            result["growth"] = growth / wider
            assert growth / wider <= 2.3, f"twice the cells, {growth / wider:.2f} times the memory"
        return result

    for side, (name, dtype), training in product(proof.scale.sides, DTYPES.items(), (True, False)):
        case = f"{side}x{side} {name} {'training' if training else 'inference'}"
        proof.row("sdpa", case, partial(check, side, dtype, training))


def correctness(proof: Proof) -> None:
    """Every implementation against the formula in float64; unwritten memory is NaN."""

    def check(
        name: Implementation, size: tuple[int, int], dtype: str, terms: tuple[bool, bool], pool: int
    ) -> dict[str, Any]:
        usable(name, proof.device)
        inputs = draw(proof, size, DTYPES[dtype], terms)
        exact = tuple(None if x is None else x.detach().double().requires_grad_() for x in inputs)
        found = with_gradients(attention(name), inputs, size, pool)
        truth = with_gradients(attention("reference"), exact, size, pool)
        errors = [
            float((x.double() - y).norm() / y.norm().clamp(min=1e-6))
            for x, y in zip(found, truth, strict=True)
        ]
        worst = max(errors)
        assert worst <= TOLERANCES[dtype], f"relative error {worst:.2g}, allowed {TOLERANCES[dtype]:.2g}"
        if name == "triton":
            again = with_gradients(attention(name), inputs, size, pool)
            assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True)), "not deterministic"
        return {"error": worst}

    torch.use_deterministic_algorithms(True, warn_only=True)
    for name, size, dtype, (label, terms), pool in product(
        proof.scale.implementations, proof.scale.sizes, DTYPES, TERMS.items(), (1, 2)
    ):
        # Each combination is compiled: all sizes and dtypes with both terms, FlexAttention at one size.
        first = size == proof.scale.sizes[0]
        if not first and (name == "flex" or label != "both terms"):
            continue
        case = f"{name} {size[0]}x{size[1]} {dtype} {label} pool {pool}"
        proof.row("correctness", case, partial(check, name, size, dtype, terms, pool))
    torch.use_deterministic_algorithms(False)


def layers(proof: Proof) -> None:
    """The layer under autocast, compiled whole, and in channels_last."""

    def check(name: Implementation, stride: int, compiled: bool) -> dict[str, Any]:
        usable(name, proof.device)
        torch.manual_seed(0)
        dim, size = 2 * proof.scale.width, proof.scale.sizes[0]
        layer = MHSA2d(dim, 2, stride, feat_size=size, qkv_std="fan_in").to(proof.device)
        layer.implementation = name
        x = torch.randn(2, dim, *size, device=proof.device).to(memory_format=torch.channels_last)
        backend = "inductor" if proof.gpu else "aot_eager"
        call = torch.compile(layer, fullgraph=True, backend=backend) if compiled else layer
        with torch.autocast(proof.device.type, torch.bfloat16):
            out = call(x)
        assert out.dtype == torch.bfloat16, out.dtype
        assert out.is_contiguous(memory_format=torch.channels_last), "channels_last is lost"
        out.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
        layer.implementation = "reference"
        truth = layer.double()(x.double())
        error = ((out.double() - truth).norm() / truth.norm()).item()
        assert error <= 2e-2, f"relative error {error:.2g}"
        return {"error": error}

    for name, stride, compiled in product(proof.scale.implementations, (1, 2), (False, True)):
        case = f"{name} stride {stride} {'compiled' if compiled else 'eager'}"
        proof.row("layer", case, partial(check, name, stride, compiled))


def peers(side: int) -> dict[str, Callable[[], Any]]:
    """Constructors of the layer of each implementation, and of other packages' layers."""

    torch.compiler.reset()  # its limit of compilations of one function

    def own(name: Implementation) -> Any:
        layer = MHSA2d(512, 4, feat_size=(side, side))
        layer.implementation = name
        return torch.compile(layer, dynamic=False) if name == "flex" else layer

    def timm() -> nn.Module:
        from timm.layers.bottleneck_attn import BottleneckAttn

        return BottleneckAttn(512, feat_size=(side, side), num_heads=4, scale_pos_embed=True)

    def pypi() -> nn.Module:
        from bottleneck_transformer_pytorch.bottleneck_transformer_pytorch import Attention

        return Attention(dim=512, fmap_size=(side, side), heads=4, dim_head=128, rel_pos_emb=True)

    names: tuple[Implementation, ...] = ("sdpa", "triton", "flex", "reference")
    found: dict[str, Callable[[], Any]] = {name: partial(own, name) for name in names}
    found |= {"timm": timm, "pypi": pypi}
    if side == 64:
        found["timm compiled"] = lambda: torch.compile(timm(), dynamic=False)
        found["pypi compiled"] = lambda: torch.compile(pypi(), dynamic=False)
    return found


def timings(proof: Proof) -> None:
    """Time and memory of the layer beside its peers, in bfloat16."""

    def measure(name: str, build: Callable[[], Any], side: int, batch: int, training: bool) -> dict[str, Any]:
        usable(name, proof.device)
        layer = build().to(proof.device, torch.bfloat16)
        x = torch.randn(batch, 512, side, side, device=proof.device, dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last).requires_grad_(training)

        def call() -> None:
            with torch.set_grad_enabled(training):
                out = layer(x)
            if training:
                torch.autograd.grad(out.sum(), [x, *layer.parameters()], allow_unused=True)

        result: dict[str, Any] = {"ms": proof.milliseconds(call)}
        if proof.gpu:
            result["MB"] = proof.peak_bytes(call) / 1e6
        return result

    # What is compiled comes last.
    for compiled, (side, batch), training in product((False, True), proof.scale.timed, (True, False)):
        for name, build in peers(side).items():
            if compiled == (name == "flex" or "compiled" in name):
                case = f"{side}x{side} batch {batch} {'training' if training else 'inference'}: {name}"
                proof.row("time", case, partial(measure, name, build, side, batch, training))
        gc.collect()
        torch.cuda.empty_cache()


def backbones(proof: Proof) -> None:
    """BoT50 beside R50."""

    def measure(name: str, image: int, training: bool, compiled: bool) -> dict[str, Any]:
        import timm

        import botnet  # noqa: F401 registers the networks

        options: dict[str, Any] = {"img_size": image} if name == "botnet50" else {}
        net = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), **options)
        net = net.to(proof.device).to(memory_format=torch.channels_last).train(training)
        call = torch.compile(net, dynamic=False) if compiled else net
        x = torch.randn(2, 3, image, image, device=proof.device).to(memory_format=torch.channels_last)

        def step() -> None:
            with torch.set_grad_enabled(training), torch.autocast(proof.device.type, torch.bfloat16):
                total = sum(level.float().mean() for level in call(x))
            if training:
                torch.autograd.grad(total, list(net.parameters()), allow_unused=True)

        return {"ms": proof.milliseconds(step)}

    for compiled, image, training in product((False, True), proof.scale.images, (True, False)):
        found = [
            proof.row(
                "network",
                f"{name} {image} batch 2 {'training' if training else 'inference'}"
                f"{' compiled' if compiled else ''}",
                partial(measure, name, image, training, compiled),
            )
            for name in ("resnet50", "botnet50")
        ]
        if all("ms" in row for row in found):
            found[1]["of R50's time"] = found[1]["ms"] / found[0]["ms"]
            if training and image == 1024:
                found[1]["paper"] = PAPER_NETWORK


# The parts in their order, and how many seconds each may take on a GPU before it starts no further check.
PARTS: dict[str, tuple[Callable[[Proof], None], float]] = {
    "machine": (environment, 15),
    "detection": (proof_training.detection, 60),
    "training": (proof_training.training, 75),
    "correctness": (correctness, 45),
    "time": (timings, 60),
    "network": (backbones, 60),
    "family": (proof_training.family, 25),
    "sdpa": (kernels_of_sdpa, 30),
    "loading": (proof_training.loading, 30),
    "layer": (layers, 20),
    "devices": (proof_training.devices, 90),
}
# Timed before other processes use the machine, too; the training, which is not timed, runs beside them.
FIRST = ("machine", "detection")


def check_one(part: str, case: str) -> tuple[str, str, dict[str, Any]]:
    """The outcome of one case, in a process of its own."""
    proof = Proof(torch.device("cuda"), FULL._replace(rounds=1), 600, only=[case])
    with contextlib.redirect_stdout(io.StringIO()):
        PARTS[part][0](proof)
    return part, case, proof.rows[0]


class Ahead:
    """Processes that check what is correct, and compile what is timed later: torch caches it on disk.

    Args:
        proof: gets the outcomes.
        parts: that will be run.
    """

    def __init__(self, proof: Proof, parts: Collection[str]) -> None:
        # Each compiles in its own thread.
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        self.pool = get_context("spawn").Pool(max(1, min(12, (os.cpu_count() or 1) - 2)))
        del os.environ["TORCHINDUCTOR_COMPILE_THREADS"]
        self.proof = proof
        self.jobs = [
            self.pool.apply_async(check_one, (part, case))
            for part in ("network", "time", "layer", "correctness")
            if part in parts
            for case in self._cases(part)
            if part == "correctness" or "compiled" in case or "flex" in case
        ]

    def _cases(self, part: str) -> list[str]:
        listing = Proof(self.proof.device, self.proof.scale, 0, only=[])
        PARTS[part][0](listing)
        return listing.cases

    def finish(self, seconds: float) -> None:
        """Wait for the outcomes, but not longer than this."""
        if not self.jobs:
            return
        end, done = time.monotonic() + seconds, 0
        for job in self.jobs:
            with contextlib.suppress(Exception):  # no time left, or the process died
                part, case, row = job.get(max(end - time.monotonic(), 0))
                done += 1
                if part == "correctness":
                    self.proof.done[part, case] = row
        self.pool.terminate()
        print(f"{done} of {len(self.jobs)} cases were checked or compiled by other processes", flush=True)
        self.jobs = []


def parts_of(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--parts", type=parts_of, help=f"some of {','.join(PARTS)}; default: all")
    parser.add_argument("--minutes", type=float, help="no check starts later; default: 7.5 on a GPU")
    parser.add_argument("--out", type=Path, default=Path("build/proof"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU: see `python -m torch.utils.collect_env`, or try --device cpu")
    gpu = args.device == "cuda"
    limit = 60 * (args.minutes or (7.5 if gpu else math.inf))
    proof = Proof(torch.device(args.device), FULL if gpu else TINY, limit)
    names = [name for name in PARTS if name in (args.parts or PARTS)]
    ahead = None
    for name in names:
        part, seconds = PARTS[name]
        if proof.gpu and ahead is None and name not in FIRST:
            ahead = Ahead(proof, names)
        if ahead is not None and name != "training":
            ahead.finish(60)
        proof.allow(seconds if gpu and not args.parts else limit)
        proof.run(name, part)
        path = write(proof, args.out)
    print(f"written: {path}")
    sys.exit(any(row["status"] == "FAIL" for row in proof.rows))


if __name__ == "__main__":
    main()
