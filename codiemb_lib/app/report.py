"""One HTML file that tells a whole reproduction, without a server, a network or another file.

It is a notebook, put together from what lies in `figures/<preset>` and `data/runs/<preset>`, and
turned to HTML by nbconvert.
"""

import base64
import html
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbformat.v4 import new_markdown_cell, new_notebook
from traitlets.config import Config

from codiemb_lib import core, draw

# JupyterLab's look without what it would fetch; progress bars are left out.
_EMPTY = "html_head_js html_head_js_mathjax html_head_js_mermaidjs jupyter_widgets stream_stderr"
_TEMPLATE = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block {block} %}}{{% endblock %}}" for block in _EMPTY.split()
)
# Names of data sets, and what notebooks print, may hold anything: no script, no foreign address.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "img-src data:; font-src data:; style-src 'unsafe-inline'; form-action 'none'; "
    "base-uri 'none'\">"
)
_TAGS = "table caption colgroup col thead tbody tfoot tr th td div span p br pre code b i em strong"
_CLEAN = SanitizeHTML(
    tags=[*_TAGS.split(), "ul", "ol", "li", "sup", "sub"],
    attributes={"*": ["class", "id", "colspan", "rowspan"]},
    strip=True,
)
logging.getLogger("traitlets").setLevel(logging.ERROR)  # a cell has no words for its picture
_SHOWN = ["image/png", "text/html", "text/markdown", "text/plain"]  # of an output, the first


def report(preset: str) -> str:
    """The page: tables, figures with captions and rows, provenance, and the executed notebooks.

    Nothing is computed. The notebooks are those of the whole preset, and of one seed's geometry;
    those of single runs stay in their folders.
    """
    settings = core.load_preset(preset)
    figures, runs = core.figures_folder(settings.name), core.preset_folder(settings.name)
    tables = [figures / f"{name}.md" for name in ("results", "claims", "merges")]
    presets = [core.preset_path(name) for name in (preset, settings.extends) if name]
    yaml = "\n".join(path.read_text(encoding="utf-8") for path in presets)
    sections = {
        "Results": [path.read_text(encoding="utf-8") for path in tables if path.is_file()],
        "Figures": [_figure(figures, x) for x in draw.FIGURES if (figures / f"{x}.png").is_file()],
        "Provenance": [*_provenance(settings), f"```yaml\n{yaml}\n```"],
    }
    sections = {name: [*map(new_markdown_cell, parts)] for name, parts in sections.items()}
    spaces = sorted(runs.glob("geometry/*/*.ipynb"))[:1]  # of one seed
    for path in sorted([*runs.glob("[0-9]*.ipynb"), *spaces], key=lambda path: path.name):
        sections[path.stem] = [*map(_harmless, nbformat.read(path, as_version=4).cells)]
    title = f"CoDiEmb, preset {settings.name}"
    links = " · ".join(f'<a href="#{name}">{name}</a>' for name in sections)
    cells = [new_markdown_cell(f"# {title}\n\n{settings.description}\n\n{links}")]
    for name, members in sections.items():
        cells += [new_markdown_cell(f'<h2 id="{name}">{name}</h2>'), *members]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # not drawn, so that the same page has the same bytes
    priority = Config(NbConvertBase={"display_data_priority": _SHOWN})
    exporter = HTMLExporter(config=priority, raw_template=_TEMPLATE, embed_images=True)
    notebook = new_notebook(cells=cells, metadata={"title": title})
    return exporter.from_notebook_node(notebook)[0].replace("<head>", f"<head>{_POLICY}", 1)


def _harmless(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A cell whose HTML is plain tables and text: no link, form, handler or redirection."""
    if cell.cell_type == "code":
        _CLEAN.sanitize_code_outputs(cell.outputs)
    else:
        cell.source = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", cell.source)
    return cell


def _figure(folder: Path, stem: str) -> str:
    """A figure with its caption and its rows."""
    files = (folder / f"{stem}.{end}" for end in ("png", "csv"))
    picture, rows = (base64.b64encode(file.read_bytes()).decode() for file in files)
    return (
        f'<figure id="{stem}"><img src="data:image/png;base64,{picture}" alt="{stem}"></figure>\n\n'
        f"{(folder / f'{stem}.md').read_text(encoding='utf-8')}\n\n"
        f'<a download="{stem}.csv" href="data:text/csv;base64,{rows}">rows (CSV)</a>'
    )


def _provenance(preset: core.Preset) -> Iterator[str]:
    """The runs, what they share or where they differ, and what they cost."""
    yield f"This page was made at commit {core.git_commit() or 'unknown'}."
    runs = [(preset.name, m, seed) for m in preset.models for seed in preset.model_seeds(m)]
    files = [core.run_folder(*run) / "manifest.json" for run in runs]
    manifests = [core.read_json(file) for file in files if file.is_file()]
    if not manifests:
        yield "The models were not trained here; figures and tables are those of committed rows."
    else:
        columns = ["variant", "seed", "seconds", "peak_memory_mib", "git_commit", "fingerprint"]
        yield pd.DataFrame(manifests)[columns].to_html(index=False, border=0)
        for fact in ("hardware", "versions", "data"):
            found = dict.fromkeys(str(manifest[fact]) for manifest in manifests)
            yield "\n".join([f"{fact}:\n", *(f"- {html.escape(value)}" for value in found)])
    if (costs := core.figures_folder(preset.name) / "costs.csv").is_file():
        yield pd.read_csv(costs).to_html(index=False, border=0)
