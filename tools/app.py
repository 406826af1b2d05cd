"""The chat page of the assistant: `make app`, or `python -m tools.app [--docs folder] [--port 7860] [--no-browser]`.

Serves on loopback only, shares nothing, asks nobody: no analytics, no fonts or scripts from elsewhere, and a content security policy
by which the browser refuses any. The first start embeds the documents; later ones reopen their index in build/app.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.app_uploads import Limits
from tools.ask import fingerprint, index_folder
from utils.corpus import READERS
from utils.runtime import BUILD, DATA

if TYPE_CHECKING:
    from gradio import Blocks

    from utils.assistant import Assistant

HANDBOOK = DATA / "pdfs" / "handbook.pdf"
HOST = "127.0.0.1"
# Gradio's own pages need inline scripts and eval; everything must come from this server.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
Send = Callable[[dict[str, Any]], Awaitable[None]]


class OwnContentOnly:
    """ASGI middleware: every response tells the browser to load nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        async def with_policy(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                extra = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
                event["headers"] = [*event.get("headers", []), *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(event)

        await self.app(scope, receive, with_policy)


def load_assistant(folder: Path, documents: Path) -> Assistant:
    """Return the assistant kept in `folder`, with the documents that it begins with; those that have not changed are not read again.

    One of these that was removed on the page is back after the next start: whoever starts the page asks for it.
    """
    from utils.assistant import Assistant
    from utils.models import load_chat_model, load_embedder

    assistant, remembered = Assistant(load_chat_model(), load_embedder(), folder), folder / "began-with.json"
    read = remembered_states(remembered)
    kept = {report.name for report in assistant.documents()}
    for name, path in named_files(documents).items():
        state = fingerprint(path)
        if name not in kept or read.get(name) != state:
            print(f"Reading {name} ...", flush=True)
            print(assistant.add(path, name=name), flush=True)
            write_json(remembered, read := {**read, name: state})
    return assistant


def named_files(documents: Path) -> dict[str, Path]:
    """Return the files to begin with, by the name that citations will show: the path below the folder."""
    if documents.is_file():
        return {documents.name: documents}
    files = (path for path in sorted(documents.rglob("*")) if path.is_file() and path.suffix.lower() in READERS)
    named = {path.relative_to(documents).as_posix(): path for path in files}
    return {name: path for name, path in named.items() if not re.search(r"(^|/)\.", name)}


def remembered_states(path: Path) -> dict[str, Any]:
    """Return what the documents were like when they were read, by name; nothing where that cannot be told, and they are read again."""
    try:
        states = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return states if isinstance(states, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Replaces the file as a whole."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)  # it might be a link to a file elsewhere
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)


def serve(page: Blocks, port: int | None, limits: Limits, browser: bool) -> str:
    """Return the address at which the page now answers, from a thread of its own. Raises OSError when the port is taken."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from tools.app_page import appearance

    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]), Middleware(OwnContentOnly)]
    _, address, _ = page.launch(
        server_name=HOST, server_port=port, share=False, inbrowser=browser, prevent_thread_lock=True, quiet=True, footer_links=[],
        max_file_size=int(10 * limits.megabytes * 1e6),  # what is larger breaks off at once; below that the page explains per file
        ssr_mode=False, pwa=False, enable_monitoring=False, app_kwargs={"middleware": guards}, **appearance(),
    )  # fmt: skip
    return address


def wait_for_the_end() -> None:
    """Returns on Ctrl-C, or when asked to terminate."""
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.default_int_handler)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        print("\nStopped.")


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.app", description="A chat page on your documents, on this machine only.")
    parser.add_argument("--docs", type=Path, default=HANDBOOK, help="a file or folder to begin with; default: the course's handbook")
    parser.add_argument("--folder", type=Path, help="where index and uploads are kept; default: below build/app, one for each --docs")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--max-mb", type=float, default=Limits.megabytes, help="largest file that can be uploaded, in MB")
    parser.add_argument("--max-pages", type=int, default=Limits.pages, help="most pages that an uploaded file may have")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    return parser.parse_args()


def main() -> int:
    """Returns the exit code."""
    chosen = parse()
    documents = chosen.docs.expanduser().resolve()
    if not documents.exists():
        print(f"There is no {chosen.docs}: give --docs (DOCS= with make) a file or a folder that exists.", file=sys.stderr)
        return 2
    limits = Limits(chosen.max_mb, chosen.max_pages)
    folder = chosen.folder or BUILD / "app" / index_folder(documents).name
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    try:
        assistant = load_assistant(folder, documents)
        from tools.app_page import build_page  # only now: Gradio reads the environment when it is imported

        page = build_page(assistant, limits)
        address = serve(page, chosen.port, limits, not chosen.no_browser)
    except (ValueError, OSError) as error:
        print(f"No page: {error}", file=sys.stderr)
        return 1
    print(f"The page is at {address} and answers this machine only; Ctrl-C ends it.", flush=True)
    wait_for_the_end()
    page.close(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
