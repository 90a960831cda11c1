# Each target sets up what it needs in .venv, at the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install simulate figures docs test test-all lint bench clean

help:  ## Say what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.simulate: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.%: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) --editable '.[$*]'
	@touch $@

install: $(VENV)/.all  ## Set up .venv with all that the commands need, and run nothing

simulate: $(VENV)/.simulate  ## Compare FFT and LP-FFT, then run the main simulation: width 512, sigma 0.5
	$(BIN)/python -m langevin.simulate --compare fft lp-fft --width 64 --sigma .05 --plot
	$(BIN)/python -m langevin.simulate --width 512 --sigma 0.5 --plot

figures: $(VENV)/.dpsgd  ## Make every figure and table that is out of date, in build/figures
	$(BIN)/python -m figures

docs: $(VENV)/.docs  ## Build the documentation, its gallery from stored data, in build/docs
	$(BIN)/python -m sphinx -W --keep-going --quiet -j auto docs build/docs

test: $(VENV)/.test  ## Run the tests
	$(BIN)/python -m pytest -n auto

test-all: $(VENV)/.test  ## Run the tests and the heavier statistical ones
	$(BIN)/python -m pytest -n auto -m ''

lint: $(VENV)/.lint $(VENV)/.test  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.test $(VENV)/.peers $(VENV)/.dpsgd $(VENV)/.sweep  ## Time us and the peers, threads, growth, start-up; weigh a large run
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.bounds
	$(BIN)/python -m benchmarks.planner
	$(BIN)/python -m benchmarks.threads
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.step_outputs
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.dpsgd
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.processes
	$(BIN)/python -m benchmarks.explorer

clean:  ## Remove the environment and everything made
	rm -rf $(VENV) runs build dist docs/generated .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
