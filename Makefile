# make demo       set up .venv, train SFT then DPO on the bundled samples (CPU; downloads only Python packages)
# make test       set up .venv, run the tests
# make test-all   run all tests, the slow ones included
# make test-readers  read exports with transformers 4, in an environment of its own beside .venv
# make test-min   run the tests on the oldest supported versions, in an environment of its own beside .venv
# make lint       ruff and mypy
# make lock       write requirements.lock: the tested versions with the hashes of your own package index

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
# Two processes run the tests. Of the slow ones, each takes whole files, whose tests share what is dear to make, in their
# order: by default, files of one test that takes minutes come last, and one process waits for the other.
PYTEST ?= -n 2 --dist worksteal
PYTEST_SLOW ?= -n 2 --dist loadfile --no-loadscope-reorder
BIN = $(VENV)/bin
READERS = $(VENV)-readers
MIN = $(VENV)-min

.PHONY: demo test test-all test-readers test-min lint lock

demo: $(VENV)/ready
	$(BIN)/python -m smollit fit --config configs/demo/sft.yaml
	$(BIN)/python -m smollit fit --config configs/demo/dpo.yaml
	@echo
	@$(BIN)/python -m smollit.commands.summarize_runs runs/demo/sft runs/demo/dpo
	@echo "Look at the runs:  $(BIN)/tensorboard --logdir runs"
	@echo "What they say:     $(BIN)/python -m smollit report runs/demo/sft runs/demo/dpo"
	@echo "Talk to both:      $(BIN)/python -m smollit chat runs/demo/sft/export runs/demo/dpo/export"

# Two processes with two threads each would wait for one another on two cores.
test test-all test-readers test-min: export OMP_NUM_THREADS ?= 1

test: $(VENV)/ready
	$(BIN)/python -m pytest $(PYTEST)

test-all: test test-readers
	$(BIN)/python -m pytest $(PYTEST_SLOW) -m "slow and not gpu"

test-readers: $(READERS)/ready
	SMOLLIT_READERS=$(abspath $(READERS))/bin/python $(BIN)/python -m pytest -m readers

# Benchmarks compare the tested versions only.
test-min: $(MIN)/ready
	$(MIN)/bin/python -m pytest $(PYTEST) --ignore tests/benchmarks

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)/ready
	$(BIN)/python -m pip install --dry-run --ignore-installed --quiet --constraint constraints.txt --report - . \
		| $(BIN)/python -m smollit.commands.setup.lock > requirements.lock

# Rebuilt when the versions or the dependencies change. The stamp is touched last, so a failed install is repeated.
$(VENV)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

# What it lacks itself, torch above all, it takes from $(VENV): a .pth file adds that one's packages after its own.
SITE = import sysconfig; print(sysconfig.get_path('purelib'))
$(READERS)/ready: constraints-readers.txt $(VENV)/ready
	$(PYTHON) -m venv --without-pip $(READERS)
	$(BIN)/python -c "$(SITE)" > $$($(READERS)/bin/python -c "$(SITE)")/venv.pth
	$(BIN)/python -m pip --python $(READERS)/bin/python install --quiet --no-deps --requirement constraints-readers.txt
	touch $@

$(MIN)/ready: constraints-min.txt pyproject.toml
	$(PYTHON) -m venv $(MIN)
	$(MIN)/bin/python -m pip install --quiet --constraint constraints-min.txt --editable ".[dev]"
	touch $@
