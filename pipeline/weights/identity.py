"""The identity of a model's content, by checksums or commit, found without loading the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.validation import COMMIT
from pipeline.storage.checksums import MANIFEST_FILE, HashCache
from pipeline.weights.names import place_on_hub

FILES = ("*.json", "*.safetensors", "merges.txt")  # config, weights and tokenizer, in every format we read


def identity(name: str, hashes: HashCache) -> dict[str, Any]:
    """The sha256 of each file in a model's folder, or the model's repository and commit on the hub.

    A branch or tag is looked up on the hub; if the hub cannot be reached, the commit of the last download is
    used. For a folder that does not exist yet, the result is only the name.
    """
    folder = Path(name)
    if folder.is_dir():
        found = {path for pattern in FILES for path in folder.glob(pattern) if path.is_file()}
        paths = sorted(path for path in found if path.name != MANIFEST_FILE)
        return {"model": name, "sha256": {path.name: hashes.sha256(path) for path in paths}}
    if (place := place_on_hub(name)) is None:
        return {"model": name}
    repository, revision = place
    if not COMMIT.fullmatch(revision):
        from pipeline.weights.hub_models import commit_of

        revision = commit_of(repository, revision)
    return {"model": name, "repository": repository, "commit": revision}
