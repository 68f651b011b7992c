# Two commands for everybody: 'make demo' and 'make test'. 'make help' lists the others.
VENV := .venv
BIN := $(VENV)/bin
# the first supported Python on the path
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
INSTALLED := $(VENV)/.installed
# one test process per core, at most four: each holds PyTorch and its libraries in memory
TEST_FLAGS ?= --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
# 'make demo FORCE=1' runs finished stages again
DEMO_FLAGS := $(if $(FORCE),,--only-missing-outputs)
DEMO_OUTPUTS := $(foreach layer,03_primary 04_feature 05_model_input 06_models 07_model_output 08_reporting,data/$(layer)/demo)

.PHONY: help demo test test-slow faults check lint format clean-demo requirements tiny-models viz mlflow

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(INSTALLED): pyproject.toml requirements.txt
	@test -n "$(PYTHON)" || { echo "ja-instruct needs Python 3.11 or 3.12; install one, or pass it: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.txt --editable '.[demo,dev]'
	touch $@

demo: $(INSTALLED) ## Run everything on the CPU with the embedded model and data
	$(BIN)/kedro run --env=demo $(DEMO_FLAGS)

test: $(INSTALLED) ## Run the tests but the slow ones
	$(BIN)/python -m pytest $(TEST_FLAGS) -m "not slow"

test-slow: $(INSTALLED) ## Run the slow tests: kills, full disks, damaged files
	$(BIN)/python -m pytest $(TEST_FLAGS) -m slow

faults: $(INSTALLED) ## Kill 240 runs at random moments, resume them and compare their outputs (nightly)
	$(BIN)/python benchmarks/faults/kill_runs.py --trials 240

check: lint test test-slow ## Everything CI runs: style, types, import rules, tests

lint: $(INSTALLED) ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

viz: $(INSTALLED) ## Show the pipelines in the browser
	$(BIN)/kedro viz run --env=demo

mlflow: $(INSTALLED) ## Show the tracked runs in the browser
	PATH="$(CURDIR)/$(BIN):$$PATH" kedro mlflow ui

tiny-models: $(INSTALLED) ## Write the tiny random models of --env=test
	$(BIN)/python tests/tiny_models.py

clean-demo: ## Remove the demo's outputs
	rm -rf $(DEMO_OUTPUTS)

requirements: $(INSTALLED) ## Pin the newest versions that fit pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra gpu --extra demo --extra dev --universal \
		--upgrade --no-annotate --custom-compile-command 'make requirements' --output-file requirements.txt
