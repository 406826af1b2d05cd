"""The chat page: what may be uploaded, what is shown of hostile text, and the whole page in a real browser."""

import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.browser import DESKTOP, PHONE, ROOT, chromium, low_contrast, running, save_screenshot, watched_page
from tests.hash_embedder import HashEmbedder
from tools import app_html as html
from tools.app_uploads import LONGEST_NAME, Limits, Outcome, refusal, removed, safe_name, take_in
from tools.serve import free_port
from utils.assistant import Assistant, AssistantAnswer, DocumentReport, PageCitation

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ATTACK = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/x.pdf", "x.pdf"),
        ("..\\..\\x.pdf", "x.pdf"),
        ("a\x00b\u202egpj.pdf", "abgpj.pdf"),
        ("  two \n lines .md", "two lines.md"),
        ("Cafe\u0301 Ärger 日本.pdf", "Café Ärger 日本.pdf"),
        (".pdf", "pdf"),
        ("...", "document"),
        ("", "document"),
        (f"{ATTACK}.md", f"{ATTACK}.md"),
    ],
)
def test_name_loses_folders_and_invisible_characters_only(given_name, shown):
    assert safe_name(given_name) == shown


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
@example("0.00000000 0")
@example("Report of 3.5 and more")
def test_any_name_becomes_a_short_visible_name_without_folders(name):
    made = safe_name(name)
    assert 0 < len(made) <= LONGEST_NAME and made.isprintable() and not re.search(r"[/\\]", made) and not made.startswith(".")
    assert safe_name(made) == made


def pdf(path: Path, pages: list[str], password: str = "") -> Path:
    """Returns the path of a PDF made of these pages' texts."""
    from fpdf import FPDF

    document = FPDF()
    document.set_font("Helvetica", size=12)
    for text in pages:
        document.add_page()
        document.multi_cell(0, 8, text)
    if password:
        document.set_encryption(owner_password="owner", user_password=password)
    document.output(str(path))
    return path


def test_refusal_says_what_would_be_taken(tmp_path):
    limits = Limits(megabytes=20, pages=2)
    (tmp_path / "large.pdf").touch()
    os.truncate(tmp_path / "large.pdf", 50_000_000)
    (tmp_path / "long.txt").write_text("word " * 2_000)
    (tmp_path / "empty.md").touch()
    (tmp_path / "x.exe").write_bytes(b"MZ")
    long = pdf(tmp_path / "long.pdf", ["one", "two", "three"])
    reasons = {name: refusal(tmp_path / name, name, limits) for name in ("large.pdf", "long.txt", "empty.md", "x.exe", "long.pdf")}
    assert reasons["large.pdf"] == "it has 50.0 MB and 20 MB are the limit; split it, or leave pictures out"
    assert reasons["long.txt"] == "it has 3 pages and 2 are the limit; split it into parts"
    assert reasons["long.pdf"] == reasons["long.txt"] and reasons["empty.md"] == "the file is empty"
    assert "files of type .exe are not read" in reasons["x.exe"] and ".pdf" in reasons["x.exe"]
    assert refusal(long, "long.pdf", Limits()) is None


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    """An assistant that reads and searches but has no model to answer."""
    return Assistant(None, HashEmbedder(), tmp_path / "index", reranker=None)


