"""Spelling of prose, code and notebooks: `python -m tools.spelling`, a part of `make lint`.

codespell reads the repository as [tool.codespell] in pyproject.toml says. Notebooks are given to it as the text of their cells: what a
model wrote into an output is cut anywhere and is nobody's spelling.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.registry import NOTEBOOKS, ROOT


def write_cells(folder: Path) -> None:
    """Write the sources of every notebook into `folder`, a text file each."""
    for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
        name = "-".join(path.relative_to(NOTEBOOKS).parts).removesuffix(".ipynb")
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Returns codespell's exit code: the number of misspellings, 0 when there are none."""
    with tempfile.TemporaryDirectory(prefix="cells-") as folder:
        write_cells(Path(folder))
        return subprocess.run([sys.executable, "-m", "codespell_lib", ".", folder], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
