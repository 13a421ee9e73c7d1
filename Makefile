# Two commands do everything on a Debian 12 with a Rust toolchain: `make demo` and `make test`.
# Set on the command line if needed: CARGO, CARGO_FLAGS (such as --offline), CARGO_TARGET_DIR, RUST_TEST_THREADS; and
# RABBITMQ and ATS, to test another RabbitMQ and another Traffic Server than Debian's: their prefixes (docs/testing.md).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

CARGO ?= cargo
# May be several words, such as 'cargo +1.88'. Cargo's tools read a variable of this name too, and take it for a program.
unexport CARGO
FOR_TOOLS := CARGO='$(firstword $(CARGO))'
CARGO_FLAGS ?= --locked
# One build serves the tests, the demo and what is shipped: the release profile, with the same features of every crate.
# All of the workspace but the benchmark, whose crates ask others for more features: see `default-members`.
RELEASE := --release $(CARGO_FLAGS)
# Unit tests: to optimise what they are in once more for them takes three minutes of a core, and saves half of one.
UNOPTIMISED := $(foreach crate,resumed resumed-ats,--config 'profile.release.package.$(crate).opt-level=0')
# What a step is about to do, before it is silent for a while. The times are those of two idle cores.
SAY = @printf '==> %s\n'
# A farm in a test is a broker, three proxies and three nodes: two at a time are what two cores carry.
RUST_TEST_THREADS ?= 2
export RUST_TEST_THREADS
RABBITMQ ?=
ATS ?=
# The second broker of tests that need two: a prefix too, that of Debian 13 if it is not set.
RABBITMQ_NEXT ?=
export RABBITMQ ATS RABBITMQ_NEXT

TARGET := $(or $(CARGO_TARGET_DIR),target)
# The release whose options deny.toml is written for.
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY ?= $(TARGET)/tools/bin/cargo-deny
CARGO_FUZZ_VERSION := 0.13.2
CARGO_FUZZ ?= $(TARGET)/tools/bin/cargo-fuzz
CARGO_DEB_VERSION := 3.8.0
CARGO_DEB ?= $(TARGET)/tools/bin/cargo-deb
CARGO_ABOUT_VERSION := 0.9.3
CARGO_ABOUT ?= $(TARGET)/tools/bin/cargo-about
CARGO_CYCLONEDX_VERSION := 0.5.9
CARGO_CYCLONEDX ?= $(TARGET)/tools/bin/cargo-cyclonedx
# A tool that runs for seconds is not worth minutes of optimisation.
TOOL_PROFILE := CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
# The packages' revision of this release.
REVISION ?= 1
# Each of these is a program in fuzz/fuzz_targets/ with its inputs in fuzz/corpus/. SECONDS is how long each runs; what it
# finds new stays in target/.
FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
CORPUS_FOLDER := fuzz/target/corpus
SECONDS ?= 60

