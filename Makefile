# Two commands set everything up on a machine with Python >= 3.11, make and a package registry:
#   make study   the paper's study, its tables, figures and report, validated
#   make test    lint, types and tests
# and for those who change natal:
#   make test-all    what takes longer, too: full products of contract tests

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
OUT ?= results

.PHONY: study test test-all vega clean

study: .venv/installed
	$(BIN)/natal run paper --out $(OUT)
	$(BIN)/natal validate $(OUT)
	@echo "Open $(OUT)/report.html in a browser, or read $(OUT)/report.txt"

test: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@# a call of its own: tests and benchmarks both have a module `networks`
	MYPYPATH=tests $(BIN)/mypy tests
	$(BIN)/pytest -n 2

test-all: test
	$(BIN)/pytest -n 2 -m slow --timeout 1200

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "natal needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable '.[lab]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

# the script that pages draw their charts with: when vl-convert-python is pinned to another version
vega: .venv/installed-dev
	$(BIN)/python tools/bundle_vega.py

clean:
	rm -rf .venv
