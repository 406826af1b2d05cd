"""The scoreboard of a course run: as text for the terminal and as build/course/index.html. Shows results, judges nothing itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from tools.execute import CellFailure
from tools.registry import Bounds, Chapter

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin-bottom: 2rem }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid #ccc; vertical-align: top }
td.figure { text-align: right; font-variant-numeric: tabular-nums }
pre { background: #f5f5f5; border-left: 4px solid #222; padding: .6rem; overflow-x: auto }
.failed { font-weight: bold }
"""


@dataclass(frozen=True)
class Row:
    """One notebook's result: what it took, what it published, and every problem in words (empty when all is well)."""

    chapter: Chapter
    seconds: float
    peak_memory_gb: float
    numbers: Mapping[str, Mapping[str, Any]]
    failure: CellFailure | None = None
    problems: list[str] = field(default_factory=list)
    link: str = ""

    @property
    def over_budget(self) -> list[str]:
        """Returns which budgets were exceeded, in words."""
        over = []
        if self.seconds > self.chapter.budget_seconds:
            over.append(f"{self.seconds:.0f} s, budget {self.chapter.budget_seconds:.0f} s")
        if self.peak_memory_gb > self.chapter.budget_memory_gb:
            over.append(f"{self.peak_memory_gb:.1f} GB, budget {self.chapter.budget_memory_gb:.1f} GB")
        return over

    @property
    def verdict(self) -> str:
        """Returns one word for the table."""
        return "failed" if self.failure else "see below" if self.problems else "over budget" if self.over_budget else "ok"


def expected(bounds: Bounds | None) -> str:
    """Returns what the registry expects of a number, in words."""
    if bounds is None or (bounds.min is None and bounds.max is None):
        return ""
    if bounds.max is None:
        return f"≥ {bounds.min:g}"
    return f"≤ {bounds.max:g}" if bounds.min is None else f"{bounds.min:g} … {bounds.max:g}"


def number_rows(row: Row) -> list[tuple[str, str, str, str]]:
    """Returns (name, value with unit, baseline, what the registry expects) per published number."""
    rows = []
    for name, number in row.numbers.items():
        unit = f" {number['unit']}" if number.get("unit") else ""
        baseline = number.get("baseline")
        shown = f"{baseline:.4g}{unit}" if isinstance(baseline, int | float) else str(baseline or "")
        rows.append((name, f"{number['value']:.4g}{unit}", shown, expected(row.chapter.published.get(name))))
    return rows


def failure_text(row: Row) -> str:
    """Returns the failure as the reader needs it: notebook, cell, source, error."""
    assert row.failure is not None
    source = "\n".join(f"    {line}" for line in row.failure.source.splitlines())
    error = "\n".join(f"    {line}" for line in row.failure.error.splitlines())
    return f"{row.chapter.file} failed at cell {row.failure.cell}:\n{source}\n  with\n{error}"


def as_text(rows: list[Row], seconds: float) -> str:
    """Returns the scoreboard for a terminal, failures and problems last; `seconds` is what the whole run took."""
    lines = [f"{'notebook':<28}{'seconds':>9} /budget{'peak GB':>9} /budget  result"]
    for row in rows:
        budget = row.chapter
        lines.append(
            f"{budget.file.removesuffix('.ipynb'):<28}{row.seconds:>9.1f} /{budget.budget_seconds:<6.0f}"
            f"{row.peak_memory_gb:>9.2f} /{budget.budget_memory_gb:<6.1f}  {row.verdict}"
        )
        lines += [
            f"    {n:<36}{v:>16}  {f'baseline {b}' if b else '':<22}{f'expected {e}' if e else ''}" for n, v, b, e in number_rows(row)
        ]
    lines.append(f"{'all, by the clock':<28}{seconds:>9.1f}")
    for row in rows:
        lines += ["", failure_text(row)] if row.failure else []
        lines += [f"{row.chapter.file}: {problem}" for problem in [*row.problems, *(f"over budget: {o}" for o in row.over_budget)]]
    return "\n".join(line.rstrip() for line in lines)


def as_html(rows: list[Row], title: str) -> str:
    """Returns the scoreboard as one page that needs nothing else."""
    head = "<tr><th>notebook</th><th>seconds</th><th>budget</th><th>peak GB</th><th>budget</th><th>result</th></tr>"
    body = "".join(
        f'<tr><td><a href="{escape(row.link)}">{escape(row.chapter.id)} · {escape(row.chapter.title)}</a></td>'
        f'<td class="figure">{row.seconds:.1f}</td><td class="figure">{row.chapter.budget_seconds:g}</td>'
        f'<td class="figure">{row.peak_memory_gb:.2f}</td><td class="figure">{row.chapter.budget_memory_gb:g}</td>'
        f'<td class="{"failed" if row.verdict != "ok" else ""}">{escape(row.verdict)}</td></tr>'
        for row in rows
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{escape(title)}</h1><table>{head}{body}</table>{''.join(map(details, rows))}</html>\n"
    )


def details(row: Row) -> str:
    """Returns one notebook's section of the page: its numbers, then what went wrong."""
    cells = "".join(
        f'<tr><td>{escape(n)}</td><td class="figure">{escape(v)}</td><td class="figure">{escape(b)}</td><td>{escape(e)}</td></tr>'
        for n, v, b, e in number_rows(row)
    )
    table = f"<table><tr><th>number</th><th>value</th><th>baseline</th><th>expected</th></tr>{cells}</table>" if cells else ""
    failure = f"<pre>{escape(failure_text(row))}</pre>" if row.failure else ""
    problems = "".join(f"<p>{escape(p)}</p>" for p in [*row.problems, *(f"Over budget: {o}" for o in row.over_budget)])
    return f"<h2>{escape(row.chapter.id)} · {escape(row.chapter.title)}</h2><p>{escape(row.chapter.promise)}</p>{table}{failure}{problems}"
