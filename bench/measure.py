"""What is measured inside one process, which `bench.harness.call_apart` starts: steps, and sampling."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median

from bench.harness import Figures, build_clones_model, load_clones_model
from pipeline.config.errors import UserError
from pipeline.config.params import load_params

TIMES = 5  # that a text is written, to measure tokens per second


def step_split(folder: Path, overrides: Sequence[str], steps: int, fixed_batch: bool = False) -> Figures:
    """Seconds of the parts of a training step in a copy of this project, and the least they could be.

    `outside` is the share that is not the model's or the optimizer's; `bound` is the machine's limit; `first`
    is what the first steps take beyond others: compiling, above all.
    """
    from pipeline.train.profile import WARMUP, StepProfile

    os.chdir(folder)
    with tempfile.TemporaryDirectory() as temporary:
        profile = StepProfile(load_params(overrides), Path(temporary), fixed_batch)
        start = time.perf_counter()
        profile.measure(1)
        first = time.perf_counter() - start
        times = profile.measure(steps)
        bound = profile.trainer.flops_per_step / profile.matrix_rate()
    return {
        **times.parts,
        "step": times.median,
        "outside": times.share_outside,
        "bound": bound,
        "mfu": profile.trainer.flops_per_step / times.median / profile.trainer.peak_flops,
        "first": max(0.0, first - (WARMUP + 1) * times.median),
    }


def tokens_per_second_nanogpt(
    folder: Path, new_tokens: int, config: dict[str, int] | None = None, device: str = "cpu"
) -> float:
    """Of `generate` in nanoGPT, which writes one text at a time; of its saved model, or of a new one."""
    import torch

    model = load_clones_model(folder) if config is None else build_clones_model(folder, **config)
    model.to(device)
    prompt = torch.zeros(1, 1, dtype=torch.long, device=device)

    def write() -> None:
        with torch.no_grad(), _precision(device):
            model.generate(prompt, new_tokens, temperature=0.8, top_k=200)[0, -1].item()

    return new_tokens / _seconds(write)


def tokens_per_second_here(folder: Path, overrides: Sequence[str], samples: int, new_tokens: int) -> float:
    """Of a new model with the parameters of a copy of this project, for so many texts at once."""
    import torch

    from pipeline.model.build import build_gpt
    from pipeline.runtime.device import use_device
    from pipeline.serve.sampling import TokenSampler, generate
    from pipeline.train.sizing import expected_config

    os.chdir(folder)
    params = load_params(overrides)
    config, device = expected_config(params), use_device(params.runtime)
    assert config is not None, "its text is tokenized"
    model = build_gpt(config).to(device).eval()
    generator = torch.Generator(device).manual_seed(1)
    sampler = TokenSampler(temperature=0.8, top_k=200, generator=generator)
    prompt = torch.zeros(samples, 1, dtype=torch.long, device=device)

    def write() -> None:
        for tokens in generate(model, prompt, new_tokens, sampler, config.vocab_size):
            tokens.tolist()  # as they are shown

    return samples * new_tokens / _seconds(write)


def _precision(device: str) -> AbstractContextManager[object]:
    """nanoGPT samples in bfloat16 on a GPU, and in float32 on a CPU."""
    import torch

    return nullcontext() if device == "cpu" else torch.autocast(device, torch.bfloat16)


def _seconds(write: Callable[[], None]) -> float:
    write()
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        write()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def gpu_name() -> tuple[str, int]:
    """The GPU's name and bytes of memory. Raises UserError if there is none."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("there is no CUDA GPU here; --dry-run does all of it tiny, on a CPU")
    found = torch.cuda.get_device_properties(0)
    return found.name, found.total_memory
