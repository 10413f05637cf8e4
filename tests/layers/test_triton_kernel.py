"""The Triton kernels without a GPU: interpreted on the CPU, and compiled for several GPUs."""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from botnet.layers.kernels import relative_attention

triton = pytest.importorskip("triton", reason="Triton is not installed; PyTorch's builds for CUDA bring it")
compiler = pytest.importorskip("triton.compiler")
GPUTarget = pytest.importorskip("triton.backends.compiler").GPUTarget
triton_kernel = pytest.importorskip("botnet.layers.triton_kernel")
choose_tiles, patch = triton_kernel.choose_tiles, triton_kernel.patch

KERNELS = {
    "forward": triton_kernel._forward_kernel,
    "query": triton_kernel._query_kernel,
    "key": triton_kernel._key_kernel,
}
# Bytes of shared memory that one block may use on an A100, an RTX 40, an H100 and an RTX 50.
SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
SPILLED = 256  # bytes of stack per thread that cost less than smaller tiles, as measured on an H200
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def interpret(*options: str) -> None:
    """Run the tests of `interpreted_triton.py` in a process that interprets the kernels."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        pytest.skip("the interpreter of Triton 3.5 fails with NumPy of today; known to work is that of 3.8")
    tests = Path(__file__).with_name("interpreted_triton.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(tests)],
        cwd=tests.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout or "[100%]" in done.stdout


@pytest.mark.long
def test_interpreted_kernels() -> None:
    interpret()


@pytest.mark.slow
def test_interpreted_kernels_on_large_maps() -> None:
    interpret("-m", "slow")


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(
    name: str,
    capability: int,
    d: int,
    dtype: torch.dtype,
    pool: int,
    size: tuple[int, int] = (64, 64),
    absent: tuple[str, ...] = (),
) -> compiler.CompiledKernel:
    """A kernel compiled for a GPU, with the tiles that would run there."""
    kernel = KERNELS[name]
    width = triton.next_power_of_2(d)
    tiles = choose_tiles(kernel, width, dtype, capability // 10)
    rows, columns = patch(size, tiles.keys)
    constants = {"QUERIES": tiles.queries, "ROWS": rows, "COLUMNS": columns, "D": d, "WIDTH": width}
    constants |= {"GROUP": pool**2, "PRECISION": "tf32x3", **dict.fromkeys(absent)}
    if name != "forward":
        constants["SHARED"] = pool**2 if tiles.queries >= 16 * pool**2 else 1
    types = {
        **dict.fromkeys(("image_stride", "head_stride", "cell_stride", "H", "W", "heads"), "i32"),
        **dict.fromkeys(("NORM", "DELTA", "GRAD_POSITION"), "*fp32"),
        **dict.fromkeys(constants, "constexpr"),
        "scale": "fp32",
    }
    signature = {argument: types.get(argument, f"*{NAMES[dtype]}") for argument in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if signature[argument].startswith("*") or argument.endswith("stride")
    }
    constants = {argument: value for argument, value in constants.items() if argument in signature}
    source = compiler.ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack(kernel: compiler.CompiledKernel, path: Path) -> int:
    """Bytes of stack per thread: registers that did not suffice."""
    file = path / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    (found,) = (word.removeprefix("STACK:") for word in usage.split() if word.startswith("STACK:"))
    return int(found)


def check(kernel: compiler.CompiledKernel, capability: int, spilled: int, path: Path) -> None:
    assert kernel.metadata.shared <= SHARED_MEMORY[capability]
    assert stack(kernel, path) <= spilled
    # Ordinary stores: nothing is added up in an order that changes from run to run.
    assert not re.search(r"\b(atom|red)\.", kernel.asm["ptx"])


@pytest.mark.long
@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize(("name", "capability"), [("forward", 90), ("query", 120), ("key", 80)])
def test_compiles_for_a_gpu(name: str, capability: int, tmp_path: Path) -> None:
    kernel = compiled(name, capability, 128, torch.bfloat16, pool=2)
    check(kernel, capability, SPILLED, tmp_path)
    matrix = {80: "mma.sync", 90: "wgmma.mma_async", 120: "mma.sync"}[capability]
    assert matrix in kernel.asm["ptx"]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize(("d", "dtype"), list(product([64, 80, 128, 256], NAMES)))
@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("name", KERNELS)
def test_fits_every_gpu(name: str, capability: int, d: int, dtype: torch.dtype, pool: int, tmp_path) -> None:
    spilled = 600 if dtype == torch.float32 else SPILLED
    check(compiled(name, capability, d, dtype, pool), capability, spilled, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("size", [(14, 14), (1, 100), (100, 1)], ids=str)
@pytest.mark.parametrize(
    "absent", [("Q", "K", "GRAD_Q", "GRAD_K"), ("POSITION", "GRAD_POSITION"), ()], ids=str
)
@pytest.mark.parametrize("name", KERNELS)
def test_fits_with_other_terms_and_maps(name, absent, size, pool, tmp_path) -> None:
    spilled = 512 if 1 in size else SPILLED  # a map of one row is no map of a network
    check(compiled(name, 80, 128, torch.float16, pool, size, absent), 80, spilled, tmp_path)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_sizes_are_known_at_run_time_only(kernel) -> None:
    """No size of a map compiles a kernel anew: it is neither a constant nor tested for being 1 or even."""
    free = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    constant = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    assert free >= {"H", "W", "heads"}
    assert not constant & free


@pytest.mark.parametrize(
    ("size", "shape"), [((64, 64), (4, 8)), ((14, 14), (2, 16)), ((1, 100), (1, 32)), ((100, 1), (32, 1))]
)
def test_patches_of_keys(size: tuple[int, int], shape: tuple[int, int]) -> None:
    assert patch(size, 32) == shape


def test_without_a_gpu() -> None:
    x = torch.randn(1, 1, 6, 16)
    with pytest.raises(
        RuntimeError, match="implementation='triton' runs on GPUs only, the tensors are on cpu"
    ):
        relative_attention(x, x, x, None, (2, 3), 0.3, implementation="triton")