# Each file in a folder of tests/ is a test program of that name, but for those in folders without tests.
TEST_FILES := $(filter-out tests/decoders/% tests/demo/% tests/support/%,$(wildcard tests/*/*.rs))
TESTS := $(sort $(basename $(notdir $(TEST_FILES))))
# All but what boots hosts and what plays their roles, which `make test-rollout` runs, and what is about each generation of the
# broker, which `make test-brokers` runs.
FARM_TESTS := $(filter-out rollout ansible_templates broker_move cluster_faults,$(TESTS))
# So many programs of them run at a time, the longest first: they mostly wait for servers, or for time to pass.
SIDE_BY_SIDE ?= 3
LONGEST_FIRST := federation prometheus_farm broker_faults broker_faults@trixie page ats_plugin ats_memory resumption \
  faults broker_move farm_simulated cluster_faults floods host_faults rabbitmq_faults emergencies
# What is about the broker itself, and all that touches one.
BROKER_TESTS := broker_addresses broker_faults broker_limits bus_contract installations rabbitmq_faults rabbitmq_leaves_nothing rabbitmq_permissions
BROKER_TESTS_ASKED = $(if $(filter command%,$(origin BROKER_TESTS)),$(BROKER_TESTS),$(ALL_BROKER_TESTS))
ALL_BROKER_TESTS := $(filter $(FARM_TESTS) broker_move cluster_faults,$(sort $(basename $(notdir $(shell grep -l testkit::broker $(TEST_FILES))))))
# `make test` runs these on Debian 13's too, unless it is told of a broker.
ON_NEXT_BROKER := $(if $(RABBITMQ),,$(addsuffix @trixie,$(BROKER_TESTS)))
# What fills a feed under full load takes a minute of both cores: here on one broker, by `make test-brokers` on all.
ON_ONE_BROKER := a_frozen_node_under_full_load_fills_its_queue_to_the_limit_and_catches_up_when_it_thaws
# Debian 12's own, Debian 13's, and the newest that Debian has.
BROKERS ?= own trixie newest
# What has brokers of two versions side by side.
TESTS_OF_TWO_BROKERS := a_site_on_one_version_of_the_broker_and_a_site_on_another_are_one_farm
# A name of no test would be passed over.
$(foreach name,$(filter-out %@trixie,$(LONGEST_FIRST)) $(BROKER_TESTS),\
  $(if $(filter $(name),$(TESTS)),,$(error No file in a folder of tests/ is called $(name).rs)))
ROOTS := $(TARGET)/broker-roots
# next_broker RELEASE: makes that root and takes it for RABBITMQ_NEXT, if that is not set. Where it cannot be made, what needs
# it is NOT RUN.
next_broker = export RABBITMQ_NEXT="$${RABBITMQ_NEXT:-$$(scripts/broker-root.sh $(1) '$(ROOTS)' >&2 && realpath '$(ROOTS)/$(1)')}"
# side_by_side PROGRAMS,LOGS: runs those, each by `make test-program`.
side_by_side = RUN='$(MAKE) --no-print-directory test-program NAME=' scripts/side-by-side.sh '$(SIDE_BY_SIDE)' \
  '$(TARGET)/test-logs/$(2)' $(filter $(1),$(LONGEST_FIRST)) $(filter-out $(LONGEST_FIRST),$(1))
# on_brokers RELEASES,PROGRAMS: those on the RabbitMQ of each of those releases.
on_brokers = scripts/test-brokers.sh '$(1)' '$(ROOTS)' env $(call side_by_side,$(2),brokers)

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
	  printf '  make %-13s %s\n' "$$target" "$$text"; done

.PHONY: demo
demo: build dependencies-farm ## A broker and three proxies on loopback: probe, rotate, lose the leader, probe again (KEEP=1: leave it up)
	$(SAY) 'the farm: about 30 s'
	$(CARGO) run $(RELEASE) --bin farm -- $(if $(filter-out 0 no,$(KEEP)),--keep)

# Documentation tests come first, the tests of whole farms last: quick answers early, and a test result as the last line.
.PHONY: test
test: previous-commit begin-next-root build previous-and-packager deb dependencies-farm dependencies-test dependencies-brokers ## Every test, those against a real broker and real proxies too (TEST=name: only tests with that in their name)
	$(SAY) 'building the tests: about 1 min when nothing of them is built'
	$(CARGO) test $(RELEASE) --no-run --quiet --package resumed-tests
	$(SAY) 'documentation and unit tests: about 1 min'
	$(CARGO) test $(RELEASE) --doc -- $(TEST)
	$(CARGO) test $(RELEASE) --no-fail-fast --lib --package resumed --package resumed-ats --package session-offer $(UNOPTIMISED) -- $(TEST)
	$(SAY) 'building the server that embeds a node: about 25 s when it is not built'
	$(CARGO) build $(RELEASE) --examples
	$(if $(RABBITMQ_NEXT),,$(SAY) 'the root with the RabbitMQ of Debian 13: no time when it is there, else up to 2 min')
	$(call next_broker,trixie); printf '==> %s\n' 'whole farms, $(SIDE_BY_SIDE) test programs at a time: about 10 min'; \
	  export MAKE_ROOTS=no; $(call side_by_side,$(FARM_TESTS) $(ON_NEXT_BROKER),all)

# Fetching and unpacking another Debian takes little of the processors: it goes on beside the builds. Whatever needs it waits for
# it, by its lock; if nothing does any more, it ends by itself within two minutes.
.PHONY: begin-next-root
begin-next-root: dependencies-brokers
	@$(if $(RABBITMQ)$(RABBITMQ_NEXT),:,mkdir -p '$(ROOTS)' && { scripts/broker-root.sh trixie '$(ROOTS)' >'$(ROOTS)/begun.log' 2>&1 & })

# One program of whole farms; NAME=program@release: on the RabbitMQ of that Debian.
.PHONY: test-program
test-program:
	@case '$(NAME):$(RABBITMQ_NEXT)' in broker_move: | federation:) \
	  echo '==> $(NAME) with two brokers: NOT RUN: RABBITMQ_NEXT names no second one';; esac; \
	test '$(NAME):$(RABBITMQ_NEXT)' != broker_move: || exit 0; \
	$(if $(findstring @,$(NAME)),scripts/test-brokers.sh '$(lastword $(subst @, ,$(NAME)))' '$(ROOTS)') \
	  $(CARGO) test $(RELEASE) --no-fail-fast --test $(firstword $(subst @, ,$(NAME))) -- $(TEST) \
	  $(if $(RABBITMQ_NEXT),,$(addprefix --skip ,$(TESTS_OF_TWO_BROKERS))) \
	  $(if $(findstring @,$(NAME)),$(addprefix --skip ,$(ON_ONE_BROKER)))

# In 4.0 Khepri is an experiment that an operator may have switched on: what clusters do then is tested, too.
.PHONY: test-brokers
test-brokers: build previous dependencies-farm dependencies-test dependencies-brokers ## All tests that touch a broker on Debian 12's, Debian 13's and the newest (BROKERS=newest: only there; BROKER_TESTS=file: only those)
	$(SAY) 'tests that touch a broker: about 10 min for each broker, and 3 min to make the roots of the others, once'
	$(SAY) 'building the server that embeds a node: about 25 s when it is not built'
	$(CARGO) build $(RELEASE) --example embedded_node
	$(call next_broker,newest); failed=0; $(call on_brokers,$(BROKERS),$(BROKER_TESTS_ASKED)) || failed=1; \
	$(if $(and $(filter trixie,$(BROKERS)),$(filter cluster_faults,$(BROKER_TESTS_ASKED))),RABBITMQ_STORE=khepri \
	  $(call on_brokers,trixie,cluster_faults) || failed=1;) exit $$failed

# The farm goes back to the packages of the release before and up again. On a host of Debian 12 and one of Debian 13, revision
# 1 is upgraded to revision 2.
.PHONY: test-rollout
test-rollout: previous-commit dependencies-hosts dependencies-farm dependencies-test ## The packages and playbooks on Debian hosts booted for it, which lose power, links and brokers under clients (root)
	$(MAKE) deb REVISION=2
	$(MAKE) deb-previous REVISION=1
	$(SAY) 'the hosts: about 3 min to make their base systems the first time, then 13 min'
	$(CARGO) test $(RELEASE) --test rollout -- --nocapture --test-threads 1 $(TEST)
	$(SAY) 'what the roles write: about 3 min'
	$(CARGO) test $(RELEASE) --test ansible_templates -- $(TEST)

.PHONY: bench
bench: build dependencies-farm ## Measure it all beside what the broker does by itself: a table, target/bench/report.json, plots (ONLY=throughput: one part)
	$(SAY) 'building the benchmark: about 4 min the first time'
	$(CARGO) bench $(CARGO_FLAGS) --package resumed-bench --bench farm --no-run --quiet
	$(SAY) 'measuring: about 13 min in all'
	$(CARGO) bench $(CARGO_FLAGS) --package resumed-bench --bench farm -- $(ONLY)

# In the development profile: after a change in one module a few seconds to compile, then its tests.
.PHONY: unit
unit: dependencies-build ## The unit tests alone, quickly compiled, for while you work (TEST=farm: only those of that module)
	$(CARGO) test $(CARGO_FLAGS) --package resumed --lib -- $(TEST)

.PHONY: soak
soak: dependencies-build ## Simulated farms by seed: SEEDS=100000 of them, from FIRST=2000 on; or SEED=1234 alone, with its story
	RESUMED_SEEDS=$(or $(SEEDS),20000) RESUMED_FIRST_SEED=$(or $(FIRST),0) RESUMED_SEED=$(SEED) \
	  $(CARGO) test $(RELEASE) --test farm_simulated -- --exact --nocapture every_seed_keeps_the_invariants

.PHONY: build
build: dependencies-build ## The release binary and the plugin: target/release/resumed and libresumed_ats.so
	$(SAY) 'building: about 5 min when nothing is built'
	$(CARGO) build $(RELEASE)

.PHONY: deb
deb: build dependencies-deb $(CARGO_DEB) ## The Debian packages, in target/debian: resumed and resumed-trafficserver (REVISION=2 for the next one of a release)
	$(SAY) 'building what writes the manual pages, and the packages: about 30 s'
	$(CARGO) build $(RELEASE) --example manual
	$(FOR_TOOLS) CARGO_DEB='$(CARGO_DEB)' scripts/make-packages.sh '$(TARGET)' '$(REVISION)'

# Before anything is built: a shallow clone is told at once, and not after ten minutes.
.PHONY: previous-commit
previous-commit:
	@scripts/build-previous-release.sh '$(TARGET)' check

# A peer for the tests of two releases in one farm. Its crates from the registry are those of the present build.
.PHONY: previous previous-built
previous: previous-commit build previous-built ## The release before this one, as tests/previous-release names it, in target/previous-release

previous-built:
	$(SAY) 'the release before this one, beside which this one is tested: about 1 min the first time'
	CARGO='$(CARGO)' CARGO_FLAGS='$(CARGO_FLAGS)' scripts/build-previous-release.sh '$(TARGET)' release

.PHONY: deb-previous
deb-previous: deb previous ## The Debian packages of the release before this one
	CARGO='$(CARGO)' CARGO_FLAGS='$(CARGO_FLAGS)' CARGO_DEB='$(CARGO_DEB)' \
	  scripts/build-previous-release.sh '$(TARGET)' packages

# Either leaves a processor idle now and then, and neither touches what the other builds.
.PHONY: previous-and-packager
previous-and-packager: previous-commit build
	$(MAKE) --no-print-directory --jobs=2 previous-built $(CARGO_DEB)

$(CARGO_DEB):
	$(SAY) 'building cargo-deb: about 1 min, once'
	$(TOOL_PROFILE) $(CARGO) install --quiet --locked --version $(CARGO_DEB_VERSION) --root $(TARGET)/tools cargo-deb

.PHONY: release
release: dependencies-build dependencies-deb $(CARGO_DEB) $(CARGO_CYCLONEDX) ## What docs/release.md publishes, built twice and compared, in target/release-packages (DRAFT=1: before CHANGELOG.md is closed)
	CARGO='$(CARGO)' CARGO_DEB='$(CARGO_DEB)' CARGO_CYCLONEDX='$(CARGO_CYCLONEDX)' DRAFT='$(DRAFT)' \
	  scripts/build-release.sh '$(TARGET)/release-packages'

$(CARGO_CYCLONEDX):
	$(SAY) 'building cargo-cyclonedx: about 1 min, once'
	$(TOOL_PROFILE) $(CARGO) install --quiet --locked --version $(CARGO_CYCLONEDX_VERSION) --root $(TARGET)/tools cargo-cyclonedx

.PHONY: lint
lint: dependencies-build dependencies-lint ## Formatting, clippy, shellcheck and ansible-lint without a warning, the plugin without an async runtime, the library without the daemon
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	shellcheck .ci/run scripts/*.sh $(wildcard etc/*/*.sh tests/*/*.sh tests/*/*/*.sh debian/resumed*/*)
	scripts/check-test-programs.sh
	scripts/check-rooms.py
	scripts/fuzz-corpus.sh check $(FUZZ_TARGETS)
	scripts/check-ansible-variables.py
	cd ansible && ansible-lint && ansible-playbook --inventory inventory/example --syntax-check *.yml
	CARGO='$(CARGO)' scripts/check-plugin-crates.sh $(CARGO_FLAGS)
	CARGO='$(CARGO)' scripts/check-shipped-features.sh $(CARGO_FLAGS)
	CARGO='$(CARGO)' scripts/check-embedded-crates.sh $(CARGO_FLAGS)
	$(CARGO) clippy --workspace --all-targets $(RELEASE) -- -D warnings
	$(CARGO) clippy --package resumed --lib --no-default-features $(RELEASE) -- -D warnings
	$(CARGO) clippy --package resumed --lib --no-default-features --features rustls $(RELEASE) -- -D warnings
	$(CARGO) clippy --package resumed --lib --no-default-features --features daemon $(RELEASE) -- -D warnings

# It is the registry that knows: without a network it says NOT CHECKED.
.PHONY: yanked
yanked: dependencies-build ## Fail if a crate of Cargo.lock was yanked: withdrawn from the registry
	$(if $(filter --offline,$(CARGO_FLAGS)),CARGO_NET_OFFLINE=true) CARGO='$(CARGO)' scripts/check-yanked.py Cargo.lock fuzz/Cargo.lock

.PHONY: audit
audit: yanked $(CARGO_DENY) ## Licences, sources and banned crates of the whole dependency tree (builds cargo-deny once); ADVISORIES=DIR: advisories too, by that clone of their database
	$(FOR_TOOLS) $(CARGO_DENY) --workspace check --hide-inclusion-graph bans licenses sources
	$(FOR_TOOLS) CARGO_DENY='$(CARGO_DENY)' scripts/check-advisories.sh '$(ADVISORIES)'

$(CARGO_DENY):
	$(SAY) 'building cargo-deny: some minutes, once'
	$(TOOL_PROFILE) $(CARGO) install --quiet --locked --version $(CARGO_DENY_VERSION) --root $(TARGET)/tools cargo-deny

# For whoever changes a dependency: a test says when these are not up to date.
.PHONY: notices
notices: $(CARGO_ABOUT) ## Write the licence notices of the linked crates anew, which the packages carry (builds cargo-about once)
	$(FOR_TOOLS) $(CARGO_ABOUT) generate --locked --fail --offline --config debian/notices/about.toml --manifest-path Cargo.toml \
	  --output-file debian/notices/resumed debian/notices/template.hbs
	$(FOR_TOOLS) $(CARGO_ABOUT) generate --locked --fail --offline --config debian/notices/about.toml --manifest-path ats-plugin/Cargo.toml \
	  --output-file debian/notices/resumed-trafficserver debian/notices/template.hbs

$(CARGO_ABOUT):
	$(CARGO) install --locked --version $(CARGO_ABOUT_VERSION) --features cli --root $(TARGET)/tools cargo-about

# An input is as long as the longest that its decoder takes: a reply to a command of this machine is up to 64 MiB.
# Stable Rust has no sanitizers: libFuzzer's coverage alone, with overflow checks and debug assertions on. CARGO_FUZZ is
# called as cargo would.
.PHONY: fuzz
fuzz: $(CARGO_FUZZ) dependencies-build ## Fuzz every decoder for SECONDS each, 60 by default (FUZZ_TARGETS=name: only that one)
	scripts/fuzz-corpus.sh unpack fuzz/target/known $(FUZZ_TARGETS)
	for target in $(FUZZ_TARGETS); do \
	  case $$target in control) most=67108868 memory=2048;; *) most=1048704 memory=512;; esac; \
	  mkdir -p fuzz/target/found/$$target; \
	  $(CARGO_FUZZ) run -s none --target-dir fuzz/target $$target fuzz/target/found/$$target fuzz/target/known/$$target -- \
	    -max_total_time=$(SECONDS) -max_len=$$most -len_control=0 -rss_limit_mb=$$memory -timeout=10 -print_final_stats=1; \
	done

