# Every way into the project; plain `make` prints the list. `## text` after a target is its help.

PYTHON3 ?= python3
VENV    := .venv
PYTHON  := $(VENV)/bin/python
DVC     := $(PYTHON) -m dvc
REPRO   := $(PYTHON) -m stages.check && $(DVC) repro

# The stages that DVC starts say `python`; whatever shell make was called from, it is the one of .venv.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

INSTALLED := $(VENV)/.installed
PLOTS     := .dvc/offline-plots.html

define train_preset
@$(PYTHON) -m pipeline.cli.preset $(1) $(if $(FORCE),--force)
@$(REPRO)
@$(PYTHON) -m pipeline.cli.summary
endef

.PHONY: help install demo test check repro presets shakespeare shakespeare-cpu shakespeare-gpt2 train-gpt2 \
	train-on finetune-shakespeare finetune-on start-from sample baselines eval-zeroshot lm-eval export upload \
	import-nanogpt export-nanogpt summary schema format bench-nanogpt bench-model bench-interop depth-curves \
	clean ready
.DELETE_ON_ERROR:

help:
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9<>-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 } \
		/^## [^:]+: / { line = substr($$0, 4); split(line, part, ": "); \
			printf "  %-20s %s\n", part[1], substr(line, length(part[1]) + 3) }' $(firstword $(MAKEFILE_LIST))

##@ Start here
demo: ready ## install, train a small GPT on Python's documentation, show what came out
	@[ -e params.yaml ] || $(PYTHON) -m pipeline.cli.preset default
	@$(REPRO)
	@$(PYTHON) -m pipeline.cli.summary

install: ready ## create .venv with the pinned dependencies

##@ Train
repro: ready ## make what is out of date, for the parameters in params.yaml
	@$(REPRO)

shakespeare: ready ## nanoGPT's baby GPT on TinyShakespeare (GPU)
	$(call train_preset,shakespeare-char)

shakespeare-cpu: ready ## the smaller one of nanoGPT's README (CPU)
	$(call train_preset,shakespeare-char-cpu)

shakespeare-gpt2: ready ## TinyShakespeare in GPT-2's vocabulary
	$(call train_preset,shakespeare-gpt2)

train-gpt2: ready ## GPT-2 (124M) on OpenWebText (a GPU, weeks)
	$(call train_preset,gpt2)

train-on: ready ## your text: make train-on TEXT='notes/*.txt' (.txt, .jsonl, .parquet, nanoGPT's .bin)
	@[ -n "$$TEXT" ] || { echo "error: say which text: make train-on TEXT='path or glob'" >&2; exit 2; }
	@$(PYTHON) -m pipeline.cli.new_dataset "$$TEXT" $${COLUMN:+--text-column "$$COLUMN"}
	@$(REPRO)
	@$(PYTHON) -m pipeline.cli.summary

finetune-shakespeare: ready ## GPT-2 (124M), finetuned on TinyShakespeare (GPU)
	$(call train_preset,finetune-shakespeare)

finetune-on: ready ## a model on your text: make finetune-on TEXT='notes/*.txt' MODEL=gpt2 BLOCK_SIZE=256
	@[ -n "$$TEXT" ] || { echo "error: say which text: make finetune-on TEXT='path or glob'" >&2; exit 2; }
	@$(PYTHON) -m pipeline.cli.finetune_on "$$TEXT" $${MODEL:+--model "$$MODEL"} \
		$${BLOCK_SIZE:+--block-size "$$BLOCK_SIZE"} $${COLUMN:+--text-column "$$COLUMN"} $(if $(FORCE),--force)
	@$(REPRO)
	@$(PYTHON) -m pipeline.cli.summary

##@ Parameters
presets: ready ## list the presets
	@$(PYTHON) -m pipeline.cli.preset

## preset-<name>: put a preset into params.yaml (FORCE=1 overwrites edits)
preset-%: ready
	@$(PYTHON) -m pipeline.cli.preset $* $(if $(FORCE),--force)

start-from: ready ## put a model's shape and tokenizer into params.yaml: make start-from MODEL=gpt2
	@[ -n "$$MODEL" ] || { echo "error: say which model: make start-from MODEL=gpt2" >&2; exit 2; }
	@$(PYTHON) -m pipeline.cli.start_from "$$MODEL" $${BLOCK_SIZE:+--block-size "$$BLOCK_SIZE"}

schema: ready ## write presets/params.schema.json, by which editors check params.yaml
	@$(PYTHON) -m pipeline.cli.schema

##@ Look at the result
summary: ready ## val loss against the baselines, a sample, and where things are
	@$(PYTHON) -m pipeline.cli.summary

sample: ready ## write text: make sample START='ROMEO:' MODEL=gpt2 (without MODEL, the trained one)
	@$(PYTHON) -m stages.sample --out - $${START:+--start "$$START"} $${MODEL:+--model "$$MODEL"}

depth-curves: ready ## train all variants and compare them; make depth-curves VARIANTS=dense,shared for some
	@$(PYTHON) -m bench.depth_curves $${VARIANTS:+--variants "$$VARIANTS"}

baselines: ready ## the model beside n-grams, GPT-2 and others on the same text: baselines.models, .pretrained
	@$(REPRO) --keep-going eval_baselines stages/dvc.yaml:eval_pretrained; status=$$?; \
		$(PYTHON) -m pipeline.cli.compare && [ $$status -eq 0 ] || exit 2

eval-zeroshot: ready ## HellaSwag, LAMBADA, WikiText-2: make eval-zeroshot, or with MODEL=gpt2 TASKS=lambada LIMIT=100
	@if [ -z "$$MODEL$$TASKS$$LIMIT$$FILE" ]; then \
		$(REPRO) --keep-going --glob 'stages/dvc.yaml:eval_zeroshot*' || exit 2; \
	elif [ -n "$$FILE" ] && [ -z "$$TASKS" ]; then \
		echo "error: say which task the file is of: make eval-zeroshot FILE=... TASKS=hellaswag" >&2; exit 2; \
	else \
		status=0; \
		for task in $${TASKS:-hellaswag lambada wikitext2}; do \
			$(PYTHON) -m stages.eval_zeroshot $$task $${MODEL:+--model "$$MODEL"} $${LIMIT:+--limit $$LIMIT} \
				$${FILE:+--data "$$FILE"} || status=$$?; \
		done; \
		exit $$status; \
	fi

lm-eval: ready ## any task of lm-evaluation-harness: make lm-eval TASKS='arc_easy piqa' MODEL=gpt2 LIMIT=100
	@[ -n "$$TASKS" ] || { echo "error: say which: make lm-eval TASKS='arc_easy piqa'" >&2; exit 2; }
	@$(PYTHON) -m pipeline.cli.lm_eval $$TASKS $${MODEL:+--model "$$MODEL"} $${LIMIT:+--limit $$LIMIT}

##@ Share it
export: ready ## results/model for Hugging Face's transformers, in results/export
	@$(PYTHON) -m pipeline.cli.export $${MODEL:+--model "$$MODEL"} $${OUT:+--out "$$OUT"} \
		$${RECURRENT_DEPTH:+--recurrent-depth "$$RECURRENT_DEPTH"}

upload: ready ## send results/export to the hub: make upload REPO=user/name
	@[ -n "$$REPO" ] || { echo "error: say where to: make upload REPO=user/name" >&2; exit 2; }
	@$(PYTHON) -m pipeline.cli.upload "$$REPO" $${FOLDER:+--folder "$$FOLDER"} $(if $(PRIVATE),--private)

import-nanogpt: ready ## nanoGPT's model as ours: make import-nanogpt CKPT=ckpt.pt META=meta.pkl OUT=saved/mine
	@[ -n "$$CKPT" ] || { echo "error: say which: make import-nanogpt CKPT=ckpt.pt META=meta.pkl" >&2; exit 2; }
	@$(PYTHON) -m pipeline.cli.import_nanogpt "$$CKPT" $${META:+--meta "$$META"} $${OUT:+--out "$$OUT"}

export-nanogpt: ready ## results/model as nanoGPT's ckpt.pt, in results/nanogpt
	@$(PYTHON) -m pipeline.cli.export_nanogpt $${MODEL:+--model "$$MODEL"} $${OUT:+--out "$$OUT"} \
		$${RECURRENT_DEPTH:+--recurrent-depth "$$RECURRENT_DEPTH"}

##@ Compare it
bench-interop: ready ## measure this beside transformers: logits, losses, memory, speed
	@$(PYTHON) -m bench.interop $${HELLASWAG:+--hellaswag "$$HELLASWAG"} \
		$${WIKITEXT:+--wikitext "$$WIKITEXT"} $(if $(FULL),--full)

bench-nanogpt: ready ## time this beside nanoGPT: make bench-nanogpt NANOGPT=<its clone>
	@[ -n "$$NANOGPT" ] || { echo "error: say where nanoGPT is: make bench-nanogpt NANOGPT=<clone>" >&2; exit 2; }
	@$(PYTHON) -m bench.nanogpt "$$NANOGPT"

bench-model: ready ## time the model family beside the fork of nanoGPT: make bench-model FORK=<its clone>
	@[ -n "$$FORK" ] || { echo "error: say where the fork is: make bench-model FORK=<clone>" >&2; exit 2; }
	@$(PYTHON) -m bench.fork "$$FORK"

##@ Work on the code
test: ready ## run the tests
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n logical --maxprocesses 8

check: ready ## format, lint and types
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy
	@$(VENV)/bin/lint-imports

format: ready ## format the code and fix what lint can fix
	@$(PYTHON) -m ruff check --fix-only .
	@$(PYTHON) -m ruff format .

clean: ## remove results/; `make repro` brings back what the pipeline made, but no exports or tables
	@rm -rf results dvc_plots

# --- installation -----------------------------------------------------------------------------------------

# Ready: installed, and DVC knows whether there is a git repository to write into. A folder without .git
# (a downloaded tarball, even one unpacked inside somebody's repository) runs in DVC's no-SCM mode.
ready: $(INSTALLED) $(PLOTS)
	@if [ -e .git ]; then \
		! grep -qs 'no_scm = true' .dvc/config.local || $(DVC) config --local --unset core.no_scm; \
	else \
		grep -qs 'no_scm = true' .dvc/config.local || $(DVC) config --local core.no_scm true; \
	fi

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: $(PYTHON3) is missing or older than 3.11; name another: make PYTHON3=python3.12" >&2; exit 2; }
	@$(PYTHON3) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON3) has no venv module; install it (on Debian or Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@echo "installing into $(VENV)/ (once; a few minutes, most of it PyTorch)"
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON3) -m venv --clear $(VENV)
	@$(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Set for this copy only: without the page, DVC's own one still draws, online.
$(PLOTS): pipeline/report/plots_page.py $(INSTALLED)
	@$(PYTHON) -m pipeline.report.plots_page $@
	@$(DVC) config --local plots.html_template $(notdir $@)