def test_one_bad_file_leaves_the_rest_alone_and_no_copy_stays(assistant, tmp_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing of the kind")
    pdf(uploads / "locked.pdf", ["secret"], password="known to nobody")
    (uploads / "empty.txt").touch()
    pdf(uploads / "good.pdf", ["The library of Velden opens at nine.", ""])
    seen = list(take_in(assistant, sorted(uploads.iterdir()), Limits()))
    words = {one.name: (one.taken, one.words) for one in seen if isinstance(one, Outcome)}
    assert words["good.pdf"] == (True, "1 page with text, 1 passage; no text on page 2 (scanned? run OCR on it first)")
    assert words["locked.pdf"] == (False, "it is encrypted; save a copy without a password")
    assert words["empty.txt"] == (False, "the file is empty")
    assert not words["broken.pdf"][0] and "cannot be read as pdf" in words["broken.pdf"][1]
    assert [report.name for report in assistant.documents()] == ["good.pdf"] and not list(uploads.iterdir())
    shares = [one[0] for one in seen if not isinstance(one, Outcome)]
    assert 0.0 in shares and 1.0 in shares


def test_document_is_removed_and_what_cannot_be_is_explained(assistant, tmp_path):
    (tmp_path / "note.md").write_text("# A note\n\nThe baker of Embry sells rolls.")
    assistant.add(tmp_path / "note.md")
    assert removed(assistant, None) == Outcome("Remove a document", False, "choose one first")
    assert removed(assistant, "note.md").taken and assistant.documents() == []
    again = removed(assistant, "note.md")  # as from another tab, whose list is older
    assert not again.taken and again.words.startswith("There is no document 'note.md'.")


def test_error_of_the_assistant_is_the_outcome_of_that_file(tmp_path):
    def fail(*args: object, **options: object) -> None:
        raise OSError("no space left on device")

    (tmp_path / "a.md").write_text("# A\n\ntext")
    assert list(take_in(SimpleNamespace(add=fail), [tmp_path / "a.md"], Limits())) == [
        Outcome("a.md", False, "OSError: no space left on device")
    ]


def test_text_of_documents_and_models_never_becomes_markup():
    cited = PageCitation(f"{ATTACK}.pdf", 3, ATTACK, f"before {ATTACK} after", ATTACK)
    answer = AssistantAnswer("q", ATTACK, ATTACK, (cited, cited), False, withheld=(ATTACK,))
    shown = html.support(answer) + html.message(ATTACK) + html.documents([DocumentReport(ATTACK, 1, 2, (ATTACK,))])
    shown += html.progress(0.5, ATTACK) + html.outcomes([Outcome(ATTACK, False, ATTACK)])
    assert "<img" not in shown and shown.count("<details") == 1 and "<mark>&lt;img" in shown


def test_citation_names_document_page_and_section_and_marks_the_sentence():
    shown = html.citation(PageCitation("a.pdf", 12, "NF4", "# NF4\nOne.\nTwo is it.", "Two is it."))
    assert "<summary>a.pdf, page 12 · NF4</summary>" in shown
    assert "<blockquote><strong>NF4</strong><br>One.<br><mark>Two is it.</mark></blockquote>" in shown


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The page as `make app` serves it: the course's model, embedder and handbook; its address, process, folder and log."""
    folder, port = tmp_path_factory.mktemp("app"), free_port()
    command = [sys.executable, "-m", "tools.app", "--no-browser", f"--port={port}", f"--folder={folder / 'kept'}"]
    address, log = f"http://127.0.0.1:{port}", folder / "log"
    with running(command, address, log, seconds=240) as process:
        yield SimpleNamespace(address=address, process=process, folder=folder / "kept", log=log)


@pytest.fixture
def page(browser: "Browser", server: SimpleNamespace) -> Iterator["Page"]:
    with watched_page(browser, DESKTOP) as opened:
        opened.set_default_timeout(60_000)
        opened.goto(server.address)
        opened.get_by_label("Your question").wait_for()
        yield opened


def ask(page: "Page", question: str) -> None:
    """Types the question and presses Enter."""
    page.get_by_label("Your question").fill(question)
    page.get_by_label("Your question").press("Enter")


# Collects what one part of the page says each time the page changes, so that nothing passes too fast to be seen: the last answer (more
# than one text means that it came in pieces), and where the upload stands.
WATCH = """part => { const seen = new Set(); window.seen = window.seen ?? {}; window.seen[part] = seen; new MutationObserver(() =>
  document.querySelectorAll(part).forEach(element => seen.add(element.textContent))
).observe(document.body, { subtree: true, childList: true, characterData: true }); }"""
ANSWERS, STEPS = "[data-testid=bot]", "#outcome label:has(progress)"


@pytest.mark.slow
def test_upload_question_citation_follow_up_refusal_reset(page: "Page", server: SimpleNamespace):
    talk, upload = page.get_by_role("log"), page.get_by_role("status", name="Upload")
    assert "handbook.pdf" in page.get_by_role("list").filter(has_text="passages").inner_text()
    save_screenshot(page, "app-1-start")

    page.evaluate(WATCH, STEPS)
    page.locator("input[type=file]").set_input_files(ROOT / "data" / "pdfs" / "newsroom.pdf")
    upload.locator("progress, li").first.wait_for()
    save_screenshot(page, "app-2-upload")
    upload.get_by_text("newsroom.pdf").get_by_text("no text on page").wait_for()
    assert any("embedding passage" in step for step in page.evaluate("part => [...window.seen[part]]", STEPS))
    assert not list((server.folder / "uploads").rglob("*.pdf"))

    page.evaluate(WATCH, ANSWERS)
    ask(page, "Which film took the main prize at the Silver Sedge festival?")
    citation = talk.locator("summary", has_text="newsroom.pdf, page 3")
    citation.wait_for()
    assert "Winter Ferry" in talk.inner_text() and page.evaluate("part => window.seen[part].size", ANSWERS) > 3
    page.get_by_label("Your question").press("Shift+Tab")
    assert citation.evaluate("element => element === document.activeElement")
    page.keyboard.press("Enter")
    assert "Winter Ferry" in talk.locator("mark").inner_text()
    save_screenshot(page, "app-3-citation")

    ask(page, "How many films did it show?")
    talk.get_by_text("Searched for: Which film took the main prize at the Silver Sedge festival? How many films did it show?").wait_for()
    assert "69" in talk.inner_text()
    ask(page, "Who painted the ceiling of the Sistine Chapel?")
    talk.get_by_text("The documents do not say.").wait_for()
    save_screenshot(page, "app-4-refusal")
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    save_screenshot(page, "app-4-refusal-phone")

    page.get_by_role("button", name="New conversation").click()
    page.get_by_role("button", name="What is BM25?").wait_for()
    assert "Winter Ferry" not in talk.inner_text()


@pytest.mark.slow
def test_tabs_share_documents_but_no_conversation(page: "Page", browser: "Browser", server: SimpleNamespace):
    page.get_by_role("button", name="What is BM25?").click()
    page.get_by_role("log").locator("summary").first.wait_for()
    with watched_page(browser) as other:
        other.goto(server.address)
        other.get_by_role("button", name="What is BM25?").wait_for()
        ask(other, "For which system was it developed?")
        other.locator("summary").or_(other.get_by_text("The documents do not say.")).first.wait_for(timeout=60_000)
        assert "Searched for" not in other.get_by_role("log").inner_text()
        assert "handbook.pdf" in other.locator("#documents").inner_text()


@pytest.mark.slow
def test_hostile_uploads_are_refused_in_words_and_the_rest_is_read(page: "Page", tmp_path: Path):
    (tmp_path / "huge.pdf").touch()
    os.truncate(tmp_path / "huge.pdf", 50_000_000)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing of the kind")
    (tmp_path / "program.exe").write_bytes(b"MZ")
    (tmp_path / f"{'long ' * 40}.txt").write_text("The clerk of Pellworth collects stamps.")
    (tmp_path / f"{ATTACK}.md").write_text(f"# {ATTACK}\n\nThe baker of Embry sells {ATTACK} rolls.")
    pdf(tmp_path / "locked.pdf", ["secret"], password="known to nobody")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.locator("input[type=file]").set_input_files(sorted(tmp_path.iterdir()))
    said = page.get_by_role("status", name="Upload")
    for words in ("huge.pdf: it has 50.0 MB and 20 MB are the limit", "broken.pdf: cannot be read as pdf", "files of type .exe are not"):
        said.get_by_text(words).wait_for()
    said.get_by_text("locked.pdf: it is encrypted").wait_for()
    listed = page.locator("#documents")
    listed.get_by_text("onerror").wait_for()
    assert listed.get_by_text("long long").count() == 1 and "huge" not in listed.inner_text()
    assert page.locator("img[src=x]").count() == 0
    save_screenshot(page, "app-5-hostile-uploads")


@pytest.mark.slow
def test_document_is_removed_with_the_keyboard_alone(page: "Page", tmp_path: Path):
    (tmp_path / "pellworth.txt").write_text("The clerk of Pellworth collects stamps.")
    page.locator("input[type=file]").set_input_files(tmp_path / "pellworth.txt")
    said, listed = page.get_by_role("status", name="Upload"), page.locator("#documents")
    listed.get_by_text("pellworth.txt").wait_for()
    choice, button = page.get_by_label("Document to remove"), page.get_by_role("button", name="Remove", exact=True)
    button.press("Enter")
    said.get_by_text("Remove a document: choose one first").wait_for()
    choice.focus()
    page.keyboard.type("pellworth")
    page.get_by_role("option", name="pellworth.txt").wait_for()  # the list of documents is there before the choices are
    page.keyboard.press("Enter")
    page.wait_for_function("input => input.value === 'pellworth.txt'", arg=choice.element_handle())
    page.keyboard.press("Tab")
    assert button.evaluate("element => element === document.activeElement")
    save_screenshot(page, "app-6-remove")
    page.keyboard.press("Enter")
    said.get_by_text("pellworth.txt: removed; answers no longer come from it").wait_for()
    assert "pellworth" not in listed.inner_text() and "handbook.pdf" in listed.inner_text() and choice.input_value() == ""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")])
def test_page_is_readable_named_and_fits(browser: "Browser", server: SimpleNamespace, size: tuple[int, int], scheme: str):
    with watched_page(browser, size, color_scheme=scheme) as page:
        page.goto(server.address)
        page.get_by_role("button", name="What is BM25?").wait_for()
        save_screenshot(page, f"app-{'phone' if size == PHONE else 'desktop'}-{scheme}")
        assert low_contrast(page) == []
        assert not re.findall(r"- (?:button|textbox|link|progressbar)(?::|$)", page.locator("body").aria_snapshot(), re.MULTILINE)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert [page.get_by_role("heading", level=level).count() for level in (1, 2)] == [1, 2]


@pytest.mark.slow
def test_page_answers_only_its_own_name_and_lets_nothing_in_from_elsewhere(server: SimpleNamespace):
    with urllib.request.urlopen(server.address, timeout=20) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(server.address, headers={"Host": "example.org"}), timeout=20)


