"""Builds the site into build/site/html, offline: `python -m tools.build_site` (`make site`). Any warning of Sphinx fails the build.

Sources are laid out under build/site/source by `tools.site.pages`; notebooks are shown as saved, none is run.
"""

import os
import subprocess
import sys
from pathlib import Path

from tools.registry import ROOT
from tools.site.pages import clean, write_sources

BUILD = ROOT / "build" / "site"


def build(folder: Path = BUILD) -> int:
    """Returns Sphinx's exit code; the site is in `folder`/html when it is 0."""
    source, html = clean(folder / "source"), clean(folder / "html")
    write_sources(source)
    options = ["-b", "html", "-W", "--keep-going", "-q", "-c", str(ROOT / "tools" / "site"), "-d", str(folder / "doctrees")]
    quiet = {**os.environ, "COURSE_PROFILE": "embedded", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return subprocess.run([sys.executable, "-m", "sphinx", *options, str(source), str(html)], cwd=ROOT, env=quiet).returncode


def main() -> int:
    """Returns the exit code."""
    code = build()
    print(f"The site is in {(BUILD / 'html' / 'index.html').relative_to(ROOT)}." if code == 0 else "The site has warnings; see above.")
    return code


if __name__ == "__main__":
    sys.exit(main())
