"""The links in everything people read: markdown files and the prose of notebooks.

`python -m tools.links` names links within the repository that lead nowhere. `--external` asks every linked address of other sites once
(the weekly workflow does); `--list` prints them. Code is no prose: links in it are left alone.
"""

import argparse
import json
import os
import re
import sys
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from tools.registry import ROOT

SKIPPED = {".venv", ".venv-colab", "build", "shared", "node_modules", ".git", ".ipynb_checkpoints", "drafts"}
CODE = re.compile(r"^(```|~~~).*?^\1\s*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|<(https?://[^>\s]+)>|(?:src|href)=\"([^\"]+)\"")
GONE = {404, 410}
UNSURE = {401, 403, 405, 429, 500, 501, 502, 503, 504}  # the page may be there; the server does not talk to programs, or not now


class Link(NamedTuple):
    """A link and the file that it stands in."""

    file: Path
    target: str

    @property
    def is_external(self) -> bool:
        """Returns whether it leads out of the repository."""
        return bool(re.match(r"[a-z][a-z0-9+.-]*:", self.target))


def prose(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Yields every markdown file, and every notebook as the text of its markdown cells."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(set(inner) - SKIPPED)
        for path in (Path(folder, name) for name in sorted(names)):
            if path.suffix == ".md":
                yield path, path.read_text(encoding="utf-8")
            elif path.suffix == ".ipynb":
                cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
                yield path, "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def links(file: Path, text: str) -> list[Link]:
    """Returns the links of a text, in order."""
    return [Link(file, next(filter(None, groups))) for groups in LINK.findall(CODE.sub("", text))]


def all_links(root: Path = ROOT) -> list[Link]:
    """Returns every link of the repository's prose."""
    return [link for file, text in prose(root) for link in links(file, text)]


def anchors(text: str) -> set[str]:
    """Returns the anchors of a markdown text's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#{1,6} (.+?)\s*#*$", re.sub(r"^(```|~~~).*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {slug(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings}


def slug(heading: str) -> str:
    """Returns a heading's anchor: lower case, no punctuation, hyphens for spaces."""
    kept = [c for c in heading.strip().lower() if c in " -_" or unicodedata.category(c)[0] in "LN"]
    return "".join(kept).replace(" ", "-")


def problem(link: Link, root: Path = ROOT) -> str | None:
    """Returns why a link within the repository leads nowhere; None when it does not, or when it is external."""
    if link.is_external:
        return None
    name, _, anchor = unquote(link.target).partition("#")
    path = (link.file.parent / name).resolve() if name else link.file
    if not path.is_relative_to(root):
        return f"{link.target} leads out of the repository"
    if not path.exists():
        return f"{link.target} is not there"
    if anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
        return f"{link.target}: no heading makes this anchor"
    return None


def broken(root: Path = ROOT) -> list[str]:
    """Returns one line per link within the repository that leads nowhere."""
    found = [(link, problem(link, root)) for link in all_links(root)]
    return [f"{link.file.relative_to(root)}: {why}" for link, why in found if why]


def external(root: Path = ROOT) -> dict[str, list[str]]:
    """Returns the addresses of other sites, each with the files that link to it."""
    addresses: dict[str, list[str]] = {}
    for link in all_links(root):
        if link.target.startswith(("http://", "https://")):
            addresses.setdefault(link.target.partition("#")[0], []).append(str(link.file.relative_to(root)))
    return {address: sorted(set(files)) for address, files in sorted(addresses.items())}


def status(address: str, timeout: float = 20, tries: int = 2) -> int | str:
    """Returns the HTTP status that an address answers with, or in words why it does not answer."""
    answer: int | str = "not asked"
    for method in ("HEAD", "GET") * tries:
        request = urllib.request.Request(address, method=method, headers={"User-Agent": "Mozilla/5.0 (link check)"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:  # noqa: S310  an address from our own prose
                return int(reply.status)
        except urllib.error.HTTPError as error:
            answer = error.code
        except (OSError, ValueError) as error:
            answer = f"{type(error).__name__}: {error}"
        if answer in GONE and method == "GET":
            break
    return answer


def judged(addresses: Iterable[str], workers: int = 8) -> tuple[dict[str, int | str], dict[str, int | str]]:
    """Returns the addresses that are dead and those that would not say, each with its answer."""
    listed = list(addresses)
    with ThreadPoolExecutor(workers) as pool:
        answers = dict(zip(listed, pool.map(status, listed)))
    bad = {address: answer for address, answer in answers.items() if answer != 200}
    return {a: s for a, s in bad.items() if s not in UNSURE}, {a: s for a, s in bad.items() if s in UNSURE}


def main() -> int:
    """Returns the exit code: 1 when a link leads nowhere."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--external", action="store_true", help="ask the linked addresses of other sites")
    parser.add_argument("--list", action="store_true", help="print the linked addresses of other sites")
    chosen = parser.parse_args()
    found = external()
    if chosen.list:
        print("\n".join(found))
        return 0
    lines = broken()
    if chosen.external:
        dead, unsure = judged(found)
        lines += [f"{', '.join(found[address])}: {address} answers {answer}" for address, answer in dead.items()]
        print("\n".join(f"look by hand: {address} answers {answer}" for address, answer in unsure.items()))
    print("\n".join(lines) or f"All links hold ({len(found)} addresses of other sites{'' if chosen.external else ' not asked'}).")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
