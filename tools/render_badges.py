"""Renders what notebooks/index.toml and the repository slug decide: README's table, colab_badges.md, the head of every notebook, and
the repository's address in the files that name it.

`python -m tools.render_badges` writes them, `--check` only says which are out of date (exit code 1). Outputs of notebooks are kept.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat

from tools.headers import badge, minutes, setup_cell, table_cell, title_cell
from tools.registry import ROOT, Chapter, Repository, load_registry, load_repository

ADDRESSED = ("CITATION.cff", "CHANGELOG.md", ".github/ISSUE_TEMPLATE/config.yml")  # they name this repository on GitHub and no other
START, END = "<!-- notebooks:start (rendered by `make badges` from notebooks/index.toml) -->", "<!-- notebooks:end -->"


def readme_table(chapters: list[Chapter], repository: Repository) -> str:
    """Returns README's table of notebooks."""
    head = "| # | notebook | what you do | level | minutes (CPU / T4) | |\n|---|---|---|---|---|---|"
    rows = [
        f"| {c.id} | [{c.title}](notebooks/{c.file}) | {c.promise} | {c.level} | {minutes(c)} | {badge(c, repository)} |" for c in chapters
    ]
    return "\n".join([head, *rows])


def badge_page(chapters: list[Chapter], repository: Repository) -> str:
    """Returns the text of colab_badges.md."""
    rows = [f"| {c.id} | [{c.title}](notebooks/{c.file}) | {badge(c, repository)} |" for c in chapters]
    head = "# Open in Colab\n\nRendered by `make badges` from `notebooks/index.toml`.\n\n| # | notebook | |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def readdressed(text: str, repository: Repository) -> str:
    """Returns `text` with every address of a repository on GitHub made this one's."""
    return re.sub(r"https://github\.com/[\w.-]+/[\w.-]+", f"https://github.com/{repository.slug}", text)


def between_markers(text: str, table: str) -> str:
    """Returns `text` with everything between the two markers replaced; a text without them is a ValueError."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md has lost its markers; put back {START} and {END} around the table.")
    return f"{before}{START}\n{table}\n{END}{after}"


def with_header(notebook: nbformat.NotebookNode, chapter: Chapter, repository: Repository) -> nbformat.NotebookNode:
    """Returns the notebook with its first two cells and its set-up cell as the registry has them, made where they are missing."""
    cells = notebook.cells
    for position, source in enumerate([title_cell(chapter, repository), table_cell(chapter)]):
        mark = "# " if position == 0 else "| | |"
        present = len(cells) > position and cells[position].cell_type == "markdown" and mark in cells[position].source
        if not present:
            cells.insert(position, nbformat.v4.new_markdown_cell())
        cells[position].source = source
    return with_setup(notebook, repository, position=2)


def with_setup(notebook: nbformat.NotebookNode, repository: Repository, position: int = 1) -> nbformat.NotebookNode:
    """Returns the notebook with the cell tagged `setup` as it must be; without one, it is put at `position`."""
    found = [cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", [])]
    if not found:
        found = [nbformat.v4.new_code_cell(metadata={"tags": ["setup"]})]
        notebook.cells.insert(position, found[0])
    found[0].source = setup_cell(repository)
    return notebook


def rendered_notebook(path: Path, chapter: Chapter, repository: Repository) -> str:
    """Returns the file's text with its head rendered; solutions get the set-up cell only."""
    notebook = nbformat.read(path, as_version=4)
    notebook = with_header(notebook, chapter, repository) if path == chapter.path else with_setup(notebook, repository)
    text: str = nbformat.writes(notebook)
    return text.rstrip("\n") + "\n"


def render(root: Path = ROOT) -> dict[Path, str]:
    """Returns the text that each rendered file must have."""
    chapters, repository = load_registry(), load_repository()
    readme = root / "README.md"
    texts = {
        readme: between_markers(readme.read_text(encoding="utf-8"), readme_table(chapters, repository)),
        root / "colab_badges.md": badge_page(chapters, repository),
        **{root / name: readdressed((root / name).read_text(encoding="utf-8"), repository) for name in ADDRESSED},
    }
    for chapter in chapters:
        texts.update({p: rendered_notebook(p, chapter, repository) for p in (chapter.path, chapter.solution) if p.is_file()})
    return texts


def outdated(texts: dict[Path, str]) -> list[Path]:
    """Returns the files whose text differs from what it must be."""
    return [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    """Returns the exit code: 1 when `--check` found something out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only name the files that are out of date")
    check = parser.parse_args().check
    texts = render()
    stale = outdated(texts)
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(texts[path], encoding="utf-8")
    if check and stale:
        print("Run `make badges`.", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
