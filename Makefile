# One environment, .venv, made on first use. `make` alone lists the targets.

PYTHON ?= python3
ARGS ?=
# Further options for pip, such as an index of CPU-only torch files.
INSTALL_FLAGS ?=

BIN := .venv/bin
DEMO := .venv/.installed-demo
DEV := .venv/.installed-dev
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(INSTALL_FLAGS) -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all lint audit docs results clean

help: ## List the targets
	@echo "make TARGET [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 14

demo: $(DEMO) ## Distill a small student and compare it with its teacher (ARGS=--quick for a shorter run)
	$(BIN)/kdalign demo $(ARGS)

test: $(DEV) ## Run the tests on all cores, without those marked slow
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 8 --dist worksteal $(ARGS)

test-all: $(DEV) ## Run every test
	$(BIN)/python -m pytest $(ARGS)

lint: $(DEV) ## Check format, style, types, the direction of imports and insecure calls
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml kdalign

# It asks pypi.org about each pinned version.
audit: $(DEV) ## Look up known vulnerabilities of the packages in constraints.txt
	@if $(BIN)/python -c 'from urllib.request import urlopen; urlopen("https://pypi.org/pypi/pip/json", timeout=10)' 2>/dev/null; \
	then $(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip; \
	else echo "pip-audit: left out, since pypi.org cannot be reached"; fi

docs: $(DEV) ## Build the documentation as a site in site/, and fail on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)

results: $(DEV) ## Render the tables of docs/results again from the archives in benchmarks
	$(BIN)/python tools/refresh.py $(ARGS)

clean: ## Remove .venv, builds and caches; runs/ stays
	rm -rf .venv build dist site *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Some systems ship venv without the pip it would install: then the system's own pip puts one there.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>&1) || found="not a command"; \
	  echo "kdalign needs Python 3.11 or newer; $(PYTHON) is $$found. Another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 1; }
	$(PYTHON) -m venv .venv || { \
	  $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install pip; }

# torch comes first and by its exact version, so that pip takes the file that is meant for this machine.
$(DEMO): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e ".[demo]"
	@touch $@

# The tests run the demo, too: the development environment holds everything.
$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e ".[demo,dev,docs]"
	@touch $(DEMO) $@