@pytest.mark.slow
def test_file_of_this_machine_that_nobody_uploaded_is_neither_read_nor_deleted(server: SimpleNamespace, tmp_path: Path):
    """What a page of a stranger could send to the upload's own address, without the page."""
    (tmp_path / "private.md").write_text("# Private\n\nThe key lies under the mat.")
    with urllib.request.urlopen(f"{server.address}/config", timeout=20) as answer:
        config = json.load(answer)
    upload = next(one["id"] for one in config["components"] if one["type"] == "file")
    number = next(one["id"] for one in config["dependencies"] if [upload, "upload"] in one["targets"])
    file = {"path": str(tmp_path / "private.md"), "meta": {"_type": "gradio.FileData"}}
    wish = json.dumps({"data": [[file]], "fn_index": number, "session_hash": "stranger"}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server.address}/gradio_api/queue/join", wish, headers), timeout=20).close()
    with urllib.request.urlopen(f"{server.address}/gradio_api/queue/data?session_hash=stranger", timeout=60) as events:
        end = next(line for line in events if b"process_completed" in line)
    assert json.loads(end.removeprefix(b"data:"))["success"] is False and (tmp_path / "private.md").is_file()
    kept = b"".join(path.read_bytes() for path in server.folder.rglob("*.json*") if path.is_file())
    assert b"handbook.pdf" in kept and b"under the mat" not in kept and b"private.md" not in kept


@pytest.mark.slow
def test_ctrl_c_ends_it_without_a_traceback(server: SimpleNamespace):
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 0
    said = server.log.read_text(encoding="utf-8")
    assert said.rstrip().endswith("Stopped.")
    refused = said.count("InvalidPathError:")  # of the test above: Gradio logs how it refused
    assert said.count("Traceback") == refused <= 1
