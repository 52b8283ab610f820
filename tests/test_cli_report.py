"""`report`, run in separate processes."""

import json
import os

import pytest
from test_page import check_page
from tiny import tiny_bundle

from facevae.models.bundle import save

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


@pytest.fixture
def model(tmp_path):
    """A tiny model, `model.safetensors`, in the working directory of the command line."""
    save(tiny_bundle(), tmp_path / "model.safetensors")
    return "model.safetensors"


def test_a_page_is_written_without_replacing_files_by_default(model, facevae, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    done = facevae("report", model, "--json")
    assert json.loads(done.stdout) == {
        "model": {"name": model, "path": model},
        "outputs": ["report-1.html"],
    }
    assert (tmp_path / "report.html").read_text() == "mine"
    check_page((tmp_path / "report-1.html").read_text("utf-8"))


def test_invalid_input_is_refused_in_one_line(model, facevae, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no-plots" / "matplotlib").mkdir(parents=True)
    (tmp_path / "no-plots" / "matplotlib" / "__init__.py").write_text("raise ImportError\n")
    path = os.pathsep.join([str(tmp_path / "no-plots"), os.environ.get("PYTHONPATH", "")])
    for arguments, code, message, environment in (
        ((model, "-o", "page.png"), 2, "one .html file", {}),
        ((model, "-o", "empty"), 2, "one .html file", {}),
        (("empty",), 1, "no model.safetensors", {}),
        ((model,), 2, "pip install 'facevae[plot]'", {"PYTHONPATH": path}),
    ):
        done = facevae("report", *arguments, code=code, **environment)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
    assert list(tmp_path.glob("*.html")) == []
