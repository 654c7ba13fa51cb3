"""One HTML file that tells a whole reproduction, without a server, a network or another file."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from pygments.formatters import HtmlFormatter

from codiemb_lib.app.gallery import drawn
from codiemb_lib.core import (
    figures_folder,
    git_commit,
    load_preset,
    preset_folder,
    preset_path,
    read_json,
    run_folder,
)

_SHOWN = ("image/png", "text/html", "text/markdown", "text/plain")  # forms of a notebook's output

# Everything below is given as HTML but for what `|e` escapes.
_PAGE = jinja2.Template(
    """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>CoDiEmb, preset {{ preset.name|e }}</title>
<style>
body { font: 16px/1.5 sans-serif; color: #222 }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100% }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto }
td, th { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left }
figure { margin: 2rem 0 }
figcaption, nav, summary, .faint { font-size: 0.9rem; color: #444 }
pre { font-size: 0.8rem; overflow-x: auto; background: #f7f7f7; padding: 0.6rem }
details { margin: 0.6rem 0 }
{{ code_style }}
</style>
</head>
<body>
<h1>CoDiEmb, preset <code>{{ preset.name|e }}</code></h1>
<p>{{ preset.description|e }}</p>
<p class="faint">Drawn at commit {{ commit|e or "unknown" }}.</p>
<nav>{% for name in ("results", "figures", "provenance", "notebooks") %}
<a href="#{{ name }}">{{ name }}</a>{% endfor %}</nav>

<h2 id="results">Results</h2>
{% for table in tables %}{{ table }}
{% else %}<p>No table: notebook 09 has not run.</p>
{% endfor %}
<h2 id="figures">Figures</h2>
{% for figure in figures %}<figure id="{{ figure.stem }}">
<img src="data:image/png;base64,{{ figure.png }}" alt="{{ figure.stem }}">
<figcaption>{{ figure.caption }}
<a download="{{ figure.stem }}.csv" href="data:text/csv;base64,{{ figure.csv }}">rows (CSV)</a>
</figcaption>
</figure>
{% else %}<p>No figure: notebook 09 has not run.</p>
{% endfor %}
<h2 id="provenance">Provenance</h2>
{% if runs %}<h3>Runs</h3>
{{ runs }}
{% for name, value in facts.items() %}<h3>{{ name|e }}</h3>
<ul>{% for line in value %}<li>{{ line|e }}</li>{% endfor %}</ul>
{% endfor %}{% else %}<p>The models were not trained here{% if figures %}: figures and tables are
those of the committed rows{% endif %}.</p>
{% endif %}{% if costs %}<h3>Costs</h3>
{{ costs }}
{% endif %}<details><summary>The preset</summary><pre>{{ yaml|e }}</pre></details>

<h2 id="notebooks">Executed notebooks</h2>
{% for name, body in notebooks.items() %}<details><summary>{{ name|e }}</summary>
{{ body }}
</details>
{% else %}<p>None was executed here.</p>
{% endfor %}
</body>
</html>
"""
)


def report(preset: str) -> str:
    """The page: tables, figures with captions and rows, provenance, and the executed notebooks.

    What lies in `figures/<preset>` and `data/runs/<preset>` is put together, nothing is computed.
    The notebooks are those of the whole preset; those of single runs stay in their folders.

    Raises:
        PresetError: There is no such preset.
    """
    settings = load_preset(preset)
    pictures, runs = figures_folder(settings.name), preset_folder(settings.name)
    ran = [
        run_folder(settings.name, m, s) for m in settings.models for s in settings.model_seeds(m)
    ]
    manifests = [
        read_json(path) for run in sorted(ran) if (path := run / "manifest.json").is_file()
    ]
    source = Path(preset) if preset.endswith((".yaml", ".yml")) else preset_path(preset)
    costs = pictures / "costs.csv"
    return _PAGE.render(
        preset=settings,
        commit=git_commit(),
        code_style=HtmlFormatter().get_style_defs(".highlight"),
        tables=[
            markdown2html(path.read_text(encoding="utf-8"))
            for name in ("results", "claims", "merges")
            if (path := pictures / f"{name}.md").is_file()
        ],
        figures=[
            {
                "stem": stem,
                "png": _encoded(pictures / f"{stem}.png"),
                "csv": _encoded(pictures / f"{stem}.csv"),
                "caption": markdown2html((pictures / f"{stem}.md").read_text(encoding="utf-8")),
            }
            for stem in drawn(pictures)
        ],
        runs=_runs(manifests),
        facts=_facts(manifests),
        costs=pd.read_csv(costs).to_html(index=False, border=0) if costs.is_file() else "",
        yaml=source.read_text(encoding="utf-8"),
        notebooks={path.name: _body(path) for path in sorted(runs.glob("[0-9]*.ipynb"))},
    )


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _runs(manifests: list[dict]) -> str:
    """A line a run, as an HTML table."""
    if not manifests:
        return ""
    columns = ["variant", "seed", "seconds", "peak_memory_mib", "git_commit", "fingerprint"]
    return pd.DataFrame(manifests)[columns].to_html(index=False, border=0)


def _facts(manifests: list[dict]) -> dict[str, list[str]]:
    """What the runs share, or where they differ: each distinct value once."""

    def distinct(lines) -> list[str]:
        return list(dict.fromkeys(lines))

    return {
        "Hardware": distinct(m["hardware"] for m in manifests),
        "Versions": distinct(
            ", ".join(f"{name} {version}" for name, version in m["versions"].items())
            for m in manifests
        ),
        "Data (SHA-256 of the records)": distinct(
            f"{name}: {value}" for m in manifests for name, value in m["data"].items()
        ),
    }


def _body(path: Path) -> str:
    """An executed notebook as HTML that loads nothing: what needs a script becomes its text."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        for output in outputs:
            if "data" in output:
                output.metadata["image/png"] = {"alt": "what the cell above draws"}
                output.data = {kind: output.data[kind] for kind in _SHOWN if kind in output.data}
        if outputs:  # without progress bars
            cell.outputs = [o for o in outputs if o.get("name") != "stderr"]
    exporter = HTMLExporter(template_name="basic", embed_images=True)
    return exporter.from_notebook_node(notebook)[0]
