# Every target that needs .venv goes through .ci/setup, which is quick when nothing is missing.
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup clients demo check fix unit fuzz audit docs bench lock dist clean

bin := .venv/bin
heading = @printf '\n== %s\n'

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

setup: ## install what is missing: Debian packages and .venv
	@.ci/setup

clients: ## set-up with the container engines that only `make check` needs
	@.ci/setup clients

demo: setup ## show a sync at work, with a stand-in for Docker Hub and GitLab on this machine
	@$(bin)/python -m tests.sandbox.demo

check: clients ## all that CI checks: format, lint, imports, types, tests
	$(heading) 'format (ruff format)'
	@$(bin)/ruff format --check
	$(heading) 'lint (ruff check)'
	@$(bin)/ruff check --quiet
	$(heading) 'imports (lint-imports)'
	@$(bin)/lint-imports --no-logo --no-cache
	$(heading) 'types (mypy)'
	@$(bin)/mypy
	$(heading) 'tests (pytest)'
	@$(bin)/pytest --quiet -n auto

fix: setup ## format the code and mend what ruff can mend
	@$(bin)/ruff check --fix
	@$(bin)/ruff format

unit: setup ## the quick tests only, without servers
	@$(bin)/pytest --quiet -n auto tests/unit

docs: setup ## write what of the docs is generated (the examples anew: make docs RECORD=--record)
	@$(bin)/python -m tests.support.docs $(RECORD)

EXAMPLES := 5000
fuzz: setup ## give hostile input to every reader, for minutes (longer: make fuzz EXAMPLES=50000)
	@FUZZ_EXAMPLES=$(EXAMPLES) $(bin)/pytest --quiet tests/fuzz

audit: setup ## look up known vulnerabilities of the pinned dependencies (needs pypi.org)
	@$(bin)/python -m tests.support.audit

bench: setup ## measure speed
	@$(bin)/python -m bench

# The lock is made from PyPI alone, whatever indexes, folders and constraints this machine gives pip.
# UPGRADE=--upgrade takes the newest releases; else a pin stays where pyproject.toml still allows it.
pypi := env -u PIP_INDEX_URL -u PIP_EXTRA_INDEX_URL -u PIP_NO_INDEX -u PIP_FIND_LINKS \
	-u PIP_CONSTRAINT -u PIP_PRE PIP_CONFIG_FILE=/dev/null
lock: setup ## pin all dependencies anew in requirements.lock (newest: make lock UPGRADE=--upgrade)
	@CUSTOM_COMPILE_COMMAND='make lock' $(pypi) $(bin)/pip-compile --quiet --no-config \
		--extra dev --build-deps-for editable --allow-unsafe --strip-extras --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		$(UPGRADE) --output-file requirements.lock pyproject.toml
	@.ci/setup

dist: setup ## build the wheel in dist/
	@$(bin)/python -m build --wheel --no-isolation --outdir dist

clean: ## remove .venv, caches and built files
	@rm -rf .venv .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
