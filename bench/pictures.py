"""Makes the pictures of the documentation again: docs/images/.

For another picture, add its name and the function that makes it to PICTURES, and say in
docs/gallery.md what it shows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from bench import screenshots
from bench.harness import copy_project, put_preset, run_python
from pipeline.config.errors import UserError
from pipeline.config.paths import DEPTH_PICTURE, LOSS_PICTURE, METRICS, RESULTS, SCALING_PICTURE, runs_folder
from pipeline.config.presets import DEFAULT
from pipeline.config.validation import suggest
from pipeline.track.console import say

IMAGES = Path("docs/images")
VARIANTS = ("--variants", "dense,shared,recurrent,stopping,moe")  # each is trained with three seeds
SHORT = ("-S", "train.max_iters=200", "-S", "train.lr_decay_iters=200")

Maker = Callable[[Path], Path]  # from a copy of the project under the default preset to the picture in it


def main(
    only: Annotated[str, typer.Option(metavar="NAME,NAME,...", help="Only these pictures.")] = "",
) -> None:
    """Make the pictures in docs/images/ again, in a copy of the project. What was trained before is used."""
    names = only.replace(",", " ").split() or list(PICTURES)
    for name in names:
        if name not in PICTURES:
            raise UserError(f"--only {name}: not one of {', '.join(PICTURES)}{suggest(name, list(PICTURES))}")
    with tempfile.TemporaryDirectory(prefix="pictures-") as temporary:
        folder = Path(temporary, "project")
        copy_project(folder)
        put_preset(folder, DEFAULT)
        runs_folder().mkdir(exist_ok=True)
        (folder / "runs").symlink_to(runs_folder().resolve())
        for name in names:
            if name.startswith("demo-"):
                _run_demo(folder)
            made, image = PICTURES[name](folder), IMAGES / f"{name}.png"
            if made.exists():
                shutil.copyfile(made, image)
                say(f"{image}: made")
            else:
                say(f"{image}: left as it is, because its benchmark has not run here; see docs/gallery.md")


def _run_demo(folder: Path) -> None:
    """Run the pipeline, unless that was done."""
    if not (folder / METRICS).exists():
        run_python("the demo", folder, "-m", "pipeline.cli.configure_dvc")
        run_python("the demo: train and evaluate", folder, "-m", "pipeline.cli.main", "repro")


def _scaling(folder: Path) -> Path:
    run_python("a sweep of sizes", folder, "-m", "pipeline.cli.main", "scaling")
    return folder / SCALING_PICTURE


def _variants(folder: Path) -> Path:
    run_python("variants of the model", folder, "-m", "bench", "variants", *VARIANTS, *SHORT)
    return folder / RESULTS / "bench-variants.png"


def _speed(_: Path) -> Path:
    """What `make bench CLONE=... FORK=...` drew: it needs copies of other programs."""
    return RESULTS / "bench-speed.png"


PICTURES: dict[str, Maker] = {
    "demo-depth": lambda folder: folder / DEPTH_PICTURE,
    "demo-lens": screenshots.lens,
    "demo-loss": lambda folder: folder / LOSS_PICTURE,
    "demo-playground": screenshots.playground,
    "demo-report": screenshots.report,
    "demo-scaling": _scaling,
    "demo-variants": _variants,
    "bench-speed": _speed,
}
