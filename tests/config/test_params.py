"""params.yaml and its typed sections agree, and what does not fit gets one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE, Params, load_params
from pipeline.config.validation import known_names
from tests import tiny

ROOT = Path(__file__).parents[2]
DEFAULT = tiny.params_yaml()


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(DEFAULT, encoding="utf-8")
    return path


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_checked_in_parameters_are_the_default_preset() -> None:
    assert (ROOT / PARAMS_FILE).read_text(encoding="utf-8") == tiny.params_yaml()


def test_editors_find_the_schema_from_the_parameter_file() -> None:
    schema = DEFAULT.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (ROOT / schema).is_file()


def test_every_parameter_is_in_the_file_with_a_comment() -> None:
    names, section, commented = [], "", False
    for line in DEFAULT.splitlines():
        if match := re.match(r"(\w+):", line):
            section = match[1]
        elif match := re.match(r"  (\w+):(.*)", line):
            name = f"{section}.{match[1]}"
            assert commented or "  # " in match[2], f"{name} has no comment"
            names.append(name)
        commented = line.startswith("  # ")
    assert names == [name for name in known_names(Params) if "." in name]


def test_values_survive_loading(params_file: Path) -> None:
    params = load_params(path=params_file)
    assert params.train.learning_rate == 0.01
    assert params.sample.start == "\n"
    assert params.sample.top_p is None


def test_overrides_are_typed_like_the_file(params_file: Path) -> None:
    overrides = [
        "train.max_iters=7",
        "train.learning_rate=3e-4",
        "train.grad_clip=0",
        "train.eval_only=true",
        "baselines.models=[xz]",
        "sample.top_k=null",
        "train.eval_iters=",
        "sample.start=[unclosed, = ROMEO",
    ]
    params = load_params(overrides, params_file)
    assert (params.train.max_iters, params.train.learning_rate, params.sample.top_k) == (7, 3e-4, None)
    assert params.train.eval_iters is None
    assert (params.train.grad_clip, params.baselines.models, params.train.eval_only) == (0.0, ["xz"], True)
    assert params.sample.start == "[unclosed, = ROMEO"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_iter=5", "unknown parameter train.max_iter; did you mean train.max_iters?"),
        (
            "model.learning_rate=1.0",
            "unknown parameter model.learning_rate; did you mean train.learning_rate?",
        ),
        ("train.max_iters", "expected section.key=value"),
        ("max_iters=5", "expected section.key=value"),
        ("train.max_iters=many", "train.max_iters = 'many': should be a valid integer"),
        ("train.max_iters=1.5", "train.max_iters = 1.5: "),
        ("train.max_iters=true", "train.max_iters = True: should be a valid integer"),
        ("model.bias=1", "model.bias = 1: should be a valid boolean"),
        ("model.n_embd=131", "n_embd = 131 is not divisible by n_head = 5; try n_embd = 130"),
        ("model.dropout=1.0", "model.dropout = 1.0: should be less than 1"),
        ("model.dropout=-0.1", "model.dropout = -0.1: should be greater than or equal to 0"),
        ("sample.temperature=0.0", "sample.temperature = 0.0: should be greater than 0"),
        ("sample.temperature=-1.0", "sample.temperature = -1.0: should be greater than 0"),
        ("sample.start=", "sample.start = '': String should have at least 1 character"),
        ("train.learning_rate=.inf", "train.learning_rate = inf: should be a finite number"),
        ("sample.top_k=0", "sample.top_k = 0: should be greater than or equal to 1"),
        ("sample.top_p=1.5", "sample.top_p = 1.5: should be less than or equal to 1"),
        ("train.dtype=float8", "train.dtype = 'float8': should be 'float32', 'bfloat16' or 'float16'"),
        (
            "tokenizer.name=gpt3",
            "tokenizer.name = 'gpt3': should be 'char', 'byte', 'gpt2', 'bpe' or 'pretrained'",
        ),
        ("runtime.device=gpu", "runtime.device = 'gpu': "),
        ("data.dataset=../secrets", "data.dataset = '../secrets': "),
        (
            "baselines.models=[bigarm]",
            "models = 'bigarm': not one of uniform, unigram, bigram, trigram, kneser-ney, xz, gpt2, ",
        ),
        ("train.min_lr=0.5", "min_lr = 0.5 is above learning_rate = 0.01; lower min_lr"),
        ("train.warmup_iters=9999", "warmup_iters = 9999 is above lr_decay_iters = "),
        ("train.warmup_iters=400", "cooldown_share = 0.6 begins after step 280, but warmup_iters = 400; "),
        ("baselines.models=[]", "baselines.models = []: "),
        ("baselines.eval_tokens=1", "baselines.eval_tokens = 1: should be greater than or equal to 2"),
        (
            "baselines.models=[user/model@main]",
            "models = 'user/model@main': DVC cannot name a stage so; copy ",
        ),
        ("baselines.pretrained=[\"a'; touch x; : '/b\"]", "DVC cannot name a stage so"),
        ("zeroshot.models=[\"x'$(touch x)'\"]", "DVC cannot name a stage so"),
        ("zeroshot.models=[saved/mine/]", "models = 'saved/mine/': name a folder without .. and ./ and "),
        ("baselines.models=[../mine]", "models = '../mine': name a folder without .."),
        ("baselines.models=[./saved/mine]", "models = './saved/mine': name a folder without .."),
        ("baselines.models=[xz, results/model]", "models = 'results/model': the trained model is evaluated"),
        ("baselines.models=[xz, uniform, xz]", "models = 'xz': named twice; leave one out"),
        ("runtime.threads=100000", "runtime.threads = 100000: should be less than or equal to 1024"),
    ],
)
def test_bad_override_gets_one_line(params_file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_params([override], params_file)
    assert message in one_line(error)
    assert one_line(error).startswith(f"-S {override}: ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  n_head:", "  nhead:", "unknown parameter model.nhead; did you mean model.n_head? (and 1 more)"),
        ("  bias: false", "  bias: false\n  moe_topk: 2", "unknown parameter model.moe_topk"),
        ("train:  #", "trian:  #", "unknown parameter trian; did you mean train? (and 1 more)"),
        ("n_embd: 160", "n_embd: wide", "model.n_embd = 'wide': should be a valid integer"),
        ("n_embd: 160", "n_embd: 131", "n_embd = 131 is not divisible by n_head = 5; try n_embd = 130"),
        ("n_embd: 160", "n_embd: 160: 5", "not valid YAML"),
        ("dropout: 0.0", "dropout: 1.5", "model.dropout = 1.5: should be less than 1"),
    ],
)
def test_bad_file_gets_one_line(params_file: Path, old: str, new: str, message: str) -> None:
    assert old in DEFAULT
    params_file.write_text(DEFAULT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_params(path=params_file)
    assert message in one_line(error)
    assert one_line(error).startswith(f"{params_file}: ")


def test_missing_or_empty_file_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match="no such file") as error:
        load_params(path=path)
    one_line(error)
    path.write_bytes(b"data: caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 9") as error:
        load_params(path=path)
    one_line(error)
    path.write_text("# nothing here\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected `key: value` lines") as error:
        load_params(path=path)
    one_line(error)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_wandb = tiny.params("log.trackers=[wandb]")
    with_wandb.check_sections()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="log.trackers = .*wandb.*not installed"):
        with_wandb.check_sections()
