"""HTML as text that keeps its structure: headings, lists and tables become markdown, what a page does not show is left out.

Knows BeautifulSoup's trees; knows nothing of files, encodings or metadata.
"""

from __future__ import annotations

import re
from typing import Any

BLOCKS = "p div section article ul ol table pre blockquote header footer main dl dt".split()
BEFORE = {"br": "\n", "li": "\n- ", **dict.fromkeys(BLOCKS, "\n\n")}  # what stands in the text where an element begins
AFTER = {"td": " | ", "th": " | ", "tr": "\n", **dict.fromkeys(BLOCKS, "\n\n")}  # and where it ends
NOT_SHOWN = ("script", "style", "template", "noscript", "nav", "title")


def markdown_of(root: Any) -> str:
    """Return the text of an HTML tree: headings with #, list items with -, table rows with |, blank lines between blocks.

    One walk over the tree, without recursion: 100,000 elements inside one another take as long as side by side.
    """
    from bs4 import CData, NavigableString

    parts: list[str] = []
    heading: tuple[Any, int] | None = None  # the one that is open, and where its text begins in parts
    open_elements = [(root, iter(root.children))]
    while open_elements:
        element, children = open_elements[-1]
        child = next(children, None)
        if child is None:
            open_elements.pop()
            if heading and heading[0] is element:
                words = " ".join(" ".join(parts[heading[1] :]).split())
                parts[heading[1] :] = [f"\n\n{'#' * int(element.name[1])} {words}\n\n"]
                heading = None
            parts.append(AFTER.get(element.name, ""))
        elif child.name is None:
            parts.append(str(child) if type(child) in (NavigableString, CData) else "")
        elif child.name not in NOT_SHOWN:
            parts.append(BEFORE.get(child.name, ""))
            heading = heading or ((child, len(parts)) if re.fullmatch("h[1-6]", child.name) else None)
            open_elements.append((child, iter(child.children)))
    lines = [" ".join(line.split()) for line in "".join(parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
