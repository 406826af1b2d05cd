"""Results: what a notebook measured, shown to its reader and readable by tests from the saved file.

`record` shows one line and stores the number in the cell's output; `read_results` finds all of them in a notebook file.
The number travels inside the notebook, so text, scoreboard and test cannot drift apart. Knows nothing of what was measured.
"""

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MIME_TYPE = "application/vnd.grounded-llms.result+json"


def record(name: str, value: float, unit: str = "", baseline: float | None = None, budget: float | None = None) -> None:
    """Show the named number below the cell and store it in the cell's output.

    baseline: the same number for the simpler way, shown beside it. budget: the bound the course sets for it.
    Raises ValueError if one of them is not a finite number.
    """
    from IPython.display import display

    given = {"value": value, "baseline": baseline, "budget": budget}
    result = {"name": name, "unit": unit} | {key: _number(f"{name}: {key}", one) for key, one in given.items()}
    display({"text/plain": describe(result), MIME_TYPE: result}, raw=True)


def read_results(notebook: str | Path | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a notebook recorded, by name: {"name", "value", "unit", "baseline", "budget"} each.

    notebook: a path, or the notebook as a dictionary (nbformat 4). Raises ValueError if two outputs record the same name.
    """
    content = notebook if isinstance(notebook, Mapping) else json.loads(Path(notebook).read_text(encoding="utf-8"))
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
    found = [output["data"][MIME_TYPE] for output in outputs if MIME_TYPE in output.get("data", {})]
    results = {one["name"]: dict(one) for one in found}
    if len(results) < len(found):
        raise ValueError(f"A name is recorded twice among {[one['name'] for one in found]}: give each number its own name.")
    return results


def describe(result: Mapping[str, Any]) -> str:
    """Return a result as one line: "answer F1: 0.62 (baseline 0.2, × 3.1; budget 0.6)"."""
    value, baseline, budget, unit = (result[key] for key in ("value", "baseline", "budget", "unit"))
    notes = []
    if baseline is not None:
        ratio = f", × {_format(value / baseline)}" if baseline and value / baseline > 0 else ""
        notes.append(f"baseline {_format(baseline)}{ratio}")
    if budget is not None:
        notes.append(f"budget {_format(budget)}")
    return f"{result['name']}: {_format(value)} {unit}".rstrip() + (f" ({'; '.join(notes)})" if notes else "")


def _number(what: str, value: Any) -> int | float | None:
    """Return `value` as a plain int or float (None stays None): NumPy's and PyTorch's scalars do not fit into JSON."""
    if value is None or isinstance(value, bool):
        return value
    try:
        plain = int(value) if isinstance(value, numbers.Integral) else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is {value!r}; record a single number.") from error
    if not math.isfinite(plain):
        raise ValueError(f"{what} is {plain}; record a finite number.")
    return plain


def _format(value: float) -> str:
    """Return three significant digits, or all digits before the point with thousands separated."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
