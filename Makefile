# Every target works on a fresh machine that has Go; `make help` lists them.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# Arguments for the command that `run`, `bench` and `bench-peers` start.
ARGS ?=

# Where the tests are that have targets of their own.
SYSTEMTEST := ./internal/systemtest
# Modules of their own, so that what they need stays out of Spine's go.mod: what Spine is measured beside, and the
# providers' libraries that its signatures are held against.
PEERS   := internal/bench/peers
ORACLES := internal/source/oracles

# `make test PKG=./internal/store RUN=TestX PG=18` runs one test on PostgreSQL 18. PG is 15, 16, 17 or 18.
PKG ?=
RUN ?=
PG  ?=
# The whole suite leaves out most of the places where a connection may break (-short). `make proof` tries all.
SHORT ?= $(if $(RUN)$(PKG),,-short)
# These two packages take longer than all others together. They begin first.
LONGEST := ./internal/store $(SYSTEMTEST)
# The race detector makes tests two to five times slower and needs a C compiler: RACE=-race, as in `make proof`.
RACE ?=

# Begins a recipe line that needs a server: chooses its binaries, or ends the line with the reason.
with-postgres = export POSTGRES_BIN; POSTGRES_BIN=$$(.ci/postgres '$(PG)')
# Tests may not come from the cache: they run on a server. Without symbols, test binaries are linked in half the time.
# `make lint` vets.
go-test = go test -vet off -ldflags '-s -w' -count 1
# A package's tests wait more than they compute, so three run at once. With the race detector they compute more.
GOTEST  = $(go-test) -json -p $(if $(RACE),2,3) -timeout 15m $(RACE)
PROGRESS = go run ./internal/systemtest/progress

GOLANGCI_VERSION    := v2.15.0
STATICCHECK_VERSION := v0.8.2
GOLANGCI     := $(CURDIR)/.cache/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint
# Another checkout on this machine may be linted at the same time.
GOLANGCI_RUN := '$(GOLANGCI)' run --allow-parallel-runners

# How long each target is fuzzed.
FUZZTIME ?= 20s
FUZZ     := FuzzSignatureHeader FuzzRedact FuzzConfig FuzzPath FuzzVolatile FuzzCloudEventsHeaders FuzzEnvelope

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
test: ## the tests, on one PostgreSQL; one test by PKG=./internal/store RUN=TestX PG=18
	@$(with-postgres); \
		$(GOTEST) $(SHORT) $(if $(RUN),-run '$(RUN)') $(or $(PKG),$(LONGEST) ./...) | $(PROGRESS)

.PHONY: test-peers
test-peers:
	@$(with-postgres); cd $(PEERS); $(GOTEST) ./... | (cd '$(CURDIR)'; $(PROGRESS))

.PHONY: test-oracles
test-oracles:
	cd $(ORACLES) && go vet ./...
	@$(with-postgres); cd $(ORACLES); $(GOTEST) ./... | (cd '$(CURDIR)'; $(PROGRESS))

.PHONY: proof
proof: ## everything, without a limit of time; the summary is left in bin/proof.txt
	@.ci/proof

# How long faults go on, and which: FAULTS_SEED=7 does again what a run with seed 7 did.
FAULTS_TIME ?= 90s
FAULTS_SEED ?=
# FAULTS_POOLER=transaction or session puts a PgBouncer between. FAULTS_KINDS='queue|standby' does these kinds alone.
FAULTS_POOLER ?=
FAULTS_KINDS  ?=

.PHONY: faults
faults: ## break everything on purpose, under load, and check that nothing is lost
	@$(with-postgres); SPINE_FAULTS_TIME='$(FAULTS_TIME)' SPINE_FAULTS_SEED='$(FAULTS_SEED)' \
		SPINE_FAULTS_POOLER='$(FAULTS_POOLER)' SPINE_FAULTS_KINDS='$(FAULTS_KINDS)' \
		$(go-test) -timeout 24h -v -run '^TestFaults$$' $(SYSTEMTEST)

# Which of the sabotage trials: SABOTAGE=2/3 is the second third.
SABOTAGE ?= 1/1

.PHONY: sabotage
sabotage: ## break Spine itself, and check that the checker of faults finds it
	@$(with-postgres); SPINE_SABOTAGE='$(SABOTAGE)' $(go-test) -timeout 1h -v -parallel 4 -run '^TestSabotageIsFound$$' $(SYSTEMTEST)

# Which of the hostile settings: MATRIX=2/3 is the second third. MATRIX_SEED=7 brings back the combinations of seed 7.
MATRIX ?= 1/1
MATRIX_SEED ?=

