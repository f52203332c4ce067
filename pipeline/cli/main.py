"""The stages behind one command, `gpt-pipeline`, with a verb for each."""

from __future__ import annotations

from pipeline.cli import export, export_nanogpt, import_nanogpt, lm_eval, start_from, upload
from pipeline.config.command_line import Overrides, new_app, run_app
from stages import download, eval_baselines, eval_zeroshot, sample, tokenize, train

app = new_app(
    no_args_is_help=True,
    help="GPT pretraining and finetuning as a pipeline. Run it in the project's folder; parameters come from "
    "params.yaml, and -S section.key=value overrides one. `dvc repro` runs all that is out of date.",
)


@app.command()
def prepare(overrides: Overrides = None) -> None:
    """Download the active dataset's text and cut it into tokens."""
    download.main(overrides)
    tokenize.main(overrides)


app.command("start-from")(start_from.main)
app.command("train")(train.main)
app.command("sample")(sample.main)
app.command("eval")(eval_zeroshot.main)
app.command("lm-eval")(lm_eval.main)
app.command("baseline")(eval_baselines.main)
app.command("export")(export.main)
app.command("upload")(upload.main)
app.command("import")(import_nanogpt.main)
app.command("export-nanogpt")(export_nanogpt.main)


def main() -> None:
    run_app(app, "gpt-pipeline")


if __name__ == "__main__":
    main()
