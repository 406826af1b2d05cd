"""The site's sources: notebooks, handbook, glossary and a start page, laid out as in the repository, so that every relative link holds.

Everything is derived: chapters from notebooks/index.toml, articles from data/handbook, modules from utils. Knows markdown and the
notebook format; the pages themselves are Sphinx's business (`conf`). Writes into the folder it is given and nowhere else.
"""

import ast
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import nbformat
import yaml

from tools.headers import badge, colab_url, minutes
from tools.registry import ROOT, Chapter, Repository, load_registry, load_repository
from tools.site.figures import figure_text
from utils.results import MIME_TYPE

AS_THEY_ARE = ("notebooks/GLOSSARY.md", "notebooks/COMMON_ERRORS.md", "notebooks/course_map.svg", "data/README.md", "CHANGELOG.md")
REFERENCE = (
    "notebooks/GLOSSARY", "notebooks/COMMON_ERRORS", "notebooks/solutions/index", "data/handbook/index", "data/index", "api/index",
)  # fmt: skip
TOPICS = {
    "foundations": "Foundations", "inference": "Inference", "quantization": "Quantization", "embeddings": "Embeddings",
    "indexes": "Indexes", "retrieval": "Retrieval", "rag": "Retrieval-augmented generation", "evaluation": "Evaluation",
    "training": "Training", "fine-tuning": "Fine-tuning", "serving": "Serving", "safety": "Safety",
}  # fmt: skip


def write_sources(target: Path) -> None:
    """Write every source file of the site into `target`, an empty folder."""
    chapters, repository = load_registry(), load_repository()
    for chapter in chapters:
        write_notebook(chapter.path, target / "notebooks" / chapter.file, chapter, repository)
        write_notebook(chapter.solution, target / "notebooks" / "solutions" / chapter.file, chapter, repository)
    for path in [ROOT / name for name in AS_THEY_ARE] + sorted((ROOT / "data" / "models").glob("*/README.md")):
        put(target / path.relative_to(ROOT), path.read_text(encoding="utf-8"))
    modules = api_modules(ROOT / "utils")
    for path in sorted((ROOT / "data" / "handbook").glob("*.md")):
        put(target / path.relative_to(ROOT), article(path.read_text(encoding="utf-8")))
    put(target / "index.md", start_page(chapters, repository))
    put(target / "notebooks" / "solutions" / "index.md", solutions_page(chapters))
    put(target / "data" / "handbook" / "index.md", handbook_page(ROOT / "data" / "handbook"))
    put(target / "data" / "index.md", data_page())
    put(target / "api" / "index.md", api_page(modules))
    for name in modules:
        put(target / "api" / f"{name}.rst", module_page(name))


def put(path: Path, text: str) -> None:
    """Write a text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_notebook(source: Path, target: Path, chapter: Chapter, repository: Repository) -> None:
    """Write the notebook as the site shows it: Colab's badge as a button, the set-up cell folded, each figure with its words."""
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    button = f"[Open in Colab]({colab_url(chapter, repository)}){{.colab}}"
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(badge(chapter, repository), button)
            continue
        if "setup" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
        if words := figure_text(notebook.cells, i):
            cell.metadata["mystnb"] = {"image": {"alt": words}}
        for output in cell.outputs:
            output.get("data", {}).pop(MIME_TYPE, None)  # the same number as text stands beside it
    put(target, nbformat.writes(notebook))


def article(text: str) -> str:
    """Returns a handbook article without its front matter, which becomes a list of sources at the end."""
    _, front, body = text.split("---\n", 2)
    sources = yaml.safe_load(front).get("sources", [])
    return body + ("\n## Sources\n\n" + "".join(f"- {source}\n" for source in sources) if sources else "")


def front_matter(path: Path) -> dict[str, str]:
    """Returns title and topic of a handbook article."""
    return dict(yaml.safe_load(path.read_text(encoding="utf-8").split("---\n", 2)[1]))


