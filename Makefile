# make demo       set up .venv, train SFT then DPO on the bundled samples (CPU; downloads only Python packages)
# make test       set up .venv, run the tests
# make test-all   run all tests, the slow ones included
# make lint       ruff and mypy

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
# Two processes run the tests, one file at a time each.
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

test-all: test
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rebuilt when the versions or the dependencies change. The stamp is touched last, so a failed install is repeated.
$(VENV)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@
