"""The page of all figures, and the report: complete, and loading nothing."""

from __future__ import annotations

import re
import shutil

import nbformat
import pytest

from codiemb_lib.app.cli import main
from codiemb_lib.app.report import report
from codiemb_lib.core.files import project_root, write_json
from codiemb_lib.draw import FIGURES as FIGURE_STEMS

FIGURES = project_root() / "figures"
PIXEL = "iVBORw0KGgo="  # how every PNG begins


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the figures of `mini`, one run, and one executed notebook."""
    shutil.copytree(project_root() / "notebooks" / "presets", tmp_path / "notebooks" / "presets")
    shutil.copytree(FIGURES / "mini", tmp_path / "figures" / "mini")
    run = tmp_path / "data" / "runs" / "mini"
    manifest = {
        "variant": "codiemb",
        "seed": 0,
        "fingerprint": "f" * 64,
        "git_commit": "abcdef",
        "seconds": 12.5,
        "peak_memory_mib": 99,
        "hardware": "a <loud> machine",
        "versions": {"torch": "9.9"},
        "data": {"api-docs": "0123"},
    }
    for variant, fingerprint in (("codiemb", "f" * 64), ("renamed_away", "e" * 64)):
        (run / variant / "seed-0").mkdir(parents=True)
        write_json(
            run / variant / "seed-0" / "manifest.json", manifest | {"fingerprint": fingerprint}
        )
    outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="a bar"),
        nbformat.v4.new_output(
            "display_data",
            {"application/vnd.vegalite.v5+json": {"x": 1}, "text/plain": "a chart"},
        ),
        nbformat.v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "a figure"}),
    ]
    cells = [nbformat.v4.new_code_cell("x = 1", outputs=outputs)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), run / "07_embedding_geometry.ipynb")
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    return tmp_path


def test_no_script_of_a_stranger_runs_in_the_report(project):
    policy = re.search(
        r'<head><meta http-equiv="Content-Security-Policy" content="(.+?)">', report("mini")
    )
    allowed = dict(part.split(maxsplit=1) for part in policy[1].split(";"))
    assert allowed.pop("default-src") == "'none'"  # scripts, handlers, javascript: links among all
    assert allowed.pop("style-src") == "'unsafe-inline'"
    assert {*allowed} == {"img-src", "font-src", "form-action", "base-uri"}
    assert {*allowed.values()} == {"data:", "'none'"}


HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    '<a href="javascript:alert(1)">x</a>',
    '<meta http-equiv="refresh" content="0;url=http://there.example">',
    '<form action="http://there.example"><button>x</button></form>',
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    '<b onclick="alert(1)" style="background:url(http://there.example)">x</b>',
    "<style>* { background: url(http://there.example) }</style>",
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
]


@pytest.mark.parametrize("html", HOSTILE)
def test_what_notebooks_hold_comes_to_the_report_without_anything_that_acts(project, html):
    table = "<table class='dataframe'><tr><td>a cell</td></tr></table>"
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": f"{table}{html}"}),
        nbformat.v4.new_output("display_data", {"text/markdown": html, "image/svg+xml": html}),
        nbformat.v4.new_output("display_data", {"application/javascript": "alert(1)"}),
        nbformat.v4.new_output("stream", name="stdout", text=html),
    ]
    cells = [
        nbformat.v4.new_code_cell("x = 1", outputs=outputs),
        nbformat.v4.new_markdown_cell(html),
    ]
    path = project / "data" / "runs" / "mini" / "07_embedding_geometry.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    body = report("mini").partition("</head>")[2]
    assert "<td>a cell</td>" in body
    tags = re.findall(r"<[^>]*>", body)
    assert not [t for t in tags if re.search(r"alert|\bon[a-z]+=|javascript:", t)]
    fetching = [tag for tag in tags if "there.example" in tag and not tag.startswith("<a href=")]
    assert not fetching  # an address in a text may become a link, which waits for a reader
    assert not re.search(r"<(script|meta|form|iframe|svg|style|button)\b", body)


def test_report_holds_tables_figures_provenance_and_notebooks_and_loads_nothing(project):
    merges = project / "figures" / "mini" / "merges.md"
    merges.write_text("| method |\n| --- |\n| a way to merge |\n")
    page = report("mini")
    assert "<td>a way to merge</td>" in page
    assert "<td>delta-guided</td>" in page  # of the table of results
    folder = project / "figures" / "mini"
    stems = [stem for stem in FIGURE_STEMS if (folder / f"{stem}.png").is_file()]
    for stem in stems:
        assert f'<figure id="{stem}"><img alt="{stem}" src="data:image/png;base64,' in page
        assert f'download="{stem}.csv" href="data:text/csv;base64,' in page
    assert page.count('src="data:image/png;base64,') == len(stems) + 1
    for fact in ("f" * 64, "abcdef", "12.5", "torch", "9.9", "api-docs", "umap_variants"):
        assert fact in page
    assert "e" * 64 not in page  # of a run that the preset has not
    assert "a &lt;loud&gt; machine" in page
    assert "a chart" in page
    assert "a bar" not in page
    fetched = re.findall(r"""(?:src|srcset|data|href)=["'](?!data:|#)|url\((?!["']?data:)""", page)
    assert not fetched
    assert not re.search(r"<(script|link|iframe)|@import|import\(", page)


def test_report_of_committed_rows_alone_says_so(project):
    shutil.rmtree(project / "data")
    page = report("mini")
    assert "were not trained here" in page
    assert '<figure id="trade_off">' in page


def test_commands_write_the_report_and_a_figure(project):
    assert main(["report", "--preset", "mini"]) == 0
    page = project / "data" / "runs" / "mini" / "report.html"
    assert page.read_text(encoding="utf-8") == report("mini")
    picture = project / "figures" / "mini" / "trade_off.png"
    rows = picture.with_suffix(".csv").read_bytes()
    picture.unlink()
    assert main(["draw", "trade_off"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.with_suffix(".csv").read_bytes() == rows


def test_unknown_figures_and_figures_without_rows_are_refused(project, capsys):
    assert main(["draw", "tradeoff"]) == 2
    assert "Did you mean 'trade_off'?" in capsys.readouterr().err
    assert main(["draw", "trade_off", "--preset", "smoke"]) == 2
    assert "expected the rows of the figure, found none" in capsys.readouterr().err
