# make demo       set up .venv, train SFT then DPO on the embedded samples (CPU, no network but the package index)
# make test       set up .venv, run the tests
# make test-all   the same, and the slow ones
# make lint       ruff and mypy

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
# Two processes share the test files.
PYTEST ?= -n 2 --dist loadfile
BIN = $(VENV)/bin

.PHONY: demo test test-all lint

demo: $(VENV)/ready
	$(BIN)/python -m smollit fit --config configs/demo/sft.yaml
	$(BIN)/python -m smollit fit --config configs/demo/dpo.yaml
	@echo
	@$(BIN)/python -m smollit.commands.summarize_runs runs/demo/sft runs/demo/dpo
	@echo "Look at the runs:  $(BIN)/tensorboard --logdir runs"

test: $(VENV)/ready
	$(BIN)/python -m pytest $(PYTEST)

test-all: $(VENV)/ready
	$(BIN)/python -m pytest $(PYTEST) -m "not gpu"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Made anew when the versions or the dependencies change. The stamp comes last: a broken install is tried again.
$(VENV)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@
