"""What people read beside the notebooks: every link within the repository leads somewhere, the glossary and the common errors are true."""

import ast
import http.server
import re
import threading
from pathlib import Path

import pytest

from tools.links import all_links, anchors, broken, external, judged, links, prose, slug
from tools.registry import NOTEBOOKS, ROOT, load_registry

GLOSSARY = (NOTEBOOKS / "GLOSSARY.md").read_text(encoding="utf-8")
ERRORS = (NOTEBOOKS / "COMMON_ERRORS.md").read_text(encoding="utf-8")
TERMS = {part.partition("\n")[0]: part.partition("\n")[2] for part in re.split(r"^### ", GLOSSARY, flags=re.MULTILINE)[1:]}


# Links


def test_every_link_within_the_repository_leads_somewhere():
    assert len(all_links()) > 300, "fewer links than the course began with: does the search still find the prose?"
    assert broken() == []


def test_prose_of_notebooks_cards_and_handbook_is_looked_at():
    seen = {path.relative_to(ROOT).as_posix() for path, _ in prose()}
    wanted = {f"notebooks/{chapter.file}" for chapter in load_registry()}
    assert wanted | {"README.md", "data/README.md", "data/handbook/bm25.md", "data/models/course-lm/README.md"} <= seen


def test_broken_links_are_named(tmp_path):
    text = "# One thing\n[x](b.md) [y](a.md#one-thing) [z](#two) [out](../c.md) `[code](no.md)`\n"
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    assert broken(tmp_path.resolve()) == [
        "a.md: b.md is not there",
        "a.md: #two: no heading makes this anchor",
        "a.md: ../c.md leads out of the repository",
    ]


def test_links_of_every_form_are_found():
    text = '[a](x.md) [![b](y.svg)](z.ipynb#s) <https://one.example> <img src="w.png"> [t](u.md "title")\n```\n[c](code.md)\n```\n'
    assert [link.target for link in links(Path("f.md"), text)] == ["x.md", "y.svg", "z.ipynb#s", "https://one.example", "w.png", "u.md"]


def test_anchors_are_made_as_github_makes_them():
    assert slug("A/A comparison") == "aa-comparison" and slug("KV cache, 2 × n") == "kv-cache-2--n"
    assert anchors("# One\n```\n# no heading\n```\n## [Two](x.md) words\n") == {"one", "two-words"}


class Site(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self):
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_dead_addresses_are_told_from_shy_ones():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    try:
        dead, unsure = judged([f"{at}/200", f"{at}/404", f"{at}/403", "http://127.0.0.1:9/"])
    finally:
        server.shutdown()
    assert dead.pop(f"{at}/404") == 404 and list(dead) == ["http://127.0.0.1:9/"]
    assert unsure == {f"{at}/403": 403}


def test_addresses_of_other_sites_are_listed_with_their_files():
    found = external()
    assert "https://arxiv.org/abs/2305.14314" in found
    assert "notebooks/02_quantization.ipynb" in found["https://arxiv.org/abs/2305.14314"]


# Glossary


def test_terms_are_alphabetical_and_stand_once():
    names = list(TERMS)
    assert len(names) >= 60
    assert names == sorted(set(names), key=str.lower)
    assert all(name[0].upper() in GLOSSARY.split("\n## ")[0] for name in names), "a letter is missing in the line of letters"


@pytest.mark.parametrize("term", TERMS)
def test_term_is_defined_in_one_to_three_sentences_and_points_on(term):
    definition, pointer = (part.strip() for part in TERMS[term].strip().split("\n\n")[:2])
    sentences = re.split(r"(?<=[.!?])\)?\s+(?=[A-Z(])", definition)
    assert 1 <= len(sentences) <= 3, sentences
    assert re.fullmatch(r"\*.*\]\((\d\d_\w+\.ipynb|\.\./data/handbook/[\w-]+\.md)\).*\.\*", pointer), pointer


def said_in(notebook: str) -> str:
    return next(text for path, text in prose() if path == NOTEBOOKS / notebook).lower()


def test_terms_occur_in_the_notebooks_they_point_at():
    pointed = {term: found.group(1) for term, body in TERMS.items() if (found := re.search(r"\((\d\d_\w+\.ipynb)\)", body))}
    texts = {notebook: said_in(notebook) for notebook in set(pointed.values())}
    assert len(pointed) > 60
    assert [term for term, notebook in pointed.items() if term.lower() not in texts[notebook]] == []


# Common errors


def templates() -> list[str]:
    """Every text in utils, with … where a value is put in."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "utils").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    filled = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    return texts + ["".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in values) for values in filled]


def quoted() -> list[str]:
    ours = ERRORS.split("\n## Messages of the course\n")[1].split("\n## ")[0]
    return re.findall(r"^> `(.+)`$", ours, re.MULTILINE)


TEMPLATES = templates()


@pytest.mark.parametrize("message", quoted())
def test_quoted_message_is_in_the_source(message):
    pieces = [piece.strip(" .:;,") for piece in re.split(r"…|\s(?=\()", message) if len(piece.strip(" .:;,")) > 7]
    assert pieces, "quote more of the message"
    missing = [piece for piece in pieces if not any(piece in template for template in TEMPLATES)]
    assert missing == [], "utils says it in other words now"


def test_every_error_has_a_cause_or_a_fix():
    entries = re.split(r"^### ", ERRORS, flags=re.MULTILINE)[1:]
    assert len(entries) >= 30
    assert [entry.partition("\n")[0] for entry in entries if "**Do.**" not in entry] == []
    assert len(quoted()) >= 20