def toctree(entries: Iterable[str], **options: str | int) -> str:
    """Returns a table-of-contents directive."""
    head = "".join(f":{name}: {value}\n" for name, value in options.items())
    return f"```{{toctree}}\n{head}\n" + "\n".join(entries) + "\n```\n"


def start_page(chapters: list[Chapter], repository: Repository) -> str:
    """Returns the page that visitors see first."""
    rows = [
        f"| {c.id} | [{c.title}](notebooks/{c.file}) | {c.promise} | {c.level} | {minutes(c).split(' /')[0]} | {c.memory_gb:g} "
        f"| [Colab]({colab_url(c, repository)}){{.colab}} |"
        for c in chapters
    ]
    table = "| # | notebook | what you do | level | minutes | GB | |\n|---|---|---|---|---|---|---|\n" + "\n".join(rows)
    trees = [
        toctree([f"notebooks/{Path(c.file).stem}" for c in chapters], hidden="", caption="The course"),
        toctree(REFERENCE, hidden="", caption="Look things up"),
        toctree(["CHANGELOG", f"Source on GitHub <https://github.com/{repository.slug}>"], hidden="", caption="The project"),
    ]
    text = Path(__file__).with_name("start.txt").read_text(encoding="utf-8")
    return text.replace("@TABLE@", table).replace("@SLUG@", repository.slug).replace("@NAME@", repository.name) + "\n" + "\n".join(trees)


def solutions_page(chapters: list[Chapter]) -> str:
    """Returns the list of executed solutions."""
    head = "# Solutions\n\nAn executed solution for every exercise. Try first: each has hints, and its check says what is missing.\n\n"
    return head + toctree([f"{c.id} · {c.title} <{Path(c.file).stem}>" for c in chapters], maxdepth=1)


def handbook_page(folder: Path) -> str:
    """Returns the handbook's contents by topic, in the order of the course."""
    articles = {path.stem: front_matter(path) for path in sorted(folder.glob("*.md"))}
    missing = {a["topic"] for a in articles.values()} - set(TOPICS)
    if missing:
        raise ValueError(f"The handbook has topics that the site does not know: {', '.join(sorted(missing))}. Add them to TOPICS.")
    head = "# Handbook\n\nThe corpus that the course searches, and a reference to read: every article names its sources.\n"
    parts = [
        f"\n## {title}\n\n" + toctree([stem for stem, a in articles.items() if a["topic"] == topic], maxdepth=1)
        for topic, title in TOPICS.items()
    ]
    return head + "".join(parts)


def data_page() -> str:
    """Returns the contents of the data cards and model cards."""
    cards = sorted(path.parent.name for path in (ROOT / "data" / "models").glob("*/README.md"))
    head = "# Data and models\n\nWhat the course ships, where it comes from, and what it must not be used for.\n\n"
    return head + toctree(["README", *(f"models/{name}/README" for name in cards)], maxdepth=1)


def api_modules(package: Path) -> dict[str, str]:
    """Returns the first line of every module's docstring by the module's name; checkers of exercises, which tell answers, are left out."""
    files = [path for path in sorted(package.rglob("*.py")) if not re.match(r"chapter\d", path.stem)]
    names = {".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    return {name: first_line(path) for name, path in names.items()}


def first_line(path: Path) -> str:
    """Returns the first paragraph of a module's docstring as one line."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.split("\n\n")[0].split())


def api_page(modules: dict[str, str]) -> str:
    """Returns the contents of the API reference."""
    head = (
        "# API reference\n\nThe package that the notebooks share, one page a module. Each function can be read in a minute; the "
        "notebooks show the plain library call before they use it.\n\n| module | what it is for |\n|---|---|\n"
    )
    rows = "".join(f"| [`{name}`]({name}.rst) | {summary.replace('|', chr(92) + '|')} |\n" for name, summary in modules.items())
    return head + rows + "\n" + toctree(modules, hidden="")


def module_page(name: str) -> str:
    """Returns the page of one module, in reStructuredText, which autodoc writes."""
    return f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n   :ignore-module-all:\n   :show-inheritance:\n"


def clean(folder: Path) -> Path:
    """Returns the folder, made anew and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
