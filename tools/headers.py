"""What the registry writes into a notebook: title cell, table cell and set-up cell. Knows their wording; changes no file."""

from tools.registry import Chapter, Repository

BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"

# Silent away from Colab. There, on a fresh runtime, it clones the course and installs what Colab lacks (tools/colab_setup.py).
# The root is searched upwards, so the same cell works in notebooks/ and in notebooks/solutions/.
SETUP = """\
# Set-up: on Colab, fetch the course and install what Colab lacks; elsewhere, only find the course's own code.
import os
import sys
from pathlib import Path

if "COLAB_RELEASE_TAG" in os.environ and not Path("../utils").is_dir():
    if not Path("{name}").is_dir():
        !git clone -q --depth 1 --branch {branch} https://github.com/{slug}
    %cd -q {name}/notebooks
root = next((folder for folder in Path.cwd().resolve().parents if (folder / "utils" / "runtime.py").is_file()), None)
if root is None:
    raise FileNotFoundError("The course's code is not here: on Colab, run this cell again; elsewhere, open the notebook inside a clone.")
sys.path.insert(0, str(root))
if "COLAB_RELEASE_TAG" in os.environ:
    from tools.colab_setup import install_what_colab_lacks

    install_what_colab_lacks(root)
import utils  # noqa: F401 - first of all libraries: settles whether the others may use the network"""


def colab_url(chapter: Chapter, repository: Repository) -> str:
    """Returns the address that opens the chapter's notebook in Colab."""
    return f"https://colab.research.google.com/github/{repository.slug}/blob/{repository.branch}/notebooks/{chapter.file}"


def badge(chapter: Chapter, repository: Repository) -> str:
    """Returns the badge as markdown: an image that links to Colab."""
    return f"[![Open in Colab]({BADGE_IMAGE})]({colab_url(chapter, repository)})"


def minutes(chapter: Chapter) -> str:
    """Returns the minutes on both machines, as shown in tables: measured on two CPU cores, computed for a T4."""
    return f"{chapter.minutes_cpu:g} / " + ("not known" if chapter.minutes_t4 is None else f"{chapter.minutes_t4:g}")


def memory(chapter: Chapter) -> str:
    """Returns the measured peak on two CPU cores and the computed one of a T4's own memory."""
    t4 = "not known" if chapter.memory_t4_gb is None else f"{chapter.memory_t4_gb:g} GB"
    return f"{chapter.memory_gb:g} GB / {t4} of the GPU's"


def download(chapter: Chapter) -> str:
    """Returns what the first run on a T4 downloads besides the packages."""
    return f"; its first run downloads a model of {chapter.download_t4_gb:g} GB" if chapter.download_t4_gb else ""


def title_cell(chapter: Chapter, repository: Repository) -> str:
    """Returns cell 0: badge, title, one line of promise."""
    return f"{badge(chapter, repository)}\n\n# {chapter.id} · {chapter.title}\n\n{chapter.promise}"


def table_cell(chapter: Chapter) -> str:
    """Returns cell 1: the header table."""
    rows = [
        ("Goal", chapter.goal),
        ("Level", chapter.level),
        ("Minutes (2 CPU cores / T4)", f"{minutes(chapter)} (measured / computed{download(chapter)})"),
        ("Peak memory (2 CPU cores / T4)", f"{memory(chapter)} (measured / computed)"),
        ("Needs", chapter.needs),
        ("Help", "[glossary](GLOSSARY.md) · [common errors](COMMON_ERRORS.md)"),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def setup_cell(repository: Repository) -> str:
    """Returns the source of the cell tagged `setup`, the first code cell of every notebook."""
    return SETUP.format(name=repository.name, slug=repository.slug, branch=repository.branch)
