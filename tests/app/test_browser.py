"""JupyterLab as a person uses it: open a notebook, run all cells, move a slider, search, look.

Needs Chromium (Debian's package, or any other) and Playwright: `make test-browser`. Playwright's
own browsers are not used, so nothing is fetched. `make screenshots` runs the same, and keeps what
is on the screen in the folder that the variable `CODIEMB_SCREENSHOTS` names.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from codiemb_lib.data.datasets import load_dataset
from tests.app.projects import copy_project

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright: pip install playwright"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"needs Chromium, found none of {', '.join(BROWSERS)} on the PATH"
)
TOKEN = "a-token-of-the-tests"
PICTURES = os.environ.get("CODIEMB_SCREENSHOTS", "")
HOUR = 3600  # seconds, after which something hangs
SETTINGS = {
    # All cells stay in the page, also those that are scrolled out of sight.
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"
ALL_RUN = f"(prompts => prompts.length > 0 && prompts.every(p => /\\[\\d+\\]/.test(p)))({PROMPTS})"

PIXELS = """img => {
    const canvas = Object.assign(document.createElement('canvas'),
                                 {width: img.naturalWidth, height: img.naturalHeight});
    canvas.getContext('2d').drawImage(img, 0, 0);
    return canvas.toDataURL();
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a copy of the project, without anybody's own settings."""
    folder = tmp_path_factory.mktemp("lab")
    load_dataset("api-docs", cache=folder / "cache")
    project = copy_project(folder, folder / "cache")
    for name, text in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "notebooks", "--no-browser", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    if os.geteuid() == 0:  # as in a container
        command.append("--allow-root")
    isolated = {
        "HOME": str(folder),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": f"{project}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "HF_HUB_OFFLINE": "1",
        "CODIEMB_ROOT": "",
    }
    log = folder / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            command,
            cwd=project,
            env=os.environ | isolated,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{address}/api?token={TOKEN}", server, log)
        yield address
    finally:
        server.terminate()
        server.wait(HOUR)


def _wait(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + HOUR
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer within an hour:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser():
    # Chromium's sandbox does not start for root, nor in most containers.
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def opened(lab: str, browser, name: str):
    """The page of a notebook all of whose cells have run, without an error then or at the end."""
    with browser.new_page(viewport={"width": 1000, "height": 720}) as page:
        page.set_default_timeout(1000 * HOUR)
        page.goto(f"{lab}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
        page.wait_for_selector(".jp-CodeCell")
        # Whoever runs a cell before the kernel is there is asked which one it shall be.
        page.get_by_text(re.compile(r"^Python 3.*\| Idle$")).wait_for()
        if page.locator("#jp-left-stack").is_visible():
            page.keyboard.press("Control+b")  # the list of files gives its place to the notebook

        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
        page.wait_for_function(ALL_RUN, timeout=1000 * HOUR)
        _no_errors(page)
        yield page
        _no_errors(page)


def _no_errors(page) -> None:
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    assert not errors.count(), errors.first.inner_text()
    assert not page.get_by_text("Error displaying widget").count()


def _changed(look, before) -> None:
    """Wait until `look` gives something else."""
    end = time.monotonic() + HOUR
    while look() == before:
        assert time.monotonic() < end, "what is shown stayed as it was"
        time.sleep(0.2)


def _drag(page, slider) -> None:
    handle = slider.locator(".noUi-handle")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=4)
    page.mouse.up()


def _picture(page, seen, stem: str) -> None:
    """Where the variable `CODIEMB_SCREENSHOTS` names a folder: what is on the screen, as a PNG.

    Args:
        page: What is shown.
        seen: Comes to the top of the screen.
        stem: Of the file.
    """
    if not PICTURES:
        return
    seen.evaluate("node => node.scrollIntoView()")
    time.sleep(1)  # the menu's shadow and the status line settle
    shot = Image.open(io.BytesIO(page.screenshot()))
    path = Path(PICTURES) / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    shot.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def _cell(page, source: str):
    """The cell of code in which this stands."""
    return page.locator(".jp-CodeCell").filter(has_text=source).last


@pytest.mark.parametrize(
    ("name", "source"),
    [("00_start_here", "knobs(draw_rated"), ("02_losses_by_hand", "FloatLogSlider(value=0.02")],
)
def test_all_cells_run_and_a_slider_changes_the_picture(lab, browser, name, source):
    with opened(lab, browser, name) as page:
        assert page.locator(".jp-RenderedImage img, .widget-image").count() > 0
        cell = _cell(page, source)
        picture = cell.locator("img.widget-image")
        shown, drawn = picture.evaluate("img => [img.clientWidth, img.naturalWidth]")
        assert shown <= drawn, "the picture is stretched over the page"
        before = picture.evaluate(PIXELS)
        _drag(page, cell)
        _changed(lambda: picture.evaluate(PIXELS), before)
        _picture(page, cell, name)


def _table(exhibit) -> list[list[str]]:
    """The cells of the table that an exhibit shows, row by row, its head left out."""
    return exhibit.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def test_explore_searches_with_two_models_chooses_pairs_and_merges(lab, browser):
    with opened(lab, browser, "11_explore") as page:
        search, pairs, points, merge = page.locator(".widget-vbox").all()

        def lists() -> list[list[str]]:
            """The passages in the order of the first model, then in that of the second."""
            rows = _table(search)
            return [[r[-1] for r in sorted(rows, key=lambda r: int(r[m]))] for m in (0, 1)]

        before = lists()
        box = search.locator("input[type=text]").first
        box.fill("draw a histogram")
        assert lists() == before, "the search is over before Enter"
        box.press("Enter")
        _changed(lists, before)
        first, second = lists()
        assert first != before[0]
        assert second != before[1]
        assert sorted(first) == sorted(second)
        _picture(page, _cell(page, "search_box("), "11_explore")

        for label, choice in (
            ("data set", "wordsim-353"),
            ("model", "base"),
            ("order", "rated too similar"),
        ):
            before = _table(pairs)
            row = pairs.locator(".widget-dropdown").filter(has_text=label)
            row.locator("select").select_option(choice)
            _changed(lambda: _table(pairs), before)

        image = points.locator("img.widget-image")
        before = image.evaluate(PIXELS)
        points.locator("select").first.select_option("base")
        _changed(lambda: image.evaluate(PIXELS), before)

        image = merge.locator("img.widget-image")
        for turn in (
            lambda: _drag(page, merge.locator(".widget-slider").nth(0)),
            lambda: _drag(page, merge.locator(".widget-slider").nth(1)),
            lambda: merge.locator("select").select_option("model"),
        ):
            before = image.evaluate(PIXELS)
            turn()
            _changed(lambda: image.evaluate(PIXELS), before)
