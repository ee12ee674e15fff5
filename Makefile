# Every target runs in .venv, which `make setup` builds once from the exact pins.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export MEDREC_HOME ?= $(CURDIR)/medrec-work
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check format bench atlas docs

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## build .venv from requirements.lock (does nothing the second time)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit(f"medrec is pinned for Python 3.11, this is {v[0]}.{v[1]}: set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## the whole chain on the open MIMIC demo, with a report (at most 15 minutes)
	$(BIN)/medrec demo

test: setup  ## the tests that fit in ten minutes, on two cores
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow and not restricted_data"

test-all: setup  ## all tests
	$(BIN)/pytest -m "not restricted_data"

check: setup  ## formatting, lint, types, import contracts, configuration files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/medrec check-configs configs

format: setup  ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## run benchmarks/NAME.py: make bench NAME=...
	@test -n "$(NAME)" || { echo "usage: make bench NAME=..., one of: $$(grep -l '^def main' benchmarks/*.py | xargs -n1 basename | sed 's/\.py//' | tr '\n' ' ')"; exit 2; }
	$(BIN)/python benchmarks/$(NAME).py $(ARGS)

atlas: setup  ## compute data/atlas again (about 35 CPU minutes)
	$(BIN)/python tools/build_atlas.py

docs: setup  ## build the documentation into site/; warnings are errors, no network is used
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"
