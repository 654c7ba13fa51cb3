"""The pages that show the committed rows: figures/README.md, figures/RESULTS.md, README's table."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
REMEDY = "run `make pages`"


@pytest.fixture(scope="module")
def pages():
    return runpy.run_path(str(ROOT / "figures" / "pages.py"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readme_shows_what_the_rows_say(pages):
    text = read("README.md")
    assert pages["fill_readme"](text) == text, REMEDY
    assert pages["readme_table"]("english") in text


def test_the_page_of_results_is_that_of_the_committed_rows(pages):
    page = read("figures/RESULTS.md")
    assert page == pages["results_page"](), REMEDY
    assert page.index("## english") < page.index("## mini")
    assert "trained from the encoder `minilm-l6` with the seeds 0, 1, 2" in page


def test_the_gallery_is_that_of_the_committed_figures(pages):
    page = read("figures/README.md")
    assert page == pages["gallery_page"](), REMEDY
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page) if "://" not in link]
    assert links
    assert all((ROOT / "figures" / link.partition("#")[0]).exists() for link in links)


def test_the_table_of_the_readme_has_five_models_and_a_line_a_verdict(pages):
    table, verdicts = pages["readme_table"]("english").split("\n\n")
    assert len(table.splitlines()) == 2 + 5
    assert table.startswith("| model | seeds | IR mean | STS mean |")
    claims = pd.read_csv(ROOT / "figures" / "english" / "claims.csv")
    said = [f"- {c.claim} {c.verdict}: {c.text}." for c in claims.itertuples()]
    assert verdicts.splitlines() == said
