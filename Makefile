# Every target does its own set-up: a virtual environment in .venv with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-gpu check docs format up audit clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 12

setup: $(READY)  ## make .venv with everything, from constraints.txt

# torch first and by its exact version: an unpinned one could bring another build of several gigabytes.
$(READY): pyproject.toml client/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ./client --editable '.[all,dev]'
	@touch $@

demo: $(READY)  ## the main job on real input, end to end: upload, train, promote, predict
	$(BIN)/limbeck demo

up: $(READY)  ## start the service on this machine
	$(BIN)/limbeck up

# A process for each core, and one thread for each of them; whole files, in their order: what takes longest stands first.
test: $(READY)  ## the tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long and not gpu" -n logical --dist loadfile --no-loadscope-reorder

test-long: $(READY)  ## the tests that take long
	$(BIN)/python -m pytest -m long

test-gpu: $(READY)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

# The generated pages of the reference come from the application itself. Warnings and broken links are errors.
docs: $(READY)  ## the documentation as pages, in site/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m handbook docs/reference
	$(BIN)/zensical build --clean --strict

check: $(READY)  ## format, lint, types, contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## format and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

audit: $(READY)  ## known vulnerabilities of the installed packages
	$(BIN)/pip-audit --skip-editable

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) site docs/reference .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
