"""Reads notebooks/index.toml, the registry: the one source of order, titles, badges, budgets and published numbers.

Knows the registry's fields and what a published number may be. Does not run, render or change a notebook.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SOLUTIONS = NOTEBOOKS / "solutions"


@dataclass(frozen=True)
class Bounds:
    """What a published number may be: `min` and `max` are inclusive, None leaves that side open."""

    min: float | None = None
    max: float | None = None

    def problem(self, value: float) -> str | None:
        """Returns why `value` is out of bounds, or None; NaN is out of any bounds."""
        if value != value:
            return "is not a number"
        if self.min is not None and value < self.min:
            return f"is {value:.4g}, below the registry's minimum {self.min:g}"
        if self.max is not None and value > self.max:
            return f"is {value:.4g}, above the registry's maximum {self.max:g}"
        return None


@dataclass(frozen=True)
class Chapter:
    """One notebook of the course, as notebooks/index.toml describes it."""

    id: str
    file: str
    title: str
    promise: str
    goal: str
    level: str
    minutes_cpu: float
    memory_gb: float
    needs: str
    minutes_t4: float | None = None  # this and the next two are computed: tools/t4_estimate.py
    memory_t4_gb: float | None = None
    download_t4_gb: float = 0.0
    budget_seconds: float = 60
    budget_memory_gb: float = 3.0
    published: Mapping[str, Bounds] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Returns where the notebook lies."""
        return NOTEBOOKS / self.file

    @property
    def solution(self) -> Path:
        """Returns where the chapter's executed solutions lie."""
        return SOLUTIONS / self.file


@dataclass(frozen=True)
class Repository:
    """Where this copy of the course lives on GitHub: `slug` is owner/name."""

    slug: str
    branch: str

    @property
    def name(self) -> str:
        """Returns the folder a clone makes."""
        return self.slug.rpartition("/")[2]


def chapter_from(entry: Mapping[str, Any]) -> Chapter:
    """Returns the chapter of one [[notebook]] table; an unknown or missing field is a ValueError that names it."""
    known = set(Chapter.__dataclass_fields__)
    label = f"notebooks/index.toml, notebook {entry.get('id', '?')}"
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"{label}: unknown field {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    published = {name: Bounds(**bounds) for name, bounds in entry.get("published", {}).items()}
    try:
        return Chapter(**{**entry, "published": published})
    except TypeError as error:
        raise ValueError(f"{label}: {error}") from error


def load_registry(path: Path = NOTEBOOKS / "index.toml") -> list[Chapter]:
    """Returns the chapters in the order of the course."""
    chapters = [chapter_from(entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["notebook"]]
    ids = [chapter.id for chapter in chapters]
    if ids != sorted(set(ids)):
        raise ValueError(f"{path.name}: ids must be unique and in the order of the course, found {', '.join(ids)}")
    return chapters


def select(chapters: list[Chapter], wanted: list[str]) -> list[Chapter]:
    """Returns the chapters that `wanted` names ("05", "5" or the file's name), all of them when it is empty."""
    chosen = {name: [c for c in chapters if name.zfill(2) == c.id or Path(name).stem == Path(c.file).stem] for name in wanted}
    if unknown := [name for name, found in chosen.items() if not found]:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(c.id for c in chapters)}")
    return [c for c in chapters if not wanted or any(c in found for found in chosen.values())]


def load_repository(path: Path = ROOT / "pyproject.toml") -> Repository:
    """Returns the repository that badges and the set-up cell point at, from [tool.course] in pyproject.toml."""
    course = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["course"]
    return Repository(course["repository"], course["branch"])


def number_problems(chapter: Chapter, numbers: Mapping[str, Mapping[str, Any]], complete: bool = True) -> list[str]:
    """Returns one line per published number that is out of bounds or, when `complete`, missing."""
    problems = []
    for name, bounds in chapter.published.items():
        if name not in numbers:
            problems += [f"{name} was not recorded"] if complete else []
        elif problem := bounds.problem(float(numbers[name]["value"])):
            problems.append(f"{name} {problem}")
    return problems
