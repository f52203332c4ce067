"""What tells a model from another one of the same name, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.storage.checksums import HashCache
from pipeline.weights.names import COMMIT, place_on_hub

FILES = ("*.json", "*.safetensors", "merges.txt")  # config, weights and tokenizer, in every format we read


def identity(name: str, hashes: HashCache) -> dict[str, Any]:
    """The hashes of the files in a model's folder, or its repository and commit on the hub.

    A branch or a tag of the hub is looked up; where that is not possible, it is what it was when it was last
    downloaded. A name that stands for nothing yet is its own identity.
    """
    folder = Path(name)
    if folder.is_dir():
        paths = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
        return {"model": name, "sha256": {path.name: hashes.sha256(path) for path in paths}}
    if (place := place_on_hub(name)) is None:
        return {"model": name}
    repository, revision = place
    if not COMMIT.fullmatch(revision):
        from pipeline.weights.hub_models import commit_of

        revision = commit_of(repository, revision)
    return {"model": name, "repository": repository, "commit": revision}
