"""Downloads GPT-2 models from the Hugging Face hub, and uploads exports to it.

The package huggingface_hub does the work, so its environment variables apply: HF_ENDPOINT, HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.validation import COMMIT
from pipeline.corpus.hub_datasets import first_line, is_network_error
from pipeline.storage.checksums import MANIFEST_FILE, damage, read_manifest
from pipeline.tokens.tokenizers import TOKENIZER_FILE, VOCABULARY_FILES
from pipeline.weights.gpt2 import (
    INDEX_FILE,
    TOKENIZER_CONFIG_FILE,
    config_from_gpt2,
    is_transformers,
    weight_files,
)
from pipeline.weights.model_folder import CONFIG_FILE, WEIGHTS_FILE

GENERATION_FILE = "generation_config.json"
CARD_FILE = "README.md"
PICTURE_FILE = "depth.png"

# The files to download; a repository may hold the same weights in other formats too.
WANTED = (
    CONFIG_FILE,
    GENERATION_FILE,
    WEIGHTS_FILE,
    INDEX_FILE,
    "model-*.safetensors",
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    *VOCABULARY_FILES,
    "special_tokens_map.json",
)
# The files that an export may have.
EXPORTED = (
    CARD_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    WEIGHTS_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    PICTURE_FILE,
    MANIFEST_FILE,
)
TIMEOUT_SECONDS = 10.0  # how long to wait for the hub's first answer


def download_model(repository: str, revision: str) -> Path:
    """Download a GPT-2 in transformers' format (config, safetensors, tokenizer) and return its cache folder.

    A commit that is in the cache needs no network. A branch or tag is looked up on the hub; if the hub cannot
    be reached, the commit of the last download is used. Raises UserError if the model cannot be downloaded,
    and, before the large download, if the repository does not hold a GPT-2.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    _check_name(repository)
    _show_progress_on_terminals_only()
    cached, has_tokenizer = _cached(repository, revision)
    if cached and has_tokenizer and COMMIT.fullmatch(revision):
        return cached
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
        _check_files({file.rfilename for file in info.siblings or []}, f"{repository}, revision {revision}")
        config_from_gpt2(Path(hf_hub_download(repository, CONFIG_FILE, revision=info.sha)).parent)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(WANTED)))
    except UserError:
        raise
    except Exception as error:
        if cached and is_network_error(error):
            return cached
        if not (is_network_error(error) or isinstance(error, OSError | ValueError | RuntimeError)):
            raise
        explained = _explained(error, repository, revision)
        raise UserError(f"{repository}, revision {revision}: {explained}") from None


def commit_of(repository: str, revision: str) -> str:
    """The commit that a branch or tag points to.

    If the hub cannot be reached, the commit of the last download; without one, the revision itself.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        return HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_SECONDS).sha or revision
    except Exception as error:
        if not (is_network_error(error) or isinstance(error, OSError | ValueError | RuntimeError)):
            raise
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    try:
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        return revision


def upload(folder: Path, repository: str, private: bool, say: Callable[[str], None]) -> str:
    """Upload an export to the hub as the model `repository` (user/name), and return its address there.

    `say` gets the list of files before the upload begins. A missing repository is created. The card is the
    user's to edit. Raises UserError, before anything is sent, if the folder is not an export, if any other
    file is not what was exported, and if there is no token; and if the hub refuses.
    """
    from huggingface_hub import HfApi, get_token

    _check_name(repository)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name} there; run `make export` first")
    if not is_transformers(folder):
        raise UserError(f"{folder}: not an export; run `make export` first")
    token = get_token()
    if token is None:
        raise UserError("no token for the hub; log in with `hf auth login`, or set HF_TOKEN")
    _check_export(folder)
    api = HfApi(token=token)
    names = [name for name in EXPORTED if (folder / name).is_file()]
    say(f"from {folder} to {api.endpoint}/{repository}:")
    for name in names:
        note = ", edited" if name == CARD_FILE and damage(folder, name) else ""
        say(f"  {name:<24} {(folder / name).stat().st_size:>15,} bytes{note}")
    _show_progress_on_terminals_only()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=names,
            commit_message="Upload a model exported by gpt-pipeline",
        )
    except Exception as error:
        if not (is_network_error(error) or isinstance(error, OSError | ValueError | RuntimeError)):
            raise
        raise UserError(
            f"{repository}: not uploaded ({first_line(error)}); check the network, the name, and that the "
            "token may write there"
        ) from None
    return str(address)


def _check_export(folder: Path) -> None:
    """Raise UserError unless the files in `folder` are what was exported; the card may be edited or gone."""
    try:
        recorded = read_manifest(folder).keys()
    except (OSError, ValueError):
        raise UserError(f"{folder}: no valid {MANIFEST_FILE} there; run `make export` again") from None
    if unknown := sorted({path.name for path in folder.iterdir()} - recorded - {MANIFEST_FILE}):
        raise UserError(f"{folder / unknown[0]}: not a file of the export; move it elsewhere")
    if problem := damage(folder, *sorted(recorded - {CARD_FILE})):
        raise UserError(f"{folder}/{problem}; run `make export` again")


def _cached(repository: str, revision: str) -> tuple[Path | None, bool]:
    """The cache folder of a revision, if config and weights are there, and whether a tokenizer is there too.

    A folder without a tokenizer may still be complete: only the hub knows whether the model has one.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(WANTED), local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None, False
    try:
        files = [folder / CONFIG_FILE, *weight_files(folder)]
    except UserError:  # a damaged index is downloaded again
        return None, False
    if not all(path.exists() for path in files):
        return None, False
    has_tokenizer = (folder / TOKENIZER_FILE).exists()
    return folder, has_tokenizer or all((folder / name).exists() for name in VOCABULARY_FILES)


def _check_files(names: set[str], where: str) -> None:
    if CONFIG_FILE not in names:
        raise UserError(f"{where}: no {CONFIG_FILE}, so it is not a transformers model; name another one")
    if not names & {WEIGHTS_FILE, INDEX_FILE}:
        others = ", ".join(sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))[:3])
        raise UserError(
            f"{where}: no {WEIGHTS_FILE}{f', only {others}, which can run code' if others else ''}; load it "
            "with transformers, save it with `model.save_pretrained(folder)` and name that folder"
        )


def _show_progress_on_terminals_only() -> None:
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        valid = repository.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(f"{repository}: not a name on the hub; write user/name")


def _explained(error: Exception, repository: str, revision: str) -> str:
    """What a download error means, and what to do about it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return f"gated; ask for access at {page}, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"nothing at {page}, unless it is private; correct the name, or log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no such revision; choose one of {page}/commits/main"
    if not is_network_error(error):
        return f"{first_line(error)}; fix that and run the command again; downloaded files are kept"
    return (
        f"not in the cache {constants.HF_HUB_CACHE}, and the hub cannot be reached ({first_line(error)}); "
        f"get {CONFIG_FILE}, {WEIGHTS_FILE} and {TOKENIZER_FILE} from {page}/tree/{revision} by other means, "
        "put them into a folder, and name that folder instead"
    )
