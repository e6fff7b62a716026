# Commands for developers. They need Python 3.11 or newer and make: everything else is installed from wheels into .venv, and
# servers keep their data in .moorage.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DRILL ?= --jobs 1100 --minutes 6

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP)  ## Install everything into .venv (other targets do it automatically)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "moorage needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV) (half a minute, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## Run the main scenarios on embedded servers and verify the results
	@$(BIN)/moorage demo

up: $(STAMP)  ## Run the complete stack locally until Ctrl-C
	@$(BIN)/moorage up

# Compiled tests are cached: compiling them takes half of the start of each process.
test test-unit: export PYTHONDONTWRITEBYTECODE :=

test: $(STAMP)  ## Run all tests except the long forms
	@$(BIN)/python -m pytest -q -n 6 --dist loadfile --no-loadscope-reorder

test-unit: $(STAMP)  ## Run the tests that need no server (half a minute)
	@$(BIN)/python -m pytest -q -n 2 tests/unit

drill: $(STAMP)  ## Inject faults while 1,100 jobs with 3,000 files run, and verify that nothing is lost (10 minutes)
	@$(BIN)/moorage drill $(DRILL)

prove: $(STAMP) bench/peers/.venv/.installed  ## Run the long forms of tests: many rounds of kills, deep searches, measured recovery (three quarters of an hour)
	@$(BIN)/python -m pytest -q -m prove -o timeout=900 -n 2 --dist loadfile

check: $(STAMP)  ## Check format, lint, types, import contracts and sizes
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.sizes

fmt: $(STAMP)  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench-media: $(STAMP)  ## Print the peak memory of a worker and its decoder process for each image format (three minutes)
	@$(BIN)/python -m bench.memory 134.2

bench: $(STAMP) bench/peers/.venv/.installed  ## Measure everything beside floors and peers, or PART=NAME: receiver, pipeline, ... (12 minutes)
	@$(BIN)/python -m bench $(PART)

bench-idle: $(STAMP)  ## Print round trips, CPU time and memory of an idle stack (two minutes)
	@$(BIN)/python -m bench.idle

bench/peers/.venv/.installed: bench/peers/requirements.txt
	@$(PYTHON) -m venv bench/peers/.venv
	@bench/peers/.venv/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

lock:  ## Regenerate requirements.lock, requirements.runtime.lock (the image) and requirements.browser.lock (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --all-extras \
		--group dev --group build pyproject.toml -o requirements.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra video \
		--constraint requirements.lock pyproject.toml -o requirements.runtime.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --group browser \
		--constraint requirements.lock -o requirements.browser.lock

browser: $(STAMP)  ## Install the driver for the browser tests of the page (Chromium itself comes from your system)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.browser.lock

clean:  ## Remove .venv and the data of embedded servers
	rm -rf $(VENV) .moorage

.PHONY: help install demo up test test-unit drill prove check fmt bench bench-media bench-idle lock browser clean
