# `make` prints what there is. Needs Go and make; `make setup` gets the rest.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# Never a production system by accident: servers are started by ourselves, or
# named by DEMO_REDIS_URL, DEMO_POSTGRES_URL, TEST_REDIS_URL, TEST_POSTGRES_URL.
unexport REDIS_URL POSTGRES_URL

# The folder of real data that some tests and the demo read (tracks/, teltonika/).
DATA ?= $(if $(wildcard ../shared/data),../shared/data)
override DATA := $(abspath $(DATA))
export DATA

ARGS ?=
PKG ?= ./...
# The longest packages begin first: at the end each would be the only one.
TESTED = $(if $(filter ./...,$(PKG)),./pipeline ./internal/equivalence) $(PKG)
BENCH ?= .
# Of a campaign: make chaos.
FROM ?= 1
SEEDS ?= 20
WORLD ?= plain
# Scenarios whose bounds nothing else checks; those of hot and backlog compare rates, for a
# machine with nothing else to do.
NIGHTLY := scale rolling rescale kill stall outage soak cluster
WORLDS := partitioned hypertable pooled encrypted crowded impatient limited neighbours
# Runs of each benchmark in bench-compare.
COUNT ?= 6
FUZZTIME ?= 30s
# CI takes no verdict from an earlier run.
TESTFLAGS ?= $(if $(CI),-count=1)

# A program with the race detector waits a second before it ends, each package's
# tests among them.
export GORACE ?= atexit_sleep_ms=10

# Tools are built from source through the module proxy, by exact version.
GOLANGCI_LINT_VERSION := v2.15.0
GOVULNCHECK_VERSION := v1.9.0
BENCHSTAT_VERSION := v0.0.0-20260908200009-22c9c6c9d4da
CYCLONEDX_VERSION := v1.10.0
GOTESTSUM_VERSION := v1.13.0
TOOLS := $(abspath bin)/tools
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION)
GOVULNCHECK := $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)
BENCHSTAT := $(TOOLS)/benchstat-$(BENCHSTAT_VERSION)
CYCLONEDX := $(TOOLS)/cyclonedx-gomod-$(CYCLONEDX_VERSION)
GOTESTSUM := $(TOOLS)/gotestsum-$(GOTESTSUM_VERSION)

WITH_SERVERS := bin/with-servers
# The same for what runs with the race detector, built with it as all of that is:
# built without it, half of what the service needs would be compiled once more.
WITH_SERVERS_RACE := bin/test/with-servers

