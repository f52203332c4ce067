"""Put the dataset's text into data/<dataset>/raw/."""

from __future__ import annotations

from pipeline.config.command_line import Overrides, run
from pipeline.config.params import load_params
from pipeline.config.paths import raw_folder
from pipeline.corpus.sources import load_spec, write_raw
from pipeline.storage.lock import writing


def main(overrides: Overrides = None) -> None:
    """Download, copy or generate the text that data/<dataset>/dataset.yaml describes."""
    params = load_params(overrides or [])
    spec = load_spec(params.data.dataset)
    raw = raw_folder(params)
    with writing(raw):
        write_raw(spec, raw)
    print(f"{raw}: {spec.source.contents(raw)}")


if __name__ == "__main__":
    run(main)
