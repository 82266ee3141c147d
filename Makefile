# The few commands that run everything. CI runs the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-stacks check bench faults clean install
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

$(STAMP): pyproject.toml tools/venv.sh
	@PYTHON="$(PYTHON)" bash tools/venv.sh $(VENV)
	@touch $(STAMP)

install: $(STAMP) ## installs into .venv (all others do this by themselves)

demo: $(STAMP) ## 336,776 real events through workers that are killed on the way
	@$(BIN)/headrace demo $(ARGS)

test: $(STAMP) ## every test, on real servers; two at a time, for they mostly wait
	@bash tools/servers.sh
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal $(ARGS)

test-stacks: $(STAMP) ## generated services: compiled, linted, tested
	@bash tools/servers.sh
	@$(BIN)/python -m pytest -q stacks $(ARGS)

check: $(STAMP) ## lint, format, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP) ## what it costs, with yardsticks beside it (QUICK=1: a minute; PEERS="faststream taskiq dramatiq")
	@bash tools/servers.sh
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(PEERS),--peers "$(PEERS)") $(ARGS)

faults: $(STAMP) ## attacks the whole product and says what became of every event (MINUTES=5; MUTANTS=1: broken builds; PEERS=1: other libraries)
	@bash tools/servers.sh
	@$(BIN)/python -m faults$(if $(MUTANTS),.mutants)$(if $(PEERS),.peers) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

clean: ## removes what was installed or cached
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist
