"""The page of all figures, and the report: complete, and loading nothing."""

from __future__ import annotations

import re
import shutil

import nbformat
import pytest

from codiemb_lib.app.cli import main
from codiemb_lib.app.gallery import drawn, gallery_page
from codiemb_lib.app.report import report
from codiemb_lib.core.files import project_root, write_json

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
    assert allowed == {"img-src": "data:", "font-src": "data:", "style-src": "'unsafe-inline'"}


def test_report_holds_tables_figures_provenance_and_notebooks_and_loads_nothing(project):
    merges = project / "figures" / "mini" / "merges.md"
    merges.write_text("| method |\n| --- |\n| a way to merge |\n")
    page = report("mini")
    assert "<td>a way to merge</td>" in page
    assert "<td>delta-guided</td>" in page  # of the table of results
    stems = drawn(project / "figures" / "mini")
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


def test_commands_write_the_report_the_gallery_and_a_figure(project, capsys):
    assert main(["report", "--preset", "mini"]) == 0
    page = project / "data" / "runs" / "mini" / "report.html"
    assert page.read_text(encoding="utf-8") == report("mini")
    picture = project / "figures" / "mini" / "trade_off.png"
    rows = picture.with_suffix(".csv").read_bytes()
    picture.unlink()
    assert main(["draw", "trade_off"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.with_suffix(".csv").read_bytes() == rows
    shutil.copytree(FIGURES / "english", project / "figures" / "english")
    shutil.copy(FIGURES.parent / "README.md", project)
    assert main(["gallery"]) == 0
    assert "### trade_off" in (project / "figures" / "README.md").read_text(encoding="utf-8")


def test_unknown_figures_and_figures_without_rows_are_refused(project, capsys):
    assert main(["draw", "tradeoff"]) == 2
    assert "Did you mean 'trade_off'?" in capsys.readouterr().err
    assert main(["draw", "trade_off", "--preset", "smoke"]) == 2
    assert "expected the rows of the figure, found none" in capsys.readouterr().err


def test_a_preset_without_figures_has_no_gallery(project, capsys):
    assert main(["gallery", "nope"]) == 2
    assert "expected figures of a preset, found none" in capsys.readouterr().err
    assert not (project / "figures" / "README.md").exists()


def test_the_committed_gallery_is_that_of_the_committed_figures():
    page = (FIGURES / "README.md").read_text(encoding="utf-8")
    assert page == gallery_page(FIGURES, ["english", "mini"]), "run `codiemb gallery`"
    for link in re.findall(r"\]\(([^)]+)\)", page):
        if link.startswith("mini/"):
            assert (FIGURES / link).is_file(), link
