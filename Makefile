# The front door. `make demo` and `make test` need nothing but Python 3.11 and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Every worker makes the models that its tests share; more than eight would make more than they save.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

.PHONY: help demo test check check-slow format lint types imports docs reference coverage schema perf clean

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	touch $@

demo: $(STAMP)  ## Build the reference recipe: pretrained checkpoint to gated int8 artifact.
	$(BIN)/edgeproof build models/efficientnet_lite/digits.toml

test: $(STAMP)  ## Run the tests, on all cores; all but those of check-slow.
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not perf"

check: lint types imports test  ## Everything that must be green at every commit.

check-slow: $(STAMP)  ## Run the tests that build whole models or environments; CI runs them too.
	$(BIN)/python -m pytest $(PARALLEL) -m "slow and not perf"

lint: $(STAMP)  ## Check the format and the style of the code.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)  ## Check the types.
	$(BIN)/mypy

imports: $(STAMP)  ## Check that imports go down from room to room.
	$(BIN)/lint-imports

docs: $(STAMP)  ## Build the documentation site into site/, strictly.
	$(BIN)/zensical build --clean --strict

reference: $(STAMP)  ## Write the reference pages of the documentation again.
	$(BIN)/python -m tests.docs.reference

format: $(STAMP)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage: $(STAMP)  ## Run all tests with branch coverage of bench and exporter.
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term --cov-fail-under=90

schema: $(STAMP)  ## Write docs/recipe.schema.json again.
	$(BIN)/python -c "from exporter.pipeline.scaffold import schema_text; print(schema_text(), end='')" > docs/recipe.schema.json

perf: $(STAMP)  ## Performance benchmarks; by hand, on a quiet machine.
	$(BIN)/python -m pytest tests/perf -m perf -s
	$(BIN)/python tests/perf/startup.py

clean:  ## Remove everything that was generated.
	rm -rf $(VENV) artifacts build dist .edgeproof models/*/.edgeproof
