# Everything a developer does. A fresh machine needs Python 3.11 or newer and make: the rest comes from wheels into
# .venv, and servers keep their data in .moorage.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DRILL ?= --jobs 1100 --minutes 6

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP)  ## Install everything into .venv (demo, test and the others do it by themselves)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "moorage needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV) (half a minute, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## Run the main job on embedded servers and compare what was sent with what was kept
	@$(BIN)/moorage demo

up: $(STAMP)  ## Run the whole stack here until Ctrl-C
	@$(BIN)/moorage up

# Compiled tests are kept: to compile them takes half of the start of each process.
test test-unit: export PYTHONDONTWRITEBYTECODE :=
test test-unit: export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/pycache

test: $(STAMP)  ## Run all tests but the long forms
	@$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder

test-unit: $(STAMP)  ## Run the tests that need no server (half a minute)
	@$(BIN)/python -m pytest -q -n 2 tests/unit

drill: $(STAMP)  ## Break everything while 1,100 jobs with 3,000 files run, and account for them (10 minutes)
	@$(BIN)/moorage drill $(DRILL)

prove: $(STAMP)  ## Run the long forms of tests: many rounds of kills, deep searches, measured recovery (half an hour)
	@$(BIN)/python -m pytest -q -m prove -o timeout=900

check: $(STAMP)  ## Check format, lint, types, import contracts and sizes
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.sizes

fmt: $(STAMP)  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock:  ## Make requirements.lock and requirements.runtime.lock (what the image holds) anew (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --all-extras \
		--group dev --group build pyproject.toml -o requirements.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra video \
		--constraint requirements.lock pyproject.toml -o requirements.runtime.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --group browser \
		--constraint requirements.lock -o requirements.browser.lock

browser: $(STAMP)  ## Install what drives a browser, so that the tests of the page run (Chromium itself: your system's)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.browser.lock

clean:  ## Remove .venv and the data of embedded servers
	rm -rf $(VENV) .moorage


.PHONY: help install demo up test test-unit drill prove check fmt lock browser clean
