# Everything from a bare clone: needs Python ≥ 3.11, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
# uv installs PyTorch's 5.5 GB in a third of pip's time; pip steps in where only pip knows the index.
INSTALL := --quiet -c constraints.txt -e '.[dev]'

.PHONY: demo test test-all lint types unit slow docs package faults fuzz mutants clean

demo: .venv/installed  ## plain training, CutMix and AdAutoMix on 20 digits per class, 3 seeds
	$(BIN)/adautomix compare --recipe digits/twenty-labels --sweep levers/demo --baseline plain --seeds 0,1,2 --out $(DEMO)

test: lint types unit  ## lint, types and all tests but the slow ones

test-all: test slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy --num-workers auto

unit: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "not slow"

slow: .venv/installed  ## tests that compile, run several processes or build data sets in full count
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m slow

docs: .venv/installed  ## the documentation site, in build/site
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

package: .venv/installed  ## the distributions, in dist/, checked
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

faults: .venv/installed  ## a fault at every write of every command; POINTS=1000 tries so many
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/helpers/fault_walk.py $(if $(POINTS),--points $(POINTS))

fuzz: .venv/installed  ## random settings, run folders and networks, for MINUTES=5
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/helpers/fuzzing.py --minutes $(or $(MINUTES),5)

mutants: .venv/installed  ## do tests notice changes of the code? COUNT=100 of them, drawn by SEED=0
	OMP_NUM_THREADS=1 PYTHONPATH=src:tests:tests/helpers:benchmarks $(BIN)/python tests/helpers/mutants.py --count $(or $(COUNT),100) --seed $(or $(SEED),0)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python $(INSTALL) || $(BIN)/pip install --disable-pip-version-check $(INSTALL)
	touch $@

clean:
	rm -rf .venv build dist