# Every real track, for the demo: --tracks FILE for each.
TRACKS = $(foreach f,$(sort $(wildcard $(DATA)/tracks/*.csv $(DATA)/tracks/*.csv.gz)),--tracks $(f))

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install the servers and the C compiler if they are missing (silent if not)
	@scripts/setup.sh

.PHONY: setup-tests
setup-tests: ## The same, prometheus, whose promtool tests the alerts, and chromium, which tests the console
	@scripts/setup.sh tests

.PHONY: run
run: setup ## Show the service at work on servers of its own: make run ARGS="--once --json"
	@scripts/build.sh ./cmd/...
	@bin/loadtest demo $(ARGS)

.PHONY: build
build: ## Build the programs into bin/
	@scripts/build.sh ./cmd/... ./internal/devenv/cmd/...

.PHONY: test
test: setup-tests data $(WITH_SERVERS_RACE) ## Vet, build and test every promise with the race detector on real servers, three packages at once
	@$(WITH_SERVERS_RACE) go test -race -vet=all -p 3 -timeout 20m $(TESTFLAGS) $(TESTED)

.PHONY: test-ci
test-ci: setup-tests data $(WITH_SERVERS_RACE) $(GOTESTSUM) ## The same as test; up to 40 failed tests run again, and one that passes then is named unstable
	@rc=0; $(WITH_SERVERS_RACE) $(GOTESTSUM) --format standard-quiet --packages '$(TESTED)' \
		--rerun-fails=2 --rerun-fails-max-failures=40 --rerun-fails-report=bin/unstable.txt \
		-- -race -vet=all -p 3 -timeout 20m $(TESTFLAGS) || rc=$$?; \
	if [ -s bin/unstable.txt ]; then echo "UNSTABLE, each is a fault to fix:"; cat bin/unstable.txt; fi; exit $$rc

.PHONY: test-slow
test-slow: ## The slow tests too: further cases, every kind of table, long walks through a browser, the image (15 minutes)
	@TEST_SLOW=1 $(MAKE) --no-print-directory test TESTFLAGS=-count=1

.PHONY: test-full
test-full: setup-tests data build $(WITH_SERVERS_RACE) ## The long campaigns too: every test again, then each fuzz target for FUZZTIME (30s)
	@TEST_FULL=1 $(WITH_SERVERS_RACE) go test -race -vet=all -count=1 -timeout 120m $(PKG)
	@$(MAKE) --no-print-directory fuzz

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (30s): make fuzz FUZZTIME=5m
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: nightly
nightly: ## For the nightly build, hours: test-full with 5 minutes for each fuzz target, the process tests and chaos in every world, poison at full size, scenarios that nothing else runs, a Redis Cluster among them
	@$(MAKE) --no-print-directory test-full FUZZTIME=5m
	@failed=; skipped=; for world in $(WORLDS); do \
		echo "in the world $$world:"; \
		test $$world = crowded || TEST_WORLD=$$world $(WITH_SERVERS_RACE) go test -race -count=1 -timeout 60m ./internal/e2e || failed="$$failed $$world"; \
		said=$$(bin/loadtest run chaos --json --slack 4 --world $$world) || \
			case $$said in *'"skipped":'*) skipped="$$skipped $$world";; *) failed="$$failed $$world";; esac; \
		echo "$$said"; \
	done; \
	bin/loadtest run poison --entries 100000 --json || failed="$$failed poison"; \
	for scenario in $(NIGHTLY); do \
		bin/loadtest run $$scenario --json --slack 4 || failed="$$failed $$scenario"; \
	done; \
	test -z "$$skipped" || echo "skipped worlds:$$skipped" >&2; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

.PHONY: check
check: format-check vet lint ## Before every commit, under a minute: format, vet, lint, short tests
	@go test -short $(TESTFLAGS) $(PKG)

.PHONY: cover
cover: ## Coverage of the short tests, package by package, into coverage.out: make cover PKG=./internal/...
	@go test -short -coverprofile=coverage.out -coverpkg=$(PKG) $(PKG) >/dev/null
	@scripts/coverage.sh coverage.out

.PHONY: format-check
format-check: $(GOLANGCI_LINT)
	@out=$$($(GOLANGCI_LINT) fmt --diff ./...) && test -z "$$out" || { printf '%s\n' "$$out"; echo "run: make fmt" >&2; exit 1; }

.PHONY: vet
vet: ## Run go vet
	@go vet ./...

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Check style, import rules, formatting and retired words with the pinned linters
	@go test -run 'Retired' ./internal/archtest >/dev/null || { go test -run 'Retired' ./internal/archtest; exit 1; }
	@$(GOLANGCI_LINT) run ./...

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format all Go files (gofumpt, import groups)
	@$(GOLANGCI_LINT) fmt ./...

.PHONY: vuln
vuln: ## Fail on known vulnerabilities (asks vuln.go.dev, or VULN_DB=file:///a/copy)
	@$(MAKE) --no-print-directory $(GOVULNCHECK) || true
	@scripts/vuln.sh $(GOVULNCHECK)

.PHONY: image
image: ## Build the container image, FROM scratch, without a registry: make image TAG=processor:1.2.0
	@scripts/image.sh $(or $(TAG),processor:latest)

.PHONY: release
release: ## Tag a version whose section is in CHANGELOG.md: make release VERSION=1.2.0 (docs/releasing.md)
	@scripts/release.sh . '$(VERSION)'

.PHONY: sbom
sbom: ## List what the service is made of, with licences (CycloneDX), in bin/sbom.json
	@if $(MAKE) --no-print-directory $(CYCLONEDX); then \
		$(CYCLONEDX) app -json -licenses -std -main cmd/processor -output bin/sbom.json . && echo "bin/sbom.json"; \
	else echo "sbom: SKIPPED, cyclonedx-gomod is not there and cannot be fetched" >&2; fi

.PHONY: bench
bench: setup build ## Measure the service beside what the servers can do: make bench ARGS="--short --json"
	@bin/loadtest bench $(ARGS)

.PHONY: bench-micro
bench-micro: setup data build ## Run the Go benchmarks: make bench-micro BENCH=Backlog PKG=./pipeline/...
	@$(WITH_SERVERS) go test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m $(PKG)

.PHONY: bench-compare
bench-compare: base-named setup data build $(BENCHSTAT) ## Compare the Go benchmarks with a revision: make bench-compare BASE=main~5 PKG=./internal/telemetry
	@dir=$$(mktemp -d) && trap 'git worktree remove --force "$$dir/base"; rm -rf "$$dir"' EXIT && \
		git worktree add --quiet --detach "$$dir/base" '$(BASE)' && \
		for side in base new; do \
			echo "measuring $$side" >&2; \
			(test $$side = new || cd "$$dir/base"; $(abspath $(WITH_SERVERS)) go test -run '^$$' -bench '$(BENCH)' \
				-benchmem -count $(COUNT) -timeout 60m $(PKG)) > "$$dir/$$side.txt" || { cat "$$dir/$$side.txt" >&2; exit 1; }; \
		done && $(BENCHSTAT) "base=$$dir/base.txt" "new=$$dir/new.txt"

.PHONY: base-named
base-named:
	@test -n '$(BASE)' || { echo "which revision? make bench-compare BASE=main~5" >&2; exit 2; }

.PHONY: benchstat
benchstat: $(BENCHSTAT) ## Compare two saved benchmark outputs: make benchstat ARGS="old.txt new.txt"
	@$(BENCHSTAT) $(ARGS)

.PHONY: loadtest
loadtest: setup data build ## Run a load test scenario: make loadtest ARGS="list"
	@bin/loadtest $(ARGS)

.PHONY: loadtest-ci
loadtest-ci: build ## Two instances share the work, take over from each other and survive chaos (under 4 minutes)
	@bin/loadtest run split --json --duration 15s --slack 3
	@bin/loadtest run failover --json --slack 3
	@bin/loadtest run chaos --json --slack 3 --seed 7

.PHONY: chaos
chaos: build ## A campaign of chaos that must reach the rare branches: make chaos FROM=1 SEEDS=20 WORLD=partitioned
	@go build -tags mutant -o bin/processor-mutant ./cmd/processor
	@rm -rf bin/rare; failed=; for seed in $$(seq $(FROM) $$(($(FROM) + $(SEEDS) - 1))); do \
		bin/loadtest run chaos --json --slack 4 --seed $$seed --world $(WORLD) --processor bin/processor-mutant --rare bin/rare --report bin/chaos-$$seed.html || failed="$$failed $$seed"; \
	done; bin/loadtest reached chaos bin/rare && test -z "$$failed" || { echo "failed seeds:$${failed:- none}" >&2; exit 1; }

.PHONY: loadtest-containers
loadtest-containers: build ## Build the image and break containers of it, where there is a Docker engine (80 s)
	@if docker info >/dev/null 2>&1; then bin/loadtest run containers --json --slack 3; \
	else echo "containers: SKIPPED, there is no Docker engine, so the image was not built and no container was run" >&2; fi

.PHONY: ci-demo
ci-demo: build ## Replay every real track as fast as it goes and balance the account
	@if [ -n "$(TRACKS)" ]; then \
		bin/loadtest demo --once --json --speed 0 $(TRACKS); \
	else \
		echo "no real tracks (DATA='$(DATA)'): the simulated fleet instead"; \
		bin/loadtest demo --once --json; \
	fi

.PHONY: tables
tables: ## Generate the tables in the documents again
	@go generate ./...

.PHONY: clean
clean: ## Remove what was built
	@rm -rf bin

.PHONY: $(WITH_SERVERS_RACE)
$(WITH_SERVERS_RACE):
	@[ -e $@ ] || echo 'compiling; the first time takes two minutes or three' >&2
	@go build -race -o $@ ./internal/devenv/cmd/with-servers

.PHONY: data
data:
	@if [ -d "$(DATA)" ]; then echo "real data: $(DATA)"; \
	else echo "real data: none (set DATA to its folder); tests that need it are skipped, with -v they say so"; fi >&2

# Named by version, so that another version is another file.
define install-tool
	@echo "building $(notdir $@)"
	@mkdir -p $(TOOLS)/new
	@GOBIN=$(TOOLS)/new GOFLAGS= go install $(1)
	@mv $(TOOLS)/new/$(2) $@
endef

$(GOLANGCI_LINT):
	$(call install-tool,github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION),golangci-lint)

$(GOVULNCHECK):
	$(call install-tool,golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION),govulncheck)

$(BENCHSTAT):
	$(call install-tool,golang.org/x/perf/cmd/benchstat@$(BENCHSTAT_VERSION),benchstat)

$(GOTESTSUM):
	$(call install-tool,gotest.tools/gotestsum@$(GOTESTSUM_VERSION),gotestsum)

$(CYCLONEDX):
	$(call install-tool,github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX_VERSION),cyclonedx-gomod)
