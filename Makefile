# Two commands set everything up on a machine with Python >= 3.11, make and a package registry:
#   make study   the paper's study, its tables, figures and report, validated
#   make test    lint, types and tests
# and for those who change natal:
#   make test-all    what takes longer, too: full products of contract tests, the packages, the site with its notebooks
#   make site        the documentation with its executed notebooks, in docs/_build/index.html

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
OUT ?= results

.PHONY: study test test-all site vega clean

study: .venv/installed
	$(BIN)/natal run paper --out $(OUT)
	$(BIN)/natal validate $(OUT)
	@echo "Open $(OUT)/report.html in a browser, or read $(OUT)/report.txt"

test: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@# a call of its own: tests and benchmarks both have a module `networks`
	$(BIN)/mypy tests
	$(BIN)/pytest -n 2 --dist worksteal

test-all: test .venv/installed-site .venv/installed-clusters
	@# a report's page is tested in a browser; without one, its tests are left out, and say so
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } \
	  >/dev/null 2>&1 || echo "chromium cannot be installed here: the report's page is not opened in a browser"
	@# and a Slurm of one node is set up for a test; without it submitit plays its jobs, and says so
	@command -v slurmctld >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge; } \
	  >/dev/null 2>&1 || echo "slurm-wlm and munge cannot be installed here: no real Slurm is tried"
	$(BIN)/pytest -n 2 --dist worksteal -m slow

site: .venv/installed-site
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build
	@echo "Open docs/_build/index.html"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "natal needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable '.[lab]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

.venv/installed-site: .venv/installed-dev
	$(PIP) --editable '.[site]'
	@touch $@

.venv/installed-clusters: .venv/installed-dev
	@for engine in dask ray slurm; do \
	  $(PIP) --editable ".[$$engine]" || echo "natal[$$engine] cannot be installed here: --on $$engine is not tried"; \
	done
	@touch $@

# the script that pages draw their charts with: when vl-convert-python is pinned to another version
vega: .venv/installed-dev
	$(BIN)/python tools/bundle_vega.py

clean:
	rm -rf .venv
