"""The device that is asked for, or one line saying why not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.runtime.device import autocast, peak_flops, use_device
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def device(name: str, threads: str = "1") -> torch.device:
    return use_device(tiny.params(f"runtime.device={name}", f"runtime.threads={threads}").runtime)


def test_cpu_and_its_threads() -> None:
    assert device("cpu", threads="2") == CPU
    assert torch.get_num_threads() == 2
    assert device("cpu", threads="null") == CPU
    assert torch.get_num_threads() == 2


def test_auto_is_the_best_there_is() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1000"])
def test_missing_cuda_gpu_gets_one_line(name: str) -> None:
    if torch.cuda.is_available() and name != "cuda:1000":
        pytest.skip("this machine has a CUDA GPU")
    with pytest.raises(UserError) as error:
        device(name)
    count = torch.cuda.device_count()
    assert str(error.value) == (
        f"runtime.device = {name}: this machine has {count} usable CUDA GPUs; "
        "set runtime.device to auto or cpu"
    )


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has a Metal GPU")
def test_missing_metal_gpu_gets_one_line() -> None:
    with pytest.raises(UserError, match="^runtime.device = mps: this machine has no Metal GPU; set .* cpu$"):
        device("mps")


@pytest.mark.parametrize(
    ("dtype", "product"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_autocast_lowers_the_precision_of_products_only(dtype: str, product: torch.dtype) -> None:
    weight = torch.eye(2, requires_grad=True)
    with autocast(CPU, dtype):
        result = weight @ weight
        assert result.dtype == product
        assert torch.nn.functional.cross_entropy(result, torch.tensor([0, 1])).dtype == torch.float32
    result.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_peak_is_a_rate_that_a_product_reached() -> None:
    assert 1e8 < peak_flops(CPU, "float32") < 1e14


def test_peak_of_a_known_gpu_is_its_data_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda"), "bfloat16") == 989e12
