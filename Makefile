# Two commands: `make up` serves the embedded model, `make test` runs the suite. Each builds what it
# needs in .venv first; what is there already is not built again.

PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Extras of `make up`; a machine with an NVIDIA driver takes the GPU kernels too.
EXTRAS := $(if $(shell command -v nvidia-smi),[gpu])
# Processes of `make test`. Each has an engine of its own at times, so not one for each core.
WORKERS ?= 2
# Options of `appliance up`, such as UP="--port 8123".
UP ?=
JSON := Content-Type: application/json
BODY := {"model": "default", "messages": [{"role": "user", "content": "Who are you?"}]}
# Says nothing when all is well. (mkdocs --quiet would pass over what --strict is for.)
SITE = @mkdir -p build && NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict >build/site.log 2>&1 || \
    { cat build/site.log >&2; exit 1; }

.PHONY: up down venv test check docs

up: $(VENV)/.installed
	@$(BIN)/appliance status --quiet >/dev/null 2>&1 || $(BIN)/appliance up --detach --wait $(UP)
	@at=$$($(BIN)/appliance status --json | $(BIN)/python -c 'import json, sys; s = json.load(sys.stdin); \
	    print("--unix-socket " + s["uds"] + " http://localhost" if s["uds"] else s["url"])'); \
	printf '\nThe OpenAI API is at %s/v1. Ask it:\n\n' "$${at##* }"; \
	printf "    curl %s/v1/chat/completions -H '%s' -d '%s'\n\n" "$$at" '$(JSON)' '$(BODY)'; \
	if command -v curl >/dev/null; then \
	    curl -sS --fail-with-body $$at/v1/chat/completions -H '$(JSON)' -d '$(BODY)'; \
	else $(BIN)/appliance run "Who are you?"; fi && \
	printf '\n\nWatch it with %s, stop it with make down.\n' '$(BIN)/appliance top'

down:
	@if [ -x $(BIN)/appliance ]; then $(BIN)/appliance down; fi

venv: $(VENV)/.developed

test: $(VENV)/.developed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(SITE)

# The pages that follow from the code, then the site, into build/site.
docs: $(VENV)/.developed
	$(BIN)/python docs/write_reference.py
	$(SITE)
	@echo "The site: build/site/index.html"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer is on the PATH." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".$(EXTRAS)"
	@touch $@

$(VENV)/.developed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
