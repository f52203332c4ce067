"""Tokens reach no file and no screen, and what is read is never executed, by Python or by a shell."""

from __future__ import annotations

import gzip
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.config.errors import UserError
from pipeline.weights.hub_models import upload
from tests.conftest import Ended
from tests.hub_server import serving_hub, use_hub
from tests.stages.test_dvc import command, new_project
from tests.weights.test_nanogpt_checkpoint import Touch

CANARIES = {
    "HF_TOKEN": "hf_canaryAAAA",
    "WANDB_API_KEY": "canaryBBBB",
    "AWS_SECRET_ACCESS_KEY": "canaryCCCC",
    "GITHUB_TOKEN": "ghp_canaryDDDD",
    "OPENAI_API_KEY": "sk-canaryEEEE",
}


@pytest.fixture
def trained(tiny_project: Path, stage: Callable[..., Ended], without_fsync: None) -> Path:
    """The current folder is a project whose tiny model is trained."""
    assert stage("train", "-S", "train.max_iters=2").status == 0
    return tiny_project


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and what they are when they are unpacked."""
    content = path.read_bytes()
    yield content
    if content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content)
    if zipfile.is_zipfile(path):  # .npz and PyTorch's files too
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    if content.startswith(b"\x89PNG"):
        for text in content.split(b"zTXt")[1:] + content.split(b"iTXt")[1:]:
            _, _, packed = text.partition(b"\0\0")
            yield zlib.decompressobj().decompress(packed) if packed.startswith(b"x") else packed


def leaks(folder: Path) -> list[str]:
    """The files with a canary in them."""
    words = [value.encode() for value in CANARIES.values()]
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(word in content for content in contents(path) for word in words)
    ]


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    word = CANARIES["HF_TOKEN"]
    (tmp_path / "plain").write_text(f"x{word}x")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(word.encode()))
    np.savez_compressed(tmp_path / "arrays.npz", np.frombuffer(word.encode() * 50, dtype="u1"))
    torch.save({"word": word}, tmp_path / "ckpt.pt")
    (tmp_path / "clean").write_text("nothing")
    assert leaks(tmp_path) == ["arrays.npz", "ckpt.pt", "packed.gz", "plain"]


@pytest.mark.xdist_group("dvc")
def test_no_token_of_the_environment_reaches_a_file_or_the_screen(tmp_path: Path) -> None:
    """The true pipeline and commands on its results; the home folder and DVC's caches are searched too."""
    new_project(tmp_path)
    own = {"TMPDIR": str(tmp_path / "temporary"), "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    (tmp_path / "temporary").mkdir()
    for arguments, status in (
        ("repro", 0),  # check, download, tokenize, train, baselines, depth curve, sample, and the summary
        ("sample --start the", 0),
        ("export", 0),
        ("export --format nanogpt", 0),
        ("import results/nanogpt/ckpt.pt --meta results/nanogpt/meta.pkl", 0),
        ("eval-baselines bigram", 0),
        ("sizing", 0),
        ("doctor", 0),
        ("verify", 0),
        ("train -S train.max_iters=x", 2),
        ("sample --model someone/nothing", 2),
    ):
        ended = command(tmp_path, *arguments.split(), **CANARIES, **own)
        assert ended.returncode == status, (arguments, ended.stdout, ended.stderr)
        printed = ended.stdout + ended.stderr
        assert not [name for name, value in CANARIES.items() if value in printed], arguments
    assert (tmp_path / "results/export/README.md").exists() and any((tmp_path / ".dvc/cache").rglob("*"))
    assert leaks(tmp_path) == []


def test_a_token_that_the_hub_refuses_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path, stage: Callable[..., Ended]
) -> None:
    assert stage("export").status == 0
    with serving_hub("someone/new", tmp_path / "there", "model") as endpoint:
        use_hub(endpoint, tmp_path / "home", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", CANARIES["HF_TOKEN"])
        said: list[str] = []
        with pytest.raises(UserError, match="someone/new: not uploaded") as error:
            upload(Path("results/export"), "someone/new", private=False, say=said.append)
    assert said and "canary" not in str(error.value) + "".join(said)
    assert leaks(tmp_path) == []


@pytest.mark.xdist_group("dvc")
@pytest.mark.parametrize(
    ("key", "name", "through"),
    [
        ("baselines.models", "a'; touch pwned; : '/b", "repro"),
        ("baselines.models", "a'; touch pwned; : '/b", "baselines"),
        ("baselines.pretrained", "x'$(touch pwned)'", "baselines"),
        ("zeroshot.models", "x'$(touch pwned)'", "repro"),
        ("zeroshot.models", "x'$(touch pwned)'", "eval-zeroshot"),
        ("zeroshot.tasks", "lambada; touch pwned", "eval-zeroshot"),
    ],
)
def test_a_name_in_the_parameters_is_no_command(tmp_path: Path, key: str, name: str, through: str) -> None:
    values, (section, field) = new_project(tmp_path), key.split(".")
    values[section][field] = [name]
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    ended = command(tmp_path, through)
    assert ended.returncode != 0 and f"params.yaml: {section}" in ended.stderr
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("import_checkpoint hostile.pkl", 2),
        ("import_checkpoint results/nanogpt/ckpt.pt --meta hostile.pkl", 2),
        ("train_on ids --no-run", 2),
        ("sample --model only-pickles", 2),
        ("sample --model beside-weights", 0),
        ("verify", 0),
    ],
)
def test_a_hostile_pickle_is_executed_by_no_command(
    trained: Path, stage: Callable[..., Ended], arguments: str, status: int
) -> None:
    hostile = pickle.dumps(Touch(trained / "executed"))
    Path("hostile.pkl").write_bytes(hostile)
    assert stage("export", "--format", "nanogpt").status == 0
    shutil.copytree("data/tiny/char", "ids")
    for split in ("train", "val"):
        Path(f"ids/{split}-00000.bin").rename(f"ids/{split}.bin")
    shutil.copytree("results/model", "beside-weights")
    Path("only-pickles").mkdir()
    shutil.copy("results/model/config.json", "only-pickles")
    for folder in ("ids", "beside-weights", "only-pickles", "runs", "data/tiny", "results"):
        for name in ("meta.pkl", "ckpt.pt", "pytorch_model.bin", "training_args.bin", "tokenizer.pkl"):
            Path(folder, name).write_bytes(hostile)
    ended = stage(*arguments.split())
    assert ended.status == status, ended.err
    assert not Path("executed").exists()
    pickle.loads(hostile)
    assert Path("executed").exists(), "so it would have been"
