"""The template for the page of `dvc plots show`, with what draws the curves inside, so that it works offline.

DVC's own template loads Vega from the web. DVC replaces `{plot_divs}` by the plots; each of them calls
`vegaEmbed`, which the script beside this file defines. See
https://dvc.org/doc/command-reference/plots/show.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.storage.files import write_text

SCRIPT = Path(__file__).with_suffix(".js")
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Plots</title>
<style>body { font-family: sans-serif; margin: 2em; } img { max-width: 100%; }</style>
<script>SCRIPT</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def write_template(path: Path) -> None:
    """Write the template to `path`, for DVC's setting `plots.html_template`."""
    write_text(path, PAGE.replace("SCRIPT", SCRIPT.read_text(encoding="utf-8")))
