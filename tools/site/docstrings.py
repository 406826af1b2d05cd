"""Docstrings as reStructuredText: prose stays prose, indented examples become literal blocks, `Raises:` becomes a list.

The course writes docstrings as plain text with `names` in single backticks. Knows that habit; nothing of Sphinx.
"""

import re

RAISED = re.compile(r"    ([\w.]+(?:, [\w.]+)*): (.+)")


def as_rst(lines: list[str]) -> list[str]:
    """Returns a docstring's lines in reStructuredText."""
    written: list[str] = []
    state = "prose"  # or "raises", or "example"
    for before, line in zip(["", *lines], lines):
        indented = line.startswith("    ")
        if line.strip() == "Raises:":
            state = "raises"
            written += ["", "Raises:", ""]
            continue
        if indented and state == "prose" and not before.strip():
            state = "example"
            written += ["::", ""]
        elif line.strip() and not indented:
            state = "prose"
        written.append(_written(line, state))
    return written


def _written(line: str, state: str) -> str:
    if state == "example":
        return line
    if state == "raises" and (found := RAISED.fullmatch(line)):
        return f"- ``{found[1]}``: {without_markup(found[2])}"
    return f"  {without_markup(line.strip())}" if state == "raises" and line.strip() else without_markup(line)


def without_markup(line: str) -> str:
    """Returns the line with what stands between backticks kept and other characters of markup escaped."""
    parts = line.split("`")
    return "`".join(p if i % 2 else re.sub(r"[*|]|_(?!\w)", r"\\\g<0>", p) for i, p in enumerate(parts))