$(CARGO_FUZZ):
	$(CARGO) install --locked --version $(CARGO_FUZZ_VERSION) --root $(TARGET)/tools cargo-fuzz

.PHONY: corpus corpus-unpack corpus-pack
corpus: ## List the inputs of the fuzz targets that are kept: target, bytes, name (FUZZ_TARGETS=name: only that one's)
	@scripts/fuzz-corpus.sh list $(FUZZ_TARGETS)

corpus-unpack: ## Unpack them into fuzz/target/corpus, made anew, to run or to change one (FUZZ_TARGETS=name)
	scripts/fuzz-corpus.sh unpack $(CORPUS_FOLDER) $(FUZZ_TARGETS)

corpus-pack: ## Keep what is in fuzz/target/corpus now (FUZZ_TARGETS=name)
	scripts/fuzz-corpus.sh pack $(CORPUS_FOLDER) $(FUZZ_TARGETS)

.PHONY: clean
clean: ## Remove everything that was built
	$(CARGO) clean
	rm -rf fuzz/target

# `make dependencies-test` and the like: see the groups in the script.
.PHONY: dependencies-build dependencies-farm dependencies-test dependencies-lint dependencies-deb dependencies-hosts dependencies-brokers
dependencies-build dependencies-farm dependencies-test dependencies-lint dependencies-deb dependencies-hosts dependencies-brokers:
	@command -v $(firstword $(CARGO)) >/dev/null || { echo 'There is no cargo on PATH: install Rust $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or later.' >&2; exit 1; }
	@scripts/install-dependencies.sh $(@:dependencies-%=%)
