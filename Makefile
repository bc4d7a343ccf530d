# Everything a newcomer and a developer needs: `make demo`, `make test`. Needs Python >= 3.10, nothing else.

PYTHON ?= python3
VENV ?= .venv
PRESET ?= oracle
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs format bench-methods bench-speed clean
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.installed-demo ## train on noisy digits and show clean samples, about eleven minutes on two cores
	@$(BIN)/lightning_tweedie fit --config configs/experiment/demo.yaml

test: $(VENV)/.installed-dev ## run all tests, and the examples in the docstrings
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/.installed-dev ## check style, types, floors and the docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(MAKE) --no-print-directory docs

docs: $(VENV)/.installed-dev ## build the docs site into docs/_build/html; warnings are errors
	@rm -rf docs/_generated
	@$(BIN)/python -m sphinx -q -W --keep-going -d docs/_build/doctrees docs docs/_build/html
	@echo "The docs are in docs/_build/html/index.html"

format: $(VENV)/.installed-dev ## put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench-methods: $(VENV)/.installed-dev ## compare all methods (PRESET=oracle); goes on where it was interrupted
	@$(BIN)/python benchmarks/methods --preset $(PRESET) --out docs/benchmarks/$(PRESET).json

bench-speed: $(VENV)/.installed-bench ## what everything costs, on an idle machine
	@$(BIN)/python benchmarks/speed --out docs/benchmarks/speed.json

clean: ## remove the virtual environment, the caches and the built docs, but no runs
	@rm -rf $(VENV) docs/_build docs/_generated .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@rm -rf build dist *.egg-info

# A stamp per set of extras: a second call is quick, and a change of the requirements installs again.
$(VENV)/.installed-%: setup.cfg pyproject.toml scripts/install.py
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.10 or newer."; exit 1; }
	@$(PYTHON) scripts/install.py $(VENV) $(EXTRAS_$*)
	@touch $@

EXTRAS_demo := demo
EXTRAS_dev := demo fid diffusers docs dev
EXTRAS_bench := $(EXTRAS_dev) bench
