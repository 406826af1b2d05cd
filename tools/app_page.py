"""The chat page: conversation with citations that open, upload with progress, list of documents. Gradio, nothing from elsewhere.

Knows Gradio and `utils.assistant`; what may be uploaded is `app_uploads`' business, HTML that of `app_html`. Conversations belong to
one tab each; the documents are shared by all tabs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from tools import app_html as html
from tools.app_uploads import Limits, Outcome, removed, take_in

if TYPE_CHECKING:
    from utils.assistant import Assistant

TITLE = "Ask your documents"
INTRODUCTION = (
    "Ask a question, and read the answer with the passage it comes from. Answers are written by a small language model on this machine: "
    "**check them against their citations.**"
)
SHARED = "Documents are kept on this machine and seen in every tab. A conversation belongs to its tab, and ends with it."
PLACEHOLDER = "Ask something, or begin with one of these."
EXAMPLES = ["What is BM25?", "How many values does NF4 have?", "What is the capital of France?"]
LONGEST_QUESTION = 1_000  # characters: the prompt must hold question and passages

# System fonts: Gradio's default theme would fetch its own from a font server.
FONTS = ["system-ui", "sans-serif"]
# The theme's own texts have contrasts of 2.5 to 4.5 in light mode; they need 4.5 (WCAG 2.2, level AA).
COLOURS = {
    "background_fill_primary": "*neutral_50",  # the theme's own; `set` forgets it
    "block_label_text_color": "*primary_700",
    "block_title_text_color": "*primary_700",
    "body_text_color_subdued": "*neutral_600",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_300",
}
CSS = """
.citation { margin: .25rem 0; }
.citation summary { cursor: pointer; font-weight: 600; padding: .125rem 0; }
summary:focus-visible, button:focus-visible { outline: 3px solid var(--color-accent) !important; outline-offset: -1px; }
.citation blockquote { margin: .25rem 0 .5rem; padding: .25rem .75rem; border-left: 3px solid var(--color-accent); }
.citation mark { background: #ffe58f; color: #1f2937; padding: 0 .1em; }
.aside { margin: .5rem 0 0; font-size: .9em; }
#conversation .icon-button-wrapper { display: none; }  /* its one button does what "New conversation" says in words */
#conversation .example { border: 1px solid var(--border-color-primary); border-radius: var(--radius-md); }
#documents ul, #outcome ul { margin: 0; padding-left: 1.2rem; overflow-wrap: anywhere; list-style: disc; }
#outcome ul { list-style: none; padding-left: 0; }
#outcome progress { display: block; width: 100%; height: .75rem; margin-top: .25rem; }
#outcome progress::-webkit-progress-bar { background: var(--border-color-primary); }
#outcome progress::-webkit-progress-value { background: var(--color-accent); }
"""
# A region whose changes a screen reader speaks, and the name it goes by.
LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite'); element.setAttribute('aria-label', 'Upload');"

History = list[dict[str, Any]]


def build_page(assistant: Assistant, limits: Limits) -> gr.Blocks:
    """Return the page; `gr.Blocks.launch` serves it, with `appearance()`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\n\n{INTRODUCTION}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                parts = conversation_column()
            with gr.Column(scale=1, min_width=320):
                parts |= documents_column(assistant, limits)
        connect_conversation(page, assistant, parts)
        connect_documents(assistant, limits, parts)
        outputs = [parts["documents"], parts["chosen"]]
        page.load(lambda: listed(assistant), None, outputs, show_progress="hidden", api_visibility="private")
    return page


def appearance() -> dict[str, Any]:
    """Return theme and style for `launch`."""
    theme = gr.themes.Soft(font=FONTS, font_mono=["monospace"])
    return {"theme": theme.set(**COLOURS), "css": CSS}


def conversation_column() -> dict[str, Any]:
    """Return the parts of the conversation, in the order in which Tab reaches them."""
    gr.Markdown("## Conversation")
    chat = gr.Chatbot(
        show_label=False, elem_id="conversation", height="50vh", min_height=320, buttons=[], placeholder=PLACEHOLDER,
        examples=[{"text": example} for example in EXAMPLES], render_markdown=False, latex_delimiters=[], sanitize_html=True,
    )  # fmt: skip
    hint = "What do the documents say about …?"
    question = gr.Textbox(label="Your question", elem_id="question", placeholder=hint, max_length=LONGEST_QUESTION)
    with gr.Row():
        ask = gr.Button("Ask", variant="primary")
        reset = gr.Button("New conversation")
    return {"chat": chat, "question": question, "ask": ask, "reset": reset}


def documents_column(assistant: Assistant, limits: Limits) -> dict[str, Any]:
    """Return the parts about documents."""
    gr.Markdown("## Documents")
    documents = gr.HTML(html.documents(assistant.documents()), elem_id="documents")
    upload = gr.File(label="Add documents", file_count="multiple", height=160)
    outcome = gr.HTML("", elem_id="outcome", js_on_load=LIVE)
    gr.Markdown(f"PDF, Markdown, text and HTML files, {limits}. {SHARED}")
    chosen = gr.Dropdown([], label="Document to remove", elem_id="chosen")
    remove = gr.Button("Remove")
    return {"documents": documents, "upload": upload, "outcome": outcome, "chosen": chosen, "remove": remove}


def connect_conversation(page: gr.Blocks, assistant: Assistant, parts: dict[str, Any]) -> None:
    """Lets the button, the Enter key and the examples ask, and the other button begin anew."""
    chat, question = parts["chat"], parts["question"]

    def reply(asked: str, history: History, request: gr.Request) -> Iterator[tuple[History, str]]:
        yield from streamed(assistant, asked, history, str(request.session_hash))

    def example(history: History, chosen: gr.SelectData, request: gr.Request) -> Iterator[tuple[History, str]]:
        yield from streamed(assistant, chosen.value["text"], history, str(request.session_hash))

    shown: dict[str, Any] = {"outputs": [chat, question], "show_progress": "hidden", "api_visibility": "private"}
    asking = gr.on([parts["ask"].click, question.submit], reply, [question, chat], concurrency_id="model", **shown)
    choosing = chat.example_select(example, chat, concurrency_id="model", **shown)

    def forget(request: gr.Request) -> None:
        assistant.reset(str(request.session_hash))

    def begin_anew(request: gr.Request) -> tuple[History, str]:
        forget(request)
        return [], ""

    anew = gr.on([parts["reset"].click, chat.clear], begin_anew, None, cancels=[asking, choosing], **shown)
    anew.then(None, js="() => document.querySelector('#question textarea').focus()")
    page.unload(forget)


def connect_documents(assistant: Assistant, limits: Limits, parts: dict[str, Any]) -> None:
    """Lets a chosen file be read at once, a chosen document be removed, and the list of documents show either."""

    def take(files: list[str] | None) -> Iterator[tuple[str, None, str, Any]]:
        done: list[Outcome] = []
        for news in take_in(assistant, [Path(file) for file in files or []], limits):
            done += [news] if isinstance(news, Outcome) else []
            bar = "" if isinstance(news, Outcome) else html.progress(*news)
            yield html.outcomes(done) + bar, None, *listed(assistant)

    def remove(name: str | None) -> tuple[str, str, Any]:
        return html.outcomes([removed(assistant, name)]), *listed(assistant)

    changed = [parts["documents"], parts["chosen"]]
    shown: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    parts["upload"].upload(take, parts["upload"], [parts["outcome"], parts["upload"], *changed], **shown)
    parts["remove"].click(remove, parts["chosen"], [parts["outcome"], *changed], **shown)


def listed(assistant: Assistant) -> tuple[str, Any]:
    """Return the list of documents, and their names as a choice with none chosen."""
    reports = assistant.documents()
    return html.documents(reports), gr.Dropdown(choices=[report.name for report in reports], value=None)


def streamed(assistant: Assistant, asked: str, history: History, session: str) -> Iterator[tuple[History, str]]:
    """Yield the conversation as it grows by the question and its answer, and the emptied question field."""
    if not asked.strip():
        gr.Info("Type a question first.")
        yield history, asked
        return
    history = [*history, {"role": "user", "content": html.message(asked)}]
    yield [*history, said("…")], ""
    written = ""
    try:
        for piece in assistant.stream(asked, session):
            if isinstance(piece, str):
                written += piece
                yield [*history, said(written or "…")], ""
            else:
                yield [*history, said(piece.answer, html.support(piece))], ""
    except ValueError as error:  # no document yet, or a prompt that does not fit: its words are for people
        yield [*history, said(str(error))], ""


def said(words: str, support: str = "") -> dict[str, Any]:
    """Return what there is of an answer as a message, its citations in HTML below the text."""
    below = [gr.HTML(support)] if support else []
    return {"role": "assistant", "content": [html.message(words), *below]}
