"""Models come from a hub and go to one: a small one on this machine, that the hub's own client talks to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from pipeline.config.errors import UserError
from pipeline.model.load import load_model
from pipeline.storage.checksums import sha256_file, write_manifest
from pipeline.storage.files import write_json, write_text
from pipeline.tokens.tokenizers import CharTokenizer
from pipeline.weights.gpt2 import TOKENIZER_CONFIG_FILE, save_gpt2, to_gpt2, tokenizer_config
from pipeline.weights.hub_models import EXPORTED, download_model, upload
from pipeline.weights.open import open_model
from tests import tiny
from tests.conftest import Ended
from tests.hub_server import COMMIT, TOKEN, serving_hub, use_hub
from tests.train.runs import flip_a_bit

NOWHERE = "http://127.0.0.1:9"  # nothing listens on the port for discarding
MODEL_FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
MODEL_FILES += ["tokenizer_config.json"]
GPT2 = {"model_type": "gpt2"}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder as `make export` writes it, with two files that are none of its."""
    folder = tmp_path / "export"
    folder.mkdir()
    save_gpt2(*to_gpt2(tiny.model().state_dict(), tiny.config()), folder)
    tokenizer = CharTokenizer("abcdefghijk", end_of_text=False)
    tokenizer.save(folder)
    write_json(folder / TOKENIZER_CONFIG_FILE, tokenizer_config(tokenizer, 8))
    write_json(folder / "generation_config.json", {})
    write_text(folder / "README.md", "---\nlibrary_name: transformers\n---\n")
    write_text(folder / "depth.png", "a picture")
    write_text(folder / "pytorch_model.bin", "the same in another format")
    write_text(folder / "notes.txt", "private")
    return folder


