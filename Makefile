# Set-up happens by itself: each target fetches and builds what it misses, a second run fetches nothing.
#
#   make demo    meta-train, export, adapt to a persona, chat (after the build at most 4 minutes; with MODEL=smollm2, a model that
#                speaks English, with a start that was meta-trained before, two)
#   make smollm2-bundle   SmolLM2 with the start of models/smollm2-persona, in eight bits, into OUT (smollm2-bundle)
#   make test    every test
#   make build   the three binaries in target/release
#   make check   format, lints, licences, documentation
#   make bench   criterion benches, the exact meta-gradient on GPT-2 small's shapes (beside PyTorch's with PEER, PYTHON and MODEL), and
#                with MODEL, a folder or a GGUF file, the device's side beside the peers that PYTHON has, into OUT or docs/device.md
#                (PEERS and DIALOGUES: benches/peers/device.py --help)
#   make fuzz    every parser under libFuzzer, for MINUTES (12) in all; TARGETS names some of them
#   make faults  each system call of a save, an export and a checkpoint, killed before it and failing (needs strace)
#   make sanitize   AddressSanitizer and Miri over the kernels; needs a nightly toolchain, and says how to get it
#   make tiny    makes models/tiny again (about an hour on two cores)

.PHONY: demo smollm2-bundle test build check bench sanitize fuzz faults tiny deps
.DEFAULT_GOAL := build

deps:
	@scripts/prerequisites.sh
	@scripts/native-deps.sh

build: deps
	cargo build --release --locked --workspace --bins

demo: build
	@scripts/demo.sh $(MODEL)

smollm2-bundle: build
	@scripts/smollm2-bundle.sh $(or $(OUT),smollm2-bundle)

test: deps
	cargo build --locked --workspace --bins
	cargo test --locked --workspace

check: deps
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@scripts/cargo-deny.sh check bans licenses sources
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet

bench: build
	cargo bench --locked -p marionette-benches
	@scripts/bench-meta.sh
ifdef MODEL
	$(or $(PYTHON),python3) benches/peers/device.py $(MODEL) $(if $(PEERS),--peers $(PEERS)) $(if $(DIALOGUES),--dialogues $(DIALOGUES)) --out $(or $(OUT),docs/device.md)
endif

sanitize: deps
	@scripts/sanitize.sh

fuzz: deps
	@scripts/fuzz.sh $(or $(MINUTES),12) $(TARGETS)

faults: deps
	@scripts/faults.sh

tiny: build
	@models/tiny/make.sh
