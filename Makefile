# `make test` needs Go and a C compiler, and no network once the modules are
# there. Everything that asks a foreign judge is skipped without it and named at
# the end; `make peers test-peers` is the whole truth. `.ci/run` runs all of it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: build test race peers test-peers bench fuzz crash lint fmt

GO ?= go
TOOL := $(GO) tool -modfile=tools/go.mod
# tools is a module of its own; testlog needs the standard library only, so this downloads nothing.
TESTLOG := $(GO) run -C tools ./testlog

# How much `make crash` does: full (200 kills) or ci (3 at every label).
FIRMSEAL_CRASH ?= full
# How long each target of `make fuzz` runs.
FUZZTIME ?= 20s

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o firmseal ./cmd/firmseal

test:
	$(GO) test -json ./... | $(TESTLOG)

# Long tests are left out: under the race detector they are a tenth as fast.
race:
	$(GO) test -race -short -json ./... | $(TESTLOG)

peers:
	scripts/peers.sh

# -count=1: go's test cache does not see that a judge has changed.
test-peers:
	FIRMSEAL_PEERS=1 $(GO) test -count=1 -timeout 30m -json ./... | $(TESTLOG) -peers -need '^TestPeer'

bench:
	$(GO) test -run '^$$' -bench . -timeout 60m ./bench/...

# The seeds of the fuzz targets run in every plain `go test`.
fuzz:
	FUZZTIME=$(FUZZTIME) scripts/fuzz.sh

crash:
	FIRMSEAL_CRASH=$(FIRMSEAL_CRASH) $(GO) test ./cmd/firmseal -run TestCrash -count=1 -timeout 60m -json | $(TESTLOG) -v -need '^TestCrash'

lint:
	@out=$$(git ls-files -co --exclude-standard -- '*.go' | xargs -r gofmt -l); [ -z "$$out" ] || { printf 'gofmt would change:\n%s\n' "$$out"; exit 1; }
	@out=$$(git ls-files -co --exclude-standard -- '*.go' | xargs -r $(TOOL) gofumpt -l); [ -z "$$out" ] || { printf 'gofumpt would change (make fmt):\n%s\n' "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) -C tools vet ./... && $(GO) -C tools test ./...
	$(TOOL) staticcheck ./...
	$(GO) test -run '^TestHouse' .

fmt:
	git ls-files -co --exclude-standard -- '*.go' | xargs -r $(TOOL) gofumpt -w
