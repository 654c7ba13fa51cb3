"""JupyterLab as a person uses it: open a notebook, run all cells, move a slider, look.

Needs Chromium (Debian's package, or any other) and Playwright: `make test-browser`. Playwright's
own browsers are not used, so nothing is fetched.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from test_smoke import copy_project

from codiemb_lib.sources import load_dataset

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright: pip install playwright"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"needs Chromium, found none of {', '.join(BROWSERS)} on the PATH"
)
TOKEN = "a-token-of-the-tests"
START, RUN, TURN = 120, 420, 60  # seconds for the server, for all cells, for a picture
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
        server.wait(60)


def _wait(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer within {START} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser():
    # Chromium's sandbox does not start for root, nor in most containers.
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("name", ["00_start_here", "02_losses_by_hand"])
def test_all_cells_run_and_a_slider_changes_the_picture(lab, browser, name):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(1000 * START)
    page.goto(f"{lab}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
    page.wait_for_selector(".jp-CodeCell")
    # Whoever runs a cell before the kernel is there is asked which one it shall be.
    page.get_by_text(re.compile(r"^Python 3.*\| Idle$")).wait_for()

    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    page.wait_for_function(ALL_RUN, timeout=1000 * RUN)
    assert not page.locator("[data-mime-type='application/vnd.jupyter.error']").count()
    assert page.locator(".jp-RenderedImage img, .widget-image").count() > 0

    picture = page.locator("img.widget-image").first
    shown, drawn = picture.evaluate("img => [img.clientWidth, img.naturalWidth]")
    assert shown <= drawn, "the picture is stretched over the page"
    handle = page.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    before = picture.evaluate(PIXELS)
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=4)
    page.mouse.up()

    end = time.monotonic() + TURN
    while picture.evaluate(PIXELS) == before:
        assert time.monotonic() < end, "the picture stayed as it was"
        time.sleep(0.2)
    assert not page.locator("[data-mime-type='application/vnd.jupyter.error']").count()
    assert not page.get_by_text("Error displaying widget").count()
    page.close()
