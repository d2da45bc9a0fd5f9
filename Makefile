# Everything runs in a virtual environment, .venv, that the first target makes.
# `make help` lists the targets.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all matrix lint format types docs dist release clean

help:
	@echo 'make venv    make $(VENV) with Python 3.11: DGL 2.1.0, torch 2.2.1, tools, this package'
	@echo 'make demo    run examples/quickstart.py; results go to runs/demo'
	@echo 'make test    lint, format check, types, tests with coverage (what CI runs)'
	@echo 'make test-all  the same with the tests marked slow, without coverage'
	@echo 'make matrix  the tests, without the slow ones, on each set of versions in LANES; 15 GB more'
	@echo 'make lint    ruff check and format check only'
	@echo 'make types   mypy only'
	@echo 'make docs    build the documentation into site/; fails on a warning'
	@echo 'make dist    build the wheel and the source distribution into dist/, and try them out'
	@echo 'make release  check that the changelog has the version and the tree is clean; then make dist'
	@echo 'make format  let ruff fix and format the files'
	@echo 'make clean   remove caches and build outputs (not $(VENV), runs or results)'
	@echo
	@echo 'The first target that needs it makes $(VENV).  On Linux x86-64 the torch 2.2.1 of the'
	@echo 'package index brings the CUDA libraries: expect a download of about 2.5 GB and 5 GB on'
	@echo 'disk.  No GPU is needed.  Another interpreter: make venv PYTHON=/path/to/python3.11'

venv: $(STAMP)

# Made anew only when the requirements or the metadata change.  A run that was cut short leaves
# $(UNFINISHED) behind, and the next one starts from an empty environment.
$(STAMP): requirements/reference.txt requirements/test.txt requirements/dev.txt setup.cfg
	@set -eu; \
	is_311() { "$$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }; \
	if [ -e $(UNFINISHED) ] || ! is_311 $(BIN)/python || ! $(BIN)/python -m pip --version >/dev/null 2>&1; \
	then \
	  python=''; \
	  for candidate in '$(PYTHON)' python3; do \
	    if is_311 "$$candidate"; then python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo 'Python 3.11 was not found (tried: $(PYTHON), python3).' >&2; \
	    echo 'DGL 2.1.0 with torch 2.2.1 is tested on Python 3.11 only.  Install it, for example' >&2; \
	    echo '  apt-get install python3.11 python3.11-venv      (Debian 12, Ubuntu 22.04)' >&2; \
	    echo '  conda create -n py311 python=3.11               (conda)' >&2; \
	    echo '  uv python install 3.11                          (uv)' >&2; \
	    echo 'or name one: make $(or $(MAKECMDGOALS),venv) PYTHON=/path/to/python3.11' >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$python"; \
	  "$$python" -m venv --clear $(VENV); \
	fi; \
	touch $(UNFINISHED)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off \
	  -r requirements/reference.txt -r requirements/test.txt -r requirements/dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
	  --no-deps --no-build-isolation --editable .
	@rm -f $(UNFINISHED)
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/quickstart.py --out runs/demo

# In two processes: many tests start programs and wait for them.
test: lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' --doctest-modules dgl_dmns tests --cov --cov-config=pyproject.toml --cov-report=term

test-all: lint types
	$(BIN)/python -m pytest --doctest-modules dgl_dmns tests

# The reference set in $(VENV), and each set of LANES in an environment of its own.
LANES := dgl-1.1.3 dgl-1.1.3-torch-2.13 lowest
MATRIX := $(LANES:%=.venv-matrix-%)

.venv-matrix-%/.installed: requirements/%.txt requirements/test.txt setup.cfg | $(STAMP)
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --progress-bar off \
	  -r requirements/$*.txt -r requirements/test.txt
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet \
	  --no-deps --no-build-isolation --editable .
	@touch $@

matrix: $(STAMP) $(MATRIX:%=%/.installed)
	$(BIN)/python tools/matrix.py $(VENV) $(MATRIX)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site needs neither torch nor DGL: the API pages are read off the source.
DOCS := .venv-docs
$(DOCS)/.installed: requirements/docs.txt
	"$$(command -v $(PYTHON) || command -v python3)" -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --disable-pip-version-check --quiet --progress-bar off \
	  -r requirements/docs.txt
	@touch $@

docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --clean

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m pytest -q tests/test_published.py

release: $(STAMP)
	$(BIN)/python tools/release.py
	$(MAKE) dist

clean:
	rm -rf build dist site .cache *.egg-info htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache
	find dgl_dmns tests benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} + \
	  2>/dev/null || true