@pytest.fixture
def hub(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a hub where the export is `someone/gpt`, which the hub's client uses."""
    with serving_hub("someone/gpt", export, "model") as endpoint:
        use_hub(endpoint, tmp_path / "home", monkeypatch)
        yield endpoint


def content(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


@torch.no_grad()
def test_a_model_is_downloaded_without_what_is_of_no_use(hub: str, export: Path) -> None:
    for name in ("someone/gpt", f"someone/gpt@{COMMIT}"):
        stored = open_model(name)
        assert stored.tokenizer().vocab_size == 11
        ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
        assert torch.equal(load_model(stored)(ids), tiny.model()(ids))
    folder = download_model("someone/gpt", "main")
    assert content(folder) == {name: sha256_file(export / name) for name in MODEL_FILES}


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_what_is_in_the_cache_needs_no_network(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    folder = download_model("someone/gpt", revision)
    use_hub(NOWHERE, tmp_path / "home", monkeypatch)
    assert download_model("someone/gpt", revision) == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not in the cache"):
        download_model("someone/gpt", revision)


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_model_without_a_tokenizer_is_whole_in_the_cache_too(
    hub: str, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (export / name).unlink()
    folder = download_model("someone/gpt", revision)
    use_hub(NOWHERE, tmp_path / "home", monkeypatch)
    assert download_model("someone/gpt", revision) == folder


def test_without_network_it_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(NOWHERE, tmp_path, monkeypatch)
    start = time.monotonic()
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for revision in ("main", COMMIT):
            with pytest.raises(UserError) as error:
                download_model("someone/gpt", revision)
            for part in (
                f"someone/gpt, revision {revision}: not in the cache {tmp_path}/hub",
                "config.json, model.safetensors and tokenizer.json",
                f"{NOWHERE}/someone/gpt/tree/{revision}",
                "put them into a folder, and name that folder instead",
            ):
                assert part in str(error.value)
            assert "\n" not in str(error.value)
    assert time.monotonic() - start < 5


def refused(name: str, revision: str = "main") -> str:
    with pytest.raises(UserError) as error:
        download_model(name, revision)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_wrong_name_or_revision_is_one_line(hub: str) -> None:
    assert refused("someone/gtp").startswith(
        f"someone/gtp, revision main: nothing at {hub}/someone/gtp, unless it is private; correct the name"
    )
    assert "someone/gpt, revision v2: no such revision" in refused("someone/gpt", "v2")
    assert refused("some--one/gpt") == "some--one/gpt: not a name on the hub; write user/name"


def without_safetensors(export: Path) -> None:
    (export / "model.safetensors").unlink()


def without_config(export: Path) -> None:
    (export / "config.json").unlink()


def another_architecture(export: Path) -> None:
    write_json(export / "config.json", {"model_type": "llama"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without_safetensors,
            "someone/gpt, revision main: no model.safetensors, only pytorch_model.bin, which",
        ),
        (without_config, "someone/gpt, revision main: no config.json, so it is not a transformers model"),
        (another_architecture, "config.json: model_type = llama; only models of the type gpt2 can be loaded"),
    ],
)
def test_what_is_no_gpt2_is_known_before_it_is_downloaded(
    hub: str, export: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(export)
    assert message in refused("someone/gpt")
    assert not list((tmp_path / "home").rglob("model.safetensors"))


def test_a_gated_model_says_where_to_ask(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_hub("someone/gpt", export, "model", gated=True) as endpoint:
        use_hub(endpoint, tmp_path / "home", monkeypatch)
        assert f"gated; ask for access at {endpoint}/someone/gpt, then log in" in refused("someone/gpt")


# huggingface_hub reads its settings when it is imported, so it takes a fresh interpreter.
OPEN = """
import sys
from pipeline.model.load import load_model
print(load_model(sys.argv[1]).num_params())
"""


def test_the_settings_of_the_hubs_client_hold(export: Path, tmp_path: Path) -> None:
    def load(**settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", OPEN, "someone/gpt"],
            env=os.environ | settings | {"PYTHONPATH": str(tiny.ROOT), "NO_PROXY": "*"},
            capture_output=True,
            text=True,
        )

    with serving_hub("someone/gpt", export, "model") as endpoint:
        online = load(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0")
    assert (online.stdout, online.stderr) == (f"{tiny.model().num_params()}\n", "")
    offline = load(HF_HUB_CACHE=str(tmp_path / "home" / "hub"), HF_HUB_OFFLINE="1")
    assert (offline.stdout, offline.stderr) == (online.stdout, "")


def flip_a_bit_in(name: str, folder: Path) -> None:
    flip_a_bit(folder / name)


@pytest.fixture
def exported(export: Path) -> Path:
    """A folder as `make export` writes it, and nothing else in it."""
    for name in ("pytorch_model.bin", "notes.txt"):
        (export / name).unlink()
    write_manifest(export)
    return export


@pytest.fixture
def new_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A hub where `someone/new` is still to be made, and the folder where it keeps what is uploaded."""
    with serving_hub("someone/new", tmp_path / "uploaded", "model") as endpoint:
        use_hub(endpoint, tmp_path / "home", monkeypatch)
        yield endpoint, tmp_path / "uploaded"


def test_what_is_uploaded_comes_back(
    new_hub: tuple[str, Path],
    exported: Path,
    stage: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint, uploaded = new_hub
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for _ in range(2):  # the second time it is there already
        ended = stage("upload", "someone/new", "--folder", str(exported), "--private")
        assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == f"from {exported} to {endpoint}/someone/new:"
    assert [line.split()[0] for line in lines[1:-1]] == list(EXPORTED)
    assert f"{(exported / 'model.safetensors').stat().st_size:,} bytes" in ended.out
    assert lines[-1] == f"{endpoint}/someone/new"
    assert content(uploaded) == {name: sha256_file(exported / name) for name in EXPORTED}

    folder = download_model("someone/new", "main")
    assert content(folder) == {name: sha256_file(exported / name) for name in MODEL_FILES}


def test_what_goes_up_is_listed_before_anything_is_sent(
    new_hub: tuple[str, Path], exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_somebody_elses")
    said: list[str] = []
    with pytest.raises(
        UserError, match="someone/new: not uploaded .*that the token may write there"
    ) as error:
        upload(exported, "someone/new", private=False, say=said.append)
    assert "\n" not in str(error.value)
    assert len(said) == 1 + len(EXPORTED)
    assert not new_hub[1].exists()


def test_the_card_is_the_users_to_edit(
    new_hub: tuple[str, Path], exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    write_text(exported / "README.md", "---\nlicense: mit\n---\n")
    said: list[str] = []
    upload(exported, "someone/new", private=False, say=said.append)
    assert [line.split()[0] for line in said if line.endswith(", edited")] == ["README.md"]
    assert "license: mit" in (new_hub[1] / "README.md").read_text()
    (exported / "README.md").unlink()
    upload(exported, "someone/new", private=False, say=said.append)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        *(
            (partial(flip_a_bit_in, name), f"{name}: not what was saved; run `make export` again")
            for name in [*MODEL_FILES[1:], "depth.png"]
        ),
        (lambda export: write_json(export / "config.json", GPT2), "config.json: not what was saved; run"),
        (lambda export: (export / "depth.png").unlink(), "depth.png: No such file or directory; run `make"),
        (
            lambda export: write_text(export / "notes.txt", "x"),
            "notes.txt: not a file of the export; move it",
        ),
        (lambda export: (export / "manifest.json").unlink(), ": no valid manifest.json there; run `make exp"),
        (lambda export: write_text(export / "manifest.json", "[]"), ": no valid manifest.json there; run `"),
        (lambda export: write_text(export / "manifest.json", "{"), ": no valid manifest.json there; run `"),
    ],
)
def test_what_was_not_exported_is_not_sent(
    new_hub: tuple[str, Path],
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    spoil(exported)
    said: list[str] = []
    with pytest.raises(UserError) as error:
        upload(exported, "someone/new", private=False, say=said.append)
    assert str(error.value).startswith(str(exported)) and message in str(error.value)
    assert "\n" not in str(error.value)
    assert not said and not new_hub[1].exists()


def test_an_upload_without_network_is_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(NOWHERE, tmp_path / "home", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    start = time.monotonic()
    with pytest.raises(UserError, match="someone/new: not uploaded .*check the network"):
        upload(exported, "someone/new", private=False, say=lambda line: None)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("someone/new --folder export", "no token for the hub; log in with `hf auth login`, or set HF_TOKEN"),
        ("new --folder export", "new: not a name on the hub; write user/name"),
        ("some/one/new --folder export", "some/one/new: not a name on the hub; write user/name"),
        ("someone/new", "results/export: no config.json there; run `make export` first"),
        ("someone/new --folder ours", "ours: not an export; run `make export` first"),
    ],
)
def test_what_cannot_be_uploaded_is_one_line_and_nothing_is_listed(
    exported: Path,
    stage: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    use_hub(NOWHERE, tmp_path / "home", monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_json(Path("ours/config.json"), tiny.config().model_dump())
    write_text(Path("ours/model.safetensors"), "")
    ended = stage("upload", *arguments.split())
    assert (ended.status, ended.out, ended.err) == (2, "", f"error: {message}\n")
