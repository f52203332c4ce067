"""The device to run on, its precision and its peak speed."""

from __future__ import annotations

import contextlib
import re
import time
from contextlib import AbstractContextManager

import torch

from pipeline.config.errors import UserError
from pipeline.config.params import Runtime
from pipeline.distributed.world import World, world
from pipeline.model.linear import linear
from pipeline.runtime.memory import keep_freed_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Dense bfloat16 / float16 tensor-core rates in FLOP/s, from NVIDIA's data sheets.
GPU_PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A6000": 155e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def use_device(runtime: Runtime) -> torch.device:
    """Set up and return the device that `runtime` names. Raises UserError if this machine lacks it."""
    keep_freed_memory()
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    device = torch.device(_best_device_type() if runtime.device == "auto" else runtime.device)
    ranks = world()
    if device.type == "cuda" and ranks.size > 1:
        device = _own_gpu(ranks, runtime.device)
    if device.type == "mps" and ranks.size > 1:
        raise UserError("runtime.device = mps: a Metal GPU is for one process; set it to cpu, or NPROC=1")
    if device.type == "cuda":
        available = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= available:
            raise UserError(
                f"runtime.device = {runtime.device}: this machine has {available} usable CUDA GPUs; "
                "set runtime.device to auto or cpu"
            )
        torch.cuda.set_device(device.index or 0)
        torch.set_float32_matmul_precision("high")  # TF32, as in nanoGPT
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "runtime.device = mps: this machine has no Metal GPU; set runtime.device to auto or cpu"
        )
    return device


def _own_gpu(ranks: World, wanted: str) -> torch.device:
    """The GPU of this rank: each on a machine has its own."""
    available = torch.cuda.device_count()
    if wanted not in ("auto", "cuda"):
        raise UserError(f"runtime.device = {wanted}: each process needs a GPU of its own; set it to cuda")
    if 0 < available < ranks.local_size:
        raise UserError(
            f"NPROC={ranks.local_size}: this machine has {available} usable CUDA GPUs; set NPROC to that, or "
            "runtime.device to cpu"
        )
    return torch.device("cuda", ranks.local_rank)


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """Run matrix products in `dtype`, keeping weights and reductions in float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[dtype])


def seed(device: torch.device, value: int) -> None:
    """Seed this device's generator, and the CPU's, which draws the numbers that decide what is computed.

    Drawn on a GPU, those would have to be waited for. `torch.manual_seed` seeds all devices, which takes
    longer.
    """
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)


def to_device(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Copy tensors to the device; to a CUDA GPU asynchronously, from pinned memory."""
    beside = device.type == "cuda"
    return tuple(tensor.to(device, non_blocking=beside) for tensor in pinned(batch, device))


def pinned(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The tensors in memory that a CUDA GPU can copy from by itself; for another device, as they are."""
    return tuple(tensor.pin_memory() for tensor in batch) if device.type == "cuda" else batch


def peak_flops(device: torch.device, dtype: str) -> float:
    """Peak FLOP/s of the device, the denominator of `mfu` (model FLOPs utilization).

    This is the data sheet's rate for a known GPU in a 16-bit dtype, otherwise the measured rate of a large
    matrix product.
    """
    if device.type == "cuda" and dtype != "float32":
        name = torch.cuda.get_device_name(device)
        for model, flops in GPU_PEAK_FLOPS.items():
            if re.search(rf"\b{model}\b", name):  # an L40 must not match L4
                return flops
    size = 512 if device.type == "cpu" else 4096
    a = torch.ones(size, size, device=device, dtype=DTYPES[dtype])
    seconds: list[float] = []
    until = time.perf_counter() + 0.2
    while time.perf_counter() < until or len(seconds) < 5:  # take the best of many: other programs run too
        start = time.perf_counter()
        linear(a, a)[0, 0].item()  # waits for the product to finish
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _best_device_type() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
