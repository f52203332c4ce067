"""A model is known by what is in its folder, or by its commit on the hub, and never by its name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.gpt2_models import PUBLISHED
from pipeline.storage.checksums import HashCache, sha256_file, write_manifest
from pipeline.weights.hub_models import download_model
from pipeline.weights.identity import identity
from tests import zeroshot
from tests.hub_server import COMMIT, serving_hub, use_hub
from tests.weights.test_hub_models import export  # noqa: F401


@pytest.fixture
def hashes(tmp_path: Path) -> HashCache:
    return HashCache(tmp_path / "hashes.json")


def test_a_folder_is_known_by_its_config_weights_and_tokenizer(tmp_path: Path, hashes: HashCache) -> None:
    folder = zeroshot.save_model(tmp_path / "mine", zeroshot.bpe())
    (folder / "README.md").write_text("anything")
    write_manifest(folder)
    first = identity(str(folder), hashes)
    assert first["sha256"] == {
        name: sha256_file(folder / name) for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    (folder / "README.md").write_text("something else")
    assert identity(str(folder), hashes) == first
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        assert identity(str(folder), hashes) != first


def test_a_published_model_is_a_commit_and_needs_no_network(hashes: HashCache) -> None:
    published = PUBLISHED["gpt2"]
    expected = {"model": "gpt2", "repository": published.repository, "commit": published.revision}
    assert identity("gpt2", hashes) == expected


def test_a_name_that_stands_for_nothing_is_just_that(hashes: HashCache) -> None:
    assert identity("saved/nothing", hashes) == {"model": "saved/nothing"}


def test_a_branch_is_looked_up_or_what_it_was(
    export: Path,  # noqa: F811
    tmp_path: Path,
    hashes: HashCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving_hub("someone/gpt", export, "model") as endpoint:
        use_hub(endpoint, tmp_path / "home", monkeypatch)
        assert identity("someone/gpt", hashes)["commit"] == COMMIT
        download_model("someone/gpt", "main")
    assert identity("someone/gpt", hashes)["commit"] == COMMIT  # the server is gone
    assert identity("someone/other", hashes)["commit"] == "main"
