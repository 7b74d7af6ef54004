# Everything a person needs; each target says what it does. `make demo` and `make test` are the two that matter.
CARGO ?= cargo
PYTHON ?= python3
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release
DATA := $(RELEASE)/xlstm-data
TRAIN := $(RELEASE)/xlstm-train
EVAL := $(RELEASE)/xlstm-eval
DEMO := data/demo
RUN := runs/demo

.PHONY: help setup fetch libtorch nvrtc build demo demo-data demo-model tasks test test-data test-wheel test-docs kernels lint tools wheel bench clean-demo

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: fetch libtorch nvrtc ## everything that has to be fetched

fetch: # every crate of the lock file, of all platforms: they are also the demo's corpus
	@$(CARGO) fetch --locked --quiet

libtorch: # libtorch from its PyPI wheel, or the one that LIBTORCH names
	@$(PYTHON) tools/fetch_libtorch.py

nvrtc: # the CUDA compiler as a library, for the kernels' tests; no GPU and no toolkit needed
	@$(PYTHON) tools/fetch_nvrtc.py

build: fetch ## the release binaries of the data side
	$(CARGO) build --release --locked -p xlstm-pipeline

# One build keeps all cores busy to its end. Where libtorch takes longer to fetch, the data half, which needs none, is built meanwhile; what both
# halves share is built once (tools/check_features.py).
demo: ## from text to a report: prepare, audit, trace, train, evaluate, follow a figure back, make its page
	@$(PYTHON) tools/fetch_libtorch.py & fetched=$$!; trap "kill $$fetched" INT TERM; \
		$(MAKE) --no-print-directory fetch; built=$$?; \
		for second in $$(seq 20); do kill -0 $$fetched 2>/dev/null && sleep 1; done; \
		if kill -0 $$fetched 2>/dev/null; then $(MAKE) --no-print-directory build; built=$$?; fi; \
		wait $$fetched && exit $$built
	$(CARGO) build --release --locked -p xlstm-pipeline -p xlstm-trainer
	@$(MAKE) --no-print-directory demo-data demo-model BUILT=yes

demo-data: $(if $(BUILT),,build) ## the data half: prepare the embedded corpus, audit every token of it, trace one
	$(DATA) prepare crates --holdout 0.02 --out $(DEMO)
	$(DATA) audit $(DEMO) --deep all
	$(DATA) trace $(DEMO)/train --row 100 --token 1000

# A run that was stopped goes on; a finished one is shown again.
demo-model: demo-data libtorch # the training half
	$(if $(BUILT),,$(CARGO) build --release --locked -p xlstm-trainer)
	$(TRAIN) --manifest $(DEMO)/train --validation $(DEMO)/validation --recipe demo --out $(RUN) \
		$(if $(wildcard $(RUN)/run.json),--resume)
	$(TRAIN) sample $(RUN) --prompt '/// Returns the' --tokens 60
	$(TRAIN) plot $(RUN) -o $(RUN)/loss.svg
	$(TRAIN) chain $(RUN)
	$(EVAL) perplexity $(RUN) --manifest $(DEMO)/validation --first 32
	$(EVAL) verify $(RUN)
	$(EVAL) report $(RUN)

tasks: fetch libtorch ## a synthetic task from data to page: parity's small twin, trained and tested
	$(CARGO) build --release --locked -p xlstm-pipeline -p xlstm-trainer
	$(TRAIN) sweep parity-small --out runs/parity-small --jobs 2

test: setup ## all tests
	$(CARGO) test --release --locked --workspace

test-data: fetch ## the tests of the data side: no libtorch needed
	$(CARGO) test --release --locked -p xlstm-manifests -p xlstm-pipeline -p xlstm-tests

wheel: fetch libtorch ## the three programs and the Python helpers as a wheel, in dist/
	$(CARGO) build --release --locked -p xlstm-pipeline -p xlstm-trainer
	@$(PYTHON) tools/make_wheel.py

test-wheel: wheel ## the wheel in a fresh virtual environment (programs; `tests/python/wheel.py --full` for the Python helpers)
	$(PYTHON) tests/python/wheel.py

test-docs: fetch libtorch ## every link of the documents, and every command that needs neither Hub nor GPU
	$(CARGO) build --release --locked -p xlstm-pipeline -p xlstm-trainer
	$(PYTHON) tools/check_docs.py

kernels: fetch nvrtc ## compile every CUDA kernel for every size and compute capability (no GPU needed); report in target/kernels/
	XLSTM_KERNELS_EVERYTHING=1 $(CARGO) test --release --locked -p xlstm-cuda --test compile

lint: setup tools ## formatting, clippy, documentation, licences and sources of dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(PYTHON) tools/check_features.py
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --locked --workspace --no-deps
	.tools/bin/cargo-deny --offline --locked check licenses sources bans

tools: .tools/bin/cargo-deny

# Without default features it is small: advisories need a network that a build machine may not have.
.tools/bin/cargo-deny:
	$(CARGO) install --quiet --debug --locked --no-default-features --root .tools cargo-deny --version =0.20.2

bench: ## speed and memory of the data side against its peer (docs/benchmarks/README.md)
	$(CARGO) build --release --locked -p xlstm-pipeline --bins --examples
	docs/benchmarks/data/run.sh

clean-demo: ## remove what the demo made
	rm -rf $(DEMO) $(RUN)
