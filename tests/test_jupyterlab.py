"""JupyterLab, for real: a browser opens notebook 05, clicks Run All Cells, and sees the last cell's output and no error.

The copy that it opens asks fewer questions in its measurements; nbval runs the notebook as it is.
"""

import json
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from tests.browser import ROOT, chromium, running, save_screenshot, watched_page
from tools.headers import BADGE_IMAGE
from tools.serve import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Page

NOTEBOOK = ROOT / "notebooks" / "05_langchain_rag.ipynb"
FEWER = ("SAMPLE, OPEN_SAMPLE, SEED = 16, 8, 0", "SAMPLE, OPEN_SAMPLE, SEED = 4, 2, 0")
RUN_MS = 300_000  # one busy core may need this long; two quiet ones need a fifth of it
ERROR = '[data-mime-type="application/vnd.jupyter.error"]'


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder inside a copy of the course, as the notebook sees it: the notebook without outputs, and a link to `utils`."""
    folder = tmp_path / "course" / "notebooks"
    folder.mkdir(parents=True)
    (folder.parent / "utils").symlink_to(ROOT / "utils")
    nbformat.write(copy_to_run(), folder / NOTEBOOK.name)
    return folder


def copy_to_run() -> nbformat.NotebookNode:
    """Returns the notebook without outputs, with a smaller sample."""
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count, cell.source = [], None, cell.source.replace(*FEWER)
    assert any(FEWER[1] in cell.source for cell in notebook.cells), "the parameters cell has changed: change FEWER with it"
    return notebook


@pytest.fixture
def lab(workplace: Path, tmp_path: Path):
    """The address of a JupyterLab that knows nothing of this machine's settings and asks nobody for news or updates."""
    port, token = free_port(), secrets.token_hex(16)
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={workplace}"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--LabApp.news_url=None", "--LabApp.extension_manager=readonly"]
    own = {name: str(tmp_path / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(settings.parent.parent), "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces")}
    with running(command, f"http://127.0.0.1:{port}/api", tmp_path / "lab.log", JUPYTER_TOKEN=token, **own):
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}?token={token}"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Returns the cells that are executed."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run_all(page: "Page", address: str, count: int) -> None:
    """Opens the notebook and runs it through the menu; returns when the last of `count` code cells has its number, or one failed."""
    page.goto(address)
    page.locator("#jp-main-statusbar").get_by_text(re.compile(r"\| Idle$")).wait_for(timeout=60_000)  # the kernel answers
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    last = page.locator(".jp-InputPrompt", has_text=re.compile(rf"^\[{count}\]:$"))
    last.or_(page.locator(ERROR)).first.wait_for(state="attached", timeout=RUN_MS)
    assert page.locator(ERROR).all_inner_texts() == []


@pytest.mark.slow
def test_notebook_05_runs_in_jupyterlab_with_run_all(lab: str, workplace: Path):
    words = code_cells(nbformat.read(NOTEBOOK, 4))[-1].outputs[0].text.strip()
    count = len(code_cells(nbformat.read(workplace / NOTEBOOK.name, 4)))
    with chromium() as browser, watched_page(browser, known=(BADGE_IMAGE,)) as page:
        run_all(page, lab, count)
        seen = page.locator(".jp-CodeCell", has_text=f"[{count}]:").locator(".jp-OutputArea", has_text=words)
        seen.scroll_into_view_if_needed()
        save_screenshot(page, "jupyterlab-notebook-05")
        page.keyboard.press("Control+s")
        page.locator(".jp-mod-dirty").first.wait_for(state="detached")
    cells = code_cells(nbformat.read(workplace / NOTEBOOK.name, 4))
    assert [cell.execution_count for cell in cells] == list(range(1, count + 1))
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []
