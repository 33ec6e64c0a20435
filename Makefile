# The front door. `make` alone lists what there is.
EXP ?= popalign_tiny
ARGS ?=
OVERLAY ?=
PYTHON ?= python3.11
BIN := .venv/bin
export WANDB_SILENT ?= true

.DEFAULT_GOAL := help
.PHONY: help install upgrade demo train rehearse eval test test-all lint types check docs assets config experiments clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  variables: EXP=popalign_tiny  OVERLAY=ddp  ARGS="--model.beta 2000"'

install: .venv/.done ## set up .venv (again whenever pyproject.toml or constraints.txt changes)

VERSIONS ?= -c constraints.txt
SETUP = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(VERSIONS)

.venv/.done: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'setting up .venv (about 7 GB the first time)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(filter-out --resolution lowest-direct,$(VERSIONS)) uv
	@$(SETUP) --editable '.[dev,photos,app,dashboard,stores]'
	@if ! $(BIN)/python -c 'import cv2' 2>/dev/null; then \
	  echo 'no libGL here: opencv-python is exchanged for opencv-python-headless'; \
	  $(BIN)/uv pip uninstall --quiet --python $(BIN)/python opencv-python; \
	  $(SETUP) --reinstall-package opencv-python-headless opencv-python-headless; fi
	@echo '$(VERSIONS)' > $@

upgrade: install ## the newest versions that pyproject.toml admits: test them all, then write constraints.txt anew
	@rm .venv/.done
	@$(MAKE) .venv/.done VERSIONS=--upgrade
	@$(BIN)/pytest -q -m 'slow or not slow' $(SPREAD) || { rm .venv/.done; exit 1; }
	@$(BIN)/python -m tests.test_constraints > constraints.txt.partial && mv constraints.txt.partial constraints.txt
	@echo '-c constraints.txt' > .venv/.done

demo: install ## see the embedded model before and after PopAlign, without training: about two minutes
	@$(BIN)/fairanon demo $(ARGS)

train: install ## train EXP, measured before and after; ends with a table and a report
	@$(BIN)/fairanon train "$(EXP)" $(OVERLAY:%=--overlay %) $(ARGS)

rehearse: install ## all of EXP at the minimum counts: what is missing, what works, what the full run takes
	@$(BIN)/fairanon rehearse "$(EXP)" $(OVERLAY:%=--overlay %) $(ARGS)

eval: install ## measure the newest finished run of EXP again; IMAGES=200: so many a prompt
	@$(BIN)/fairanon measure "runs/$(EXP)/latest" $(IMAGES:%=--evaluate.images %) $(ARGS)

SPREAD = -n auto --maxprocesses 4 --dist loadscope

test: install ## the tests (about 15 minutes on two cores without AVX-512)
	@$(BIN)/pytest -q $(SPREAD) $(ARGS)

test-all: install ## every test, the slow ones too
	@$(BIN)/pytest -q -m 'slow or not slow' $(SPREAD) $(ARGS)

lint: install ## ruff, and codespell
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell

types: install ## mypy, strict; of the benchmarks only whether what they use is there
	@$(BIN)/mypy && $(BIN)/mypy --no-warn-unused-ignores --allow-untyped-defs --allow-untyped-calls \
	  --disable-error-code misc --disable-error-code arg-type --disable-error-code import-not-found benchmarks

check: lint types test ## lint, types and tests

docs: install ## the documentation as a site, in build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

assets: install ## rebuild the embedded judges and the embedded model from nothing (hours)
	@$(BIN)/python -m fairanon.assets $(ARGS)

config: install ## print the resolved configuration of EXP
	@$(BIN)/fairanon config "$(EXP)" $(OVERLAY:%=--overlay %) $(ARGS)

experiments: install ## list the experiments
	@$(BIN)/fairanon experiments

clean: ## remove caches; runs/, data/ and .venv stay
	@rm -rf .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
