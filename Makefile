# Everything people and CI run. Each target does its own set-up: Rust, a C++20 compiler and Python 3 with pip are enough.

NVCC_FOUND := $(or $(NVCC),$(CUDA_HOME),$(CUDA_PATH),$(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
TOOLCHAIN := $(if $(NVCC_FOUND),,.toolchain/cuda/bin/nvcc)
CLANG_FORMAT := .toolchain/clang-format/clang-format
KERNEL_SOURCES := $(shell git ls-files 'kernels/*.cu' 'kernels/*.cuh' 'kernels/*.cpp' 'kernels/*.hpp' 2>/dev/null)

.PHONY: run test lint bench ptx sanitize soak fuzz gpu-check check-pages check-lift spills overlap toolchain worker-check deployment-check

## run: the demo, on a GPU if there is one, else on the host driver
run: $(TOOLCHAIN)
	cargo run --release --quiet

## test: all tests that end within minutes (kernels once more as a GPU before Hopper has them, the engine with every CUDA thread emulated, and rounds that run ahead on a stream that puts
## work off), then the controller alone
test: $(TOOLCHAIN)
	cargo test --quiet
	SIMT_SM=80 cargo test --quiet --test kernels -- linear attention prims
	SIMT_NATIVE=0 cargo test --quiet --test engine tiny
	SIMT_LAZY=1 cargo test --quiet --lib --test engine -- ahead mailbox
	cargo test --quiet --no-default-features

## lint: formatting and warnings, as errors
lint: $(TOOLCHAIN) $(CLANG_FORMAT)
	cargo fmt --all --check
	cargo clippy --all-targets --quiet -- -D warnings
	cargo clippy --no-default-features --all-targets --quiet -- -D warnings
	$(CLANG_FORMAT) --dry-run -Werror $(KERNEL_SOURCES)

## bench: kernel and controller microbenchmarks on the device at hand
bench: $(TOOLCHAIN)
	cargo bench

## ptx: the tests of kernels once more, over what nvcc makes of them for Hopper: the host driver runs its PTX. (Without the four that take
## longest, which `soak` has.) No kernel may move bytes one by one, as nvcc has it of a memcpy whose alignment it does not know. Launches are
## written to target/launches
LONGEST := the_bound_is_exact parts_draw_what rows_draw_the_same_in older_instruction_sets
ptx: $(TOOLCHAIN)
	tools/compile_ptx.sh target/ptx
	@! grep 'global[a-z.]*\.u8' target/ptx/*.ptx || { echo 'a kernel moves global memory byte by byte' >&2; exit 1; }
	rm -rf target/launches && mkdir -p target/launches
	SIMT_PTX=target/ptx SIMT_DUMP=target/launches cargo test --quiet --test kernels -- $(LONGEST:%=--skip %)

## sanitize: the sanitizers find planted bugs; then the launches of `ptx` are replayed under ThreadSanitizer, and under AddressSanitizer
## with UBSan, and must be clean
sanitize: ptx
	cargo test --quiet --test host_driver -- --ignored
	tools/sanitize.sh thread target/launches
	tools/sanitize.sh address target/launches

## soak: what is too long for `test`: more prompts, full emulation, more schedules
soak: $(TOOLCHAIN)
	SMART_SOAK=1 cargo test --release
	SIMT_LAZY=1 SMART_AHEAD=1 cargo test --release --test engine --test service
	tools/compile_ptx.sh target/ptx
	SIMT_PTX=target/ptx cargo test --release --test kernels -- $(LONGEST)
	SIMT_PTX=target/ptx cargo test --release --test engine tiny

## fuzz: what clients and strangers send, made up: requests of the server's own document, then files and bodies by coverage;
## FUZZ_SECONDS each (nightly Rust)
FUZZ_SECONDS ?= 180
SCHEMATHESIS := .toolchain/schemathesis
CARGO_FUZZ := .toolchain/cargo-fuzz/bin/cargo-fuzz
fuzz: $(TOOLCHAIN) $(SCHEMATHESIS)/bin/schemathesis $(CARGO_FUZZ)
	cargo build --quiet
	$(SCHEMATHESIS)/bin/python tools/fuzz_serve.py --seconds $(FUZZ_SECONDS)
	CARGO_FUZZ=$(CARGO_FUZZ) tools/fuzz_targets.sh $(FUZZ_SECONDS)

## spills: registers and spills of every kernel on every architecture; any spill is an error, and any wait for wgmma that ptxas adds
spills: $(TOOLCHAIN)
	tools/check_spills.sh

## overlap: whether kernels that may overlap the launches before them wait before they touch memory, by their PTX
overlap: $(TOOLCHAIN)
	tools/check_overlap.sh

## gpu-check: builds executables with the kernels, their tests and the command line, and runs the tests on the GPU of this machine
gpu-check: $(TOOLCHAIN)
	tools/gpu_check.sh

## check-pages: the pages that smart-run writes, in headless Chromium; screenshots to look at in target/pages
check-pages: $(TOOLCHAIN)
	cargo build --release --quiet
	python3 tools/check_trace_pages.py --screenshots target/pages

## check-lift: the tool that makes large networks of small ones, against planted bugs and in the runtime (docs/lifted-model.md)
check-lift: $(TOOLCHAIN)
	cargo build --release --quiet
	python3 tools/lift.py selftest --smart-run target/release/smart-run

## worker-check: the worker for NVIDIA Dynamo (worker/): lint, the contract's conformance kit and tests, then two workers behind Dynamo's
## frontend if DYNAMO_PYTHON (an interpreter) has it. Not part of `test`: it builds 900 packages, which took 45 minutes on 2 busy cores
DYNAMO_PYTHON ?= python3
worker-check: $(TOOLCHAIN)
	cd worker && cargo fmt --check && cargo clippy --all-targets --quiet -- -D warnings && cargo test --quiet && cargo build --quiet
	python3 tools/check_worker.py --python $(DYNAMO_PYTHON)

## deployment-check: the files in deploy/kubernetes/ by parser and schema; no cluster is asked
deployment-check:
	python3 -m venv .venv/deployment
	.venv/deployment/bin/pip install --quiet -r tools/deployment-requirements.txt
	.venv/deployment/bin/python tools/check_deployment.py

toolchain: .toolchain/cuda/bin/nvcc $(CLANG_FORMAT)

.toolchain/cuda/bin/nvcc: tools/fetch_nvcc.sh tools/nvcc-requirements.txt
	tools/fetch_nvcc.sh
	@touch $@

$(SCHEMATHESIS)/bin/schemathesis: tools/fuzz-requirements.txt
	python3 -m venv $(SCHEMATHESIS)
	$(SCHEMATHESIS)/bin/pip install --quiet -r tools/fuzz-requirements.txt
	@touch $@

$(CARGO_FUZZ):
	cargo install cargo-fuzz --version 0.13.2 --locked --quiet --root .toolchain/cargo-fuzz

$(CLANG_FORMAT): tools/fetch_clang_format.sh
	tools/fetch_clang_format.sh
	@touch $@
