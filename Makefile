# Every way in; plain `make` prints the list. Behind it is `gpt-pipeline`, with the same names: a variable here is an
# option there, so `make sample START='ROMEO:'` is `gpt-pipeline sample --start 'ROMEO:'`.

PYTHON3 ?= python3
PYTHON  := .venv/bin/python
COMMAND := $(PYTHON) -m pipeline.cli.main

# The stages that DVC starts say `python`; whatever shell make was called from, it is the one of .venv.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export GPT_PIPELINE_FROM_MAKE := 1

# These are commands of the same name.
COMMANDS := demo repro run join train-on finetune-on experiment watch presets start-from sizing scaling profile summary \
	report experiments sample play serve baselines eval-zeroshot lm-eval push-data pull-data export import upload generate \
	doctor verify

.PHONY: help demo install ready again test test-gpu faults check format bench setup-browser clean $(COMMANDS)

help:
	@$(PYTHON3) -m pipeline.cli.commands

# TORCH=cu128 is a build of PyTorch, EXTRAS='hub lm-eval' are extras of pyproject.toml.
install: $(EXTRAS:%=.venv/.installed-%) ready

$(COMMANDS): ready
	@$(COMMAND) $@

train-% preset-%: ready
	@$(COMMAND) $@

lm-eval: .venv/.installed-lm-eval

bench test test-gpu faults check format: .venv/.installed-dev

bench: ready
	@$(PYTHON) -m bench $(or $(WHAT),speed)

bench-%: ready .venv/.installed-dev
	@$(PYTHON) -m bench $*

setup-browser:
	@$(PYTHON3) -m pipeline.cli.setup_browser

test: ready
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n logical --maxprocesses 8 --dist loadgroup

test-gpu: ready
	@$(PYTHON) -m pytest -q -m gpu -rs

faults: ready
	@$(PYTHON) -m tests.faults

check: ready
	@$(PYTHON) -m ruff format --check . && $(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy && .venv/bin/lint-imports

format: ready
	@$(PYTHON) -m ruff check --fix-only . && $(PYTHON) -m ruff format .

clean:
	@$(PYTHON3) -m pipeline.cli.clean

# Installed, and DVC set up for this copy.
ready: .venv/.installed
	@$(PYTHON) -m pipeline.cli.configure_dvc

.venv/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON3) >/dev/null || { echo "error: no $(PYTHON3); name another: make PYTHON3=python3.12" >&2; exit 2; }
	@$(PYTHON3) -m pipeline.cli.install $@ $(TORCH)

.venv/.installed-%: .venv/.installed
	@$(PYTHON3) -m pipeline.cli.install $@

# Another build of PyTorch than the last: install again.
ifneq ($(TORCH),)
ifneq ($(TORCH),$(shell cat .venv/.installed 2>/dev/null))
.venv/.installed: again
endif
endif
