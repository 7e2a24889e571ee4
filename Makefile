# `make demo` needs Python >= 3.11 only: everything else goes into .venv under constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check format results torture bench clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(STAMP) ## create .venv and install preftune with its development tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "preftune needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP) ## build a tiny model, tune it with GRPO, show before and after (minutes)
	$(BIN)/preftune demo grpo

# One thread a worker: torch's threads wait for each other at every barrier, and tiny models have many.
test: $(STAMP) ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: $(STAMP) ## format, lint, strict types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

results: $(STAMP) ## the demo over three seeds with its controls; writes docs/results.md
	$(BIN)/python -m preftune.demo.results

torture: $(STAMP) ## kill -9, fuzzed rows, wrong recipes, fuzzed completions (longer than the tests)
	$(BIN)/python tests/torture/run.py

bench: $(STAMP) ## speed against the yardstick library, share of the machine's limit, growth; writes docs/benchmarks.md
	$(BIN)/python benchmarks/yardstick.py
	$(BIN)/python benchmarks/limit.py
	$(BIN)/python benchmarks/growth.py

clean: ## remove .venv and caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