.PHONY: matrix
matrix: ## the contract under each setting of a role, database or URL, and behind PgBouncer
	@$(with-postgres); SPINE_MATRIX='$(MATRIX)' SPINE_MATRIX_SEED='$(MATRIX_SEED)' \
		$(GOTEST) -run '^TestSettingsMatrix$$' $(SYSTEMTEST) | $(PROGRESS)

# How often each drill is gone through.
DRILLS ?= 20

.PHONY: drills
drills: ## failovers to a standby, an upgrade, overload, and how long it takes to recover
	@$(with-postgres); SPINE_DRILLS='$(DRILLS)' $(go-test) -timeout 24h -v -run '^TestDrill' $(SYSTEMTEST)

.PHONY: test-contract
test-contract: ## the contract alone; on the server at SPINE_URL, with SPINE_TEST_DATABASE_URL and SPINE_MOCK_URL, if set
	@$(with-postgres); $(GOTEST) -run '^TestContract' $(SYSTEMTEST) | $(PROGRESS)

.PHONY: check
check: lint tidy documents schema-check cross ## all that must hold beside the tests

.PHONY: lint
lint: ## linters, vet among them, and formatting
	@if [[ -x '$(GOLANGCI)' ]] || $(MAKE) --no-print-directory golangci-lint; then \
		'$(GOLANGCI)' fmt --diff && $(GOLANGCI_RUN) && cd $(PEERS) && $(GOLANGCI_RUN); \
	else \
		$(call loud,'golangci-lint cannot be installed: only go vet with staticcheck and gofmt'); \
		go vet -tags schema,screenshots ./...; \
		(cd $(PEERS) && go vet ./...); \
		go run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION) ./...; \
		test -z "$$(gofmt -l cmd internal sql | tee /dev/stderr)"; \
	fi

.PHONY: fmt
fmt: golangci-lint ## format the code
	'$(GOLANGCI)' fmt

.PHONY: golangci-lint
golangci-lint: $(GOLANGCI)
$(GOLANGCI):
	GOBIN='$(@D)' go install -ldflags '-s -w' github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

.PHONY: tidy
tidy:
	go mod tidy -diff
	cd $(PEERS) && go mod tidy -diff
	cd $(ORACLES) && go mod tidy -diff

# sql/schema.sql is what pg_dump 15 makes of a migrated database.
SCHEMA_TEST = $(go-test) -tags schema -run '^TestSchemaDump$$' $(SYSTEMTEST)

# Links, section numbers, tables and widths of documents; the width of code; the one list of actions.
.PHONY: documents
documents:
	$(go-test) -run '^(TestDocument|TestCodeWidths|TestActions)' ./internal/systemtest ./internal/trail

.PHONY: screenshots
screenshots: ## make the pictures of README anew, with a browser
	$(go-test) -tags screenshots -timeout 10m -run '^TestScreenshots$$' $(SYSTEMTEST)

.PHONY: schema
schema: ## write sql/schema.sql, and the tables of sql/README.md
	@$(with-postgres); UPDATE_SCHEMA=1 $(SCHEMA_TEST) && UPDATE_SCHEMA=1 $(go-test) -run '^TestReadmeOfSQL$$' ./internal/store

.PHONY: schema-check
schema-check:
	@$(with-postgres); $(SCHEMA_TEST)

# What is compiled here is thrown away, so it need not be fast.
.PHONY: cross
cross:
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go build -gcflags 'all=-N -l' ./...

.PHONY: bench
bench: build ## measure a running server (SPINE_URL): events acknowledged a second
	@exec bin/spine bench ingest --url '$(or $(SPINE_URL),http://127.0.0.1:8000)' $(ARGS)

.PHONY: profile
profile: ## record anew what `make build` optimizes for: deploy/spine.pgo
	$(with-postgres); go test -trimpath -run '^$$' -bench '^BenchmarkServe$$' -benchtime 300000x -cpuprofile deploy/spine.pgo -o bin/serve.test $(SYSTEMTEST)
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

.PHONY: fuzz
fuzz: ## fuzz what reads requests, FUZZTIME (20s) for each target, two at a time
	go test -c -fuzz . -o bin/fuzz.test ./internal/source
	cd internal/source && printf '%s\n' $(FUZZ) | xargs -P 2 -I {} '$(CURDIR)/bin/fuzz.test' -test.run '^$$' -test.fuzz '^{}$$' \
		-test.fuzztime $(FUZZTIME) -test.fuzzminimizetime 10x -test.parallel 1 -test.fuzzcachedir '$(CURDIR)/.cache/fuzz'

.PHONY: clean
clean: ## remove what was built and fetched here; keeps the data of `make run`
	rm -rf bin .cache
