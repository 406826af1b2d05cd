"""Counts what the notebooks ask of their models: `python -m tools.model_passes [05 …]`.

Runs each notebook with `tools/passes_hook` on PYTHONPATH, which notes every pass of every model in every process, and writes
data/logs/model_passes.csv: per notebook, model and kind of pass how many passes, rows and tokens, and the seconds they took here;
`everything` is the whole notebook's seconds. Knows nothing about a T4: `tools.t4_estimate` does.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tools.execute import execute
from tools.logs import write_csv
from tools.registry import ROOT, Chapter, load_registry, select

LOG = ROOT / "data" / "logs" / "model_passes.csv"
HOOK = Path(__file__).parent / "passes_hook"
COLUMNS = ("model", "parameters", "kind", "rows", "width", "seconds")


def kind_of(kind: str, width: int) -> str:
    """Returns "decode" for a pass of one token a row, else what the hook noted: read, train or backward."""
    return "decode" if kind == "read" and width == 1 else kind


def summed(lines: list[str], notebook: str, seconds: float) -> list[dict[str, Any]]:
    """Returns a row for each model and kind of pass, and one for the whole notebook."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])
    for line in lines:
        one = dict(zip(COLUMNS, line.split(","), strict=True))
        rows, width = int(one["rows"]), int(one["width"])
        sums = found[one["model"], one["parameters"], kind_of(one["kind"], width)]
        for place, value in enumerate((1, rows, rows * width, float(one["seconds"]))):
            sums[place] += value
    found["", "0", "everything"] = [0, 0, 0, seconds]
    names = ("passes", "rows", "tokens", "seconds")
    return [
        {"notebook": notebook, "model": model, "parameters": parameters, "kind": kind}
        | {name: round(value, 1) if name == "seconds" else int(value) for name, value in zip(names, sums)}
        for (model, parameters, kind), sums in sorted(found.items())
    ]


def counted(chapter: Chapter) -> list[dict[str, Any]]:
    """Returns the rows of one notebook; one that fails is a RuntimeError."""
    passes = ROOT / "build" / f"passes-{chapter.id}.csv"
    passes.write_text("", encoding="utf-8")
    environment = {"COURSE_PASSES": str(passes), "PYTHONPATH": str(HOOK), "COURSE_PROFILE": "embedded"}
    execution = execute(chapter.path, environment, cell_timeout=600)
    if execution.failure:
        raise RuntimeError(f"Notebook {chapter.id} failed in cell {execution.failure.cell}: {execution.failure.error}")
    return summed(passes.read_text(encoding="utf-8").splitlines(), chapter.id, execution.seconds)


def logged() -> list[dict[str, Any]]:
    """Returns the rows of the log."""
    if not LOG.is_file():
        return []
    with LOG.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def main() -> None:
    """Counts the notebooks named on the command line, all without one, and replaces their rows in the log."""
    import utils  # noqa: F401  sets the offline environment that kernels inherit

    for chapter in select(load_registry(), sys.argv[1:]):
        fresh = counted(chapter)
        rows = [row for row in logged() if row["notebook"] != chapter.id] + fresh
        write_csv(LOG, sorted(rows, key=lambda row: row["notebook"]))
        print(chapter.id, f"{fresh[0]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
