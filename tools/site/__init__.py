"""The site: what turns notebooks, handbook, glossary and docstrings into pages. `python -m tools.build_site` (`make site`) builds it."""
