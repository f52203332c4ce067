"""Presets compose to what they promise, and never overwrite the user's edits unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.cli.preset import apply
from pipeline.config import presets
from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig, Model
from pipeline.model.size import model_size

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "presets"

# nanoGPT's configuration by preset: the values of train.py and sample.py under its config file or command.
NANOGPT_DEFAULTS: dict[str, Any] = {
    "model.bias": False,
    "sample.recurrent_depth": None,
    "train.init_from": "scratch",
    "train.seed": 1337,
    "train.optimizer": "adamw",
    "train.muon_learning_rate": 0.04,  # not used
    "train.embedding_learning_rate": 0.3,
    "train.muon_momentum": 0.9,
    "train.weight_decay": 0.1,
    "train.beta1": 0.9,
    "train.grad_clip": 1.0,
    "train.cooldown_share": None,
    "train.skip_nonfinite_steps": 0,
    "train.decay_lr": True,
    "train.eval_only": False,
    "sample.start": "\n",
    "sample.num_samples": 10,
    "sample.max_new_tokens": 500,
    "sample.temperature": 0.8,
    "sample.top_k": 200,
    "sample.top_p": None,
    "sample.greedy": False,
    "sample.seed": 1337,
}
NANOGPT: dict[str, dict[str, Any]] = {
    "shakespeare-char": {
        "data.dataset": "shakespeare",
        "tokenizer.name": "char",
        "model.n_layer": 6,
        "model.n_head": 6,
        "model.n_embd": 384,
        "model.block_size": 256,
        "model.dropout": 0.2,
        "train.batch_size": 64,
        "train.gradient_accumulation_steps": 1,
        "train.max_iters": 5000,
        "train.dtype": "bfloat16",
        "train.learning_rate": 1e-3,
        "train.beta2": 0.99,
        "train.warmup_iters": 100,
        "train.lr_decay_iters": 5000,
        "train.min_lr": 1e-4,
        "train.eval_interval": 250,
        "train.eval_iters": 200,
        "train.always_save_checkpoint": False,
        "runtime.compile": True,
        "log.log_interval": 10,
    },
    "shakespeare-char-cpu": {
        "data.dataset": "shakespeare",
        "tokenizer.name": "char",
        "model.n_layer": 4,
        "model.n_head": 4,
        "model.n_embd": 128,
        "model.block_size": 64,
        "model.dropout": 0.0,
        "train.batch_size": 12,
        "train.gradient_accumulation_steps": 1,
        "train.max_iters": 2000,
        "train.dtype": "float32",
        "train.learning_rate": 1e-3,
        "train.beta2": 0.99,
        "train.warmup_iters": 100,
        "train.lr_decay_iters": 2000,
        "train.min_lr": 1e-4,
        "train.eval_interval": 250,
        "train.eval_iters": 20,
        "train.always_save_checkpoint": False,
        "runtime.device": "cpu",
        "runtime.compile": False,
        "log.log_interval": 1,
    },
    "gpt2": {
        "data.dataset": "openwebtext",
        "tokenizer.name": "gpt2",
        "model.n_layer": 12,
        "model.n_head": 12,
        "model.n_embd": 768,
        "model.block_size": 1024,
        "model.dropout": 0.0,
        "train.batch_size": 12,
        "train.gradient_accumulation_steps": 40,
        "train.max_iters": 600_000,
        "train.dtype": "bfloat16",
        "train.learning_rate": 6e-4,
        "train.beta2": 0.95,
        "train.warmup_iters": 2000,
        "train.lr_decay_iters": 600_000,
        "train.min_lr": 6e-5,
        "train.eval_interval": 1000,
        "train.eval_iters": 200,
        "train.always_save_checkpoint": True,
        "runtime.compile": True,
        "log.log_interval": 10,
    },
}

# nano-gpt's values for gpt2 on finewebedu, with those of its trainer and sampler.
NANO_GPT: dict[str, dict[str, Any]] = {
    "fineweb-edu": {
        "data.dataset": "fineweb-edu",
        "data.shard_tokens": 100_000_000,
        "tokenizer.name": "gpt2",
        "model.n_layer": 12,
        "model.n_head": 12,
        "model.n_embd": 768,
        "model.block_size": 1024,
        "model.bias": True,
        "model.dropout": 0.0,
        "model.activation": "gelu_new",
        "train.batch_size": 16,
        "train.gradient_accumulation_steps": 2**19 // (16 * 1024),
        "train.max_iters": 19_073,
        "train.dtype": "bfloat16",
        "train.learning_rate": 6e-4,
        "train.beta2": 0.95,
        "train.warmup_iters": 715,
        "train.lr_decay_iters": 19_073,
        "train.min_lr": 6e-5,
        "train.eval_interval": 250,
        "train.eval_iters": 20,
        "train.always_save_checkpoint": True,
        "runtime.compile": True,
        "sample.start": "Hello, I'm a language model,",  # 8 tokens
        "sample.num_samples": 5,
        "sample.max_new_tokens": 30 - 8,
        "sample.temperature": 1.0,
        "sample.top_k": 50,
        "sample.seed": 42,
        "log.log_interval": 1,
    },
}

# Parameters, as transformers and nano-gpt count them without padding the vocabulary; tokens in a step; and
# learning rate. The last two are in table 2.1 of Brown et al. 2020; those of small models in nano-gpt.
SIZES = {
    "fineweb-edu": (124_439_808, 2**19, 6.0e-4),
    "gpt2-medium": (354_823_168, 2**19, 3.0e-4),
    "gpt2-large": (774_030_080, 2**19, 2.5e-4),
    "gpt2-xl": (1_557_611_200, 2**20, 2.0e-4),
    "gpt2-xs": (57_780_736, 2**18, 3.0e-4),
    "gpt2-xxs": (3_482_048, 2**16, 3.0e-4),
}


def parse(text: str) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(text)
    return values


def flat(text: str) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in parse(text).items() for key, value in keys.items()}


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def test_default_comes_first() -> None:
    assert presets.names(FOLDER)[0] == "default"


@pytest.mark.parametrize("name", [*NANOGPT, *NANO_GPT])
def test_preset_is_nanogpts_or_nano_gpts_configuration(name: str) -> None:
    composed = flat(presets.compose(name, FOLDER))
    fields = Model.model_fields.items()
    switched_off = {f"model.{key}": field.default for key, field in fields if not field.is_required()}
    expected = switched_off | NANOGPT_DEFAULTS | (NANOGPT | NANO_GPT)[name]
    assert {key: composed[key] for key in expected} == expected
    accounted_for = {key.partition(".")[0] for key in expected} - {"data", "tokenizer", "runtime", "log"}
    assert {key for key in composed if key.partition(".")[0] in accounted_for} <= set(expected)


def test_gpt2_preset_takes_half_a_million_tokens_a_step() -> None:
    values = flat(presets.compose("gpt2", FOLDER))
    tokens = (
        values["train.batch_size"] * values["model.block_size"] * values["train.gradient_accumulation_steps"]
    )
    assert tokens == 12 * 1024 * 40 == 491_520


@pytest.mark.parametrize(("name", "parameters", "tokens", "rate"), [(name, *SIZES[name]) for name in SIZES])
def test_a_size_has_the_parameters_batch_and_rate_of_its_source(
    name: str, parameters: int, tokens: int, rate: float
) -> None:
    composed = presets.composed(name, FOLDER)
    model, train = composed.model, composed.train
    config = GPTConfig(**model.model_dump(), vocab_size=50257)
    assert model_size(config).parameters == parameters
    assert train.batch_size * train.gradient_accumulation_steps * model.block_size == tokens
    assert train.learning_rate == rate
    assert train.min_lr == pytest.approx(rate / 10)


@pytest.mark.parametrize("name", [name for name in SIZES if name != "fineweb-edu"])
def test_a_size_differs_from_its_base_in_shape_batch_and_rate_only(name: str) -> None:
    changed = presets.differences(*(parse(presets.compose(one, FOLDER)) for one in ("fineweb-edu", name)))
    shape = {"model.n_layer", "model.n_head", "model.n_embd"}
    rate = {"train.learning_rate", "train.min_lr"}
    assert shape | rate <= changed.keys()
    assert changed.keys() - shape - rate <= {"train.batch_size", "train.gradient_accumulation_steps"}


def test_a_base_has_what_the_preset_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text((FOLDER / "default.yaml").read_text())
    for name, text in {
        "one": "data:\n  dataset: one\ntrain:\n  max_iters: 1\n  seed: 1\n",
        "two": "base: one\ntrain:\n  max_iters: 2\n  batch_size: 2\n",
        "three": "base: two\ntrain:\n  batch_size: 3\n",
        "same": "base: default\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    data, train = (presets.composed("three", tmp_path).model_dump()[name] for name in ("data", "train"))
    assert (data["dataset"], train["seed"], train["max_iters"], train["batch_size"]) == ("one", 1, 2, 3)
    assert presets.composed("same", tmp_path) == presets.composed("default", tmp_path)


@pytest.mark.parametrize("base", ["gpt3", "mine", "yours", "[]", "5", ""])
def test_a_base_that_is_no_other_preset_gets_one_line(tmp_path: Path, base: str) -> None:
    (tmp_path / "default.yaml").write_text((FOLDER / "default.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    (tmp_path / "yours.yaml").write_text("base: mine\n")
    with pytest.raises(UserError, match=r"(mine|yours)\.yaml: base = .*name one of default") as error:
        presets.compose("mine", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", presets.names(FOLDER))
def test_composing_changes_values_and_nothing_else(name: str) -> None:
    def without_values(text: str) -> list[str]:
        return [line.partition("#")[2] or line.partition(":")[0] for line in text.splitlines()]

    default, composed = presets.compose("default", FOLDER), presets.compose(name, FOLDER)
    described = default.replace(presets.description("default", FOLDER), presets.description(name, FOLDER))
    assert without_values(composed) == without_values(described)


def test_every_preset_says_what_it_is() -> None:
    assert all(len(presets.description(name, FOLDER)) > 20 for name in presets.names(FOLDER))


def test_apply_reports_what_changed_and_returns_from_any_preset(params_file: Path) -> None:
    assert apply("default", folder=FOLDER, params_file=params_file) == {}
    changed = apply("gpt2", folder=FOLDER, params_file=params_file)
    assert changed["model.n_layer"][1] == 12
    for name in presets.names(FOLDER):
        apply(name, folder=FOLDER, params_file=params_file)
        assert params_file.read_text(encoding="utf-8") == presets.compose(name, FOLDER)
    assert [path.name for path in params_file.parent.iterdir()] == ["params.yaml"]


def test_apply_refuses_to_lose_edits_unless_forced(params_file: Path) -> None:
    edited = presets.compose("shakespeare-char", FOLDER).replace("n_layer: 6", "n_layer: 7")
    edited = edited.replace("bias: false", "bias: true").replace("greedy: false", "greedy: true")
    params_file.write_text(edited.replace("beta1: 0.9 ", "beta1: 0.8 "), encoding="utf-8")
    before = params_file.read_text(encoding="utf-8")
    with pytest.raises(UserError) as error:
        apply("gpt2", folder=FOLDER, params_file=params_file)
    message = str(error.value)
    assert (
        "on top of preset shakespeare-char: model.n_layer = 7, model.bias = true, train.beta1 = 0.8"
        in message
    )
    assert "and 1 more" in message and "FORCE=1" in message and "\n" not in message
    assert params_file.read_text(encoding="utf-8") == before
    apply("gpt2", force=True, folder=FOLDER, params_file=params_file)
    assert params_file.read_text(encoding="utf-8") == presets.compose("gpt2", FOLDER)


def test_apply_notices_added_and_removed_keys(params_file: Path) -> None:
    default = presets.compose("default", FOLDER)
    for edited in (default + "mine: 1\n", default.replace("  n_head: ", "  # n_head: ")):
        params_file.write_text(edited, encoding="utf-8")
        with pytest.raises(UserError, match="edits of yours"):
            apply("default", folder=FOLDER, params_file=params_file)


def test_apply_replaces_a_broken_file_only_when_forced(params_file: Path) -> None:
    params_file.write_text("model: [", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        apply("default", folder=FOLDER, params_file=params_file)
    apply("default", force=True, folder=FOLDER, params_file=params_file)
    assert params_file.read_text(encoding="utf-8") == presets.compose("default", FOLDER)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"^unknown preset shakespear-char; did you mean shakespeare-char\?.*gpt2"
    ):
        presets.compose("shakespear-char", FOLDER)


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("train:\n  max_iter: 5\n", "unknown parameter train.max_iter; did you mean train.max_iters?"),
        ("trian:\n  max_iters: 5\n", "unknown parameter trian; did you mean train?"),
        ("train:\n  max_iters: many\n", "train.max_iters = 'many': should be a valid integer"),
        ("train: 5\n", "train = 5: should be"),
        ("just words\n", "expected `key: value` lines"),
    ],
)
def test_bad_overlay_gets_one_line(tmp_path: Path, overlay: str, message: str) -> None:
    (tmp_path / "default.yaml").write_text(presets.compose("default", FOLDER), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(overlay, encoding="utf-8")
    with pytest.raises(UserError) as error:
        presets.compose("mine", tmp_path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'mine.yaml'}: ") and "\n" not in str(error.value)


def test_dvc_changes_the_value_and_nothing_else(tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides  # what `dvc exp run -S` calls

    path = tmp_path / "params.yaml"
    default = presets.compose("default", FOLDER)
    path.write_text(default)
    apply_overrides(str(path), ["train.max_iters=61"])
    assert path.read_text() == default.replace("max_iters: 700 ", "max_iters: 61  ")


def test_a_preset_may_empty_a_list(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text((FOLDER / "default.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("# mine\nbaselines:\n  pretrained: []\n")
    assert flat(presets.compose("mine", tmp_path))["baselines.pretrained"] == []
