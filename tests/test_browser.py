"""The page of `report` in a real browser, on demand: `pytest -m browser`."""

import json
import shutil
import subprocess

import pytest
from tiny import tiny_bundle

from facevae.models.bundle import save

pytestmark = pytest.mark.browser

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def opened(page, folder) -> tuple[str, list[str], list[str]]:
    """A page's elements as the browser has them, what it complained of, and what it asked for."""
    log = folder / "net.json"
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *(f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # the browser has errands of its own; those of the page are done in its name
    asked = {
        event["url"]
        for event in events
        if "url" in event and str(event.get("network_isolation_key")).startswith("file://")
    }
    return done.stdout, complaints, sorted(asked)


@pytest.fixture(autouse=True)
def _browser():
    if BROWSER is None:
        pytest.skip("no Chromium here")


def test_the_page_asks_for_nothing_and_has_nothing_to_complain_of(tmp_path, facevae):
    save(tiny_bundle(), tmp_path / "model.safetensors")
    facevae("report", "model.safetensors", "-o", "page.html")
    elements, complaints, asked = opened(tmp_path / "page.html", tmp_path)
    assert elements.count("<img ") == 4
    assert complaints == []
    assert asked == []


def test_a_page_that_did_would_be_noticed(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>x</title><img src='http://127.0.0.1:9/x.png' alt=''>"
        "<script>console.error('broken')</script>"
    )
    _, complaints, asked = opened(page, tmp_path)
    assert any("broken" in line for line in complaints)
    assert asked == ["http://127.0.0.1:9/x.png"]
