# The workbench. `make demo` and `make test` set up everything they need; after the first run they need no network.
PYTHON ?= python3
VENV   ?= .venv

RUN  := $(VENV)/bin/python
DONE := $(VENV)/.complete

# An environment whose Python no longer starts counts as absent.
ifneq ($(wildcard $(DONE)),)
ifneq ($(shell $(RUN) -c 'print(1)' 2>/dev/null),1)
$(shell rm -f $(DONE))
endif
endif

# Tests run on every core; a core that is done takes work from the others.
CORES := -n auto --dist worksteal

# The choice of torch, for .ci/environment.py: make TORCH_INDEX_URL=… demo
export TORCH_INDEX_URL

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-browser test-all check bench tables zoo faults format lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: $(DONE) ## load, complete, check, train, sample and export the bundled broken model (about three minutes)
	$(RUN) -m utils demo

test: $(DONE) ## the tests that need no accelerator and no browser, each under a minute
	$(RUN) -m pytest $(CORES)

test-slow: $(DONE) ## the long tests
	$(RUN) -m pytest $(CORES) -m slow

test-browser: $(DONE) ## a real Chromium in JupyterLab 4 and in Colab's generation of Notebook (the first time it installs both)
	$(RUN) -m tests.environments lab classic
	$(RUN) -m pytest -m browser tests/browser $(AGAIN)

test-all: $(DONE) ## both, without those that need a GPU or a browser
	$(RUN) -m pytest $(CORES) -m "not gpu and not browser"

check: $(DONE) ## lint, formatting and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

bench: $(DONE) ## measure side by side: adapting, training a tokenizer, packing, training, export, checks (half an hour)
	$(RUN) -m benchmarks.adapter_overhead
	$(RUN) benchmarks/tokenizer_training.py
	$(RUN) benchmarks/packing.py
	$(RUN) benchmarks/padded_training.py
	$(RUN) benchmarks/training_throughput.py
	$(RUN) benchmarks/mirroring.py
	$(RUN) benchmarks/live_view.py
	$(RUN) benchmarks/export_speed.py
	$(RUN) benchmarks/memory_forecast.py
	$(RUN) benchmarks/validation_time.py

tables: $(DONE) ## how often interrupted and damaged runs come back, and what a search finds: k of n (a quarter of an hour)
	$(RUN) -m tests.training.engine.resume_table
	$(RUN) -m tests.training.engine.fault_table
	$(RUN) -m tests.training.search_table

zoo: $(DONE) ## adapt a hundred models of many kinds and list what was found out about each
	$(RUN) -m tests.zoo

faults: $(DONE) ## seeded faults, which check flags each, and which a patch mends (half an hour)
	$(RUN) -m tests.checks.corpus
	$(RUN) -m tests.checks.corpus --cures

format: $(DONE) ## mend what ruff can mend
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

lock: ## compile requirements.txt anew from pyproject.toml (needs uv and a package index)
	@{ sed -n '/^#/p' requirements.txt; \
	   uv pip compile --quiet --universal --python-version 3.10 --fork-strategy fewest --all-extras \
	      --no-annotate --no-header pyproject.toml | grep -vE '^(nvidia|cuda|triton)\b'; } > requirements.new
	@mv requirements.new requirements.txt

clean: ## remove the environment and all caches
	rm -rf $(VENV) .browser .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find utils tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(DONE): requirements.txt pyproject.toml .ci/environment.py
	@command -v "$(PYTHON)" >/dev/null || { echo "Python 3.10 or newer is needed, and '$(PYTHON)' was not found. Give one: make PYTHON=/path/to/python3 …" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Give a newer one: make PYTHON=python3.11 …" >&2; exit 1; }
	@"$(PYTHON)" .ci/environment.py $(VENV) requirements.txt
