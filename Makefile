# `make` lists the targets. A target that needs a PostgreSQL finds or starts one by itself: see CONTRIBUTING.md.

GOLANGCI_LINT_VERSION := 2.15.0
MODULES := $(sort $(dir $(wildcard go.mod */go.mod */*/go.mod)))
BIN := $(CURDIR)/bin
WITH_POSTGRES := $(BIN)/with-postgres
GOLANGCI_LINT := $(BIN)/golangci-lint
TEST_TIMEOUT ?= 20m

# Runs a command in every module, and stops at the first that fails.
each-module = @set -e; for module in $(MODULES); do echo "$$module: $(1)"; (cd $$module && $(1)); done

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z\/-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: build/postgres build/command ## show the library at work against a real PostgreSQL (DEMO_WORKERS=N for more workers)
	$(if $(DEMO_WORKERS),DEMO_WORKERS=$(DEMO_WORKERS)) $(WITH_POSTGRES) -- $(BIN)/pgbaton demo

# -count=1, because go's cache of results does not know the servers. How many packages, and tests of one, run at a time
# bounds how much a test may be slowed down by others, not whether it passes; but a server that was handed in may have no
# more than PostgreSQL's usual 100 connections. With -trimpath, one clone's tests are built from what another's left in go's
# cache. What go vet finds is make lint's; without symbols for debuggers the tests are linked in half the time; and a program with the race
# detector sleeps for a second at its end unless it is told not to.
PACKAGES_AT_ONCE ?= $(if $(DATABASE_URL),1,3)
TESTS_AT_ONCE ?= $(if $(DATABASE_URL),1,8)
GO_TEST = GORACE=atexit_sleep_ms=10 $(WITH_POSTGRES) -- go test -race -trimpath -vet=off -ldflags=-w -p $(PACKAGES_AT_ONCE) -parallel $(TESTS_AT_ONCE) -count=1 -timeout $(TEST_TIMEOUT)

.PHONY: test
test: test/unit test/command test/integration ## run all tests with the race detector, hammers and storms in brief

.PHONY: test/full
test/full: ## run all tests, the hammers also at their full length, on every PostgreSQL at hand, as CI does
	$(MAKE) test/unit
	$(MAKE) test/command
	$(MAKE) test/integration PACKAGES_AT_ONCE=1 APART='$(APART)|locks|semaphores'
	$(MAKE) test/long PACKAGES_AT_ONCE=1
	$(MAKE) test/leases PACKAGES_AT_ONCE=1
	$(MAKE) test/page PACKAGES_AT_ONCE=1

# What makes a run brief: fewer rounds of each hammer and storm, never fewer tests. `make test SHORT=` has all at their full length.
SHORT := -short

# The hammers, by which the laws of locks and permits stand or fall.
HAMMERS := TestHammer|TestCancelSweep|TestSets
.PHONY: test/long
test/long: build/postgres ## run the tests of locks and permits, the hammers at their full length
	cd integration_test && $(GO_TEST) $(SHORT) -skip '^($(HAMMERS))$$' ./locks ./semaphores
	cd integration_test && $(GO_TEST) -run '^($(HAMMERS))$$' ./locks ./semaphores

.PHONY: test/unit
test/unit: build/postgres ## run the root module's tests: each package by itself, and the examples
	$(GO_TEST) $(SHORT) ./...

.PHONY: test/command
test/command: build/postgres ## run the command's tests: processes that run under locks, and what people see
	cd cmd/pgbaton && $(GO_TEST) $(SHORT) ./...

# About a quarter of an hour on two cores by reckoning, most of it for 4,000 processes that are started, connect and are stopped. It prints its rounds.
.PHONY: test/fire
test/fire: build/postgres ## stop commands that wait for a lock 200 times 20, and cut the network of 50 that hold one
	cd cmd/pgbaton && $(GO_TEST) -parallel 8 -v -run '^TestFire_' .

.PHONY: test/integration
test/integration: build/postgres ## run the nested module's tests (the client's calls, faults, every PostgreSQL at hand)
	integration_test/ensure-pgbouncer.sh
	cd integration_test && $(GO_TEST) $(SHORT) $$(go list ./... | grep -vE '/($(APART))$$')

# The nested module's packages that have a target of their own, since they need programs that the others do not, or the machine.
APART := poolers|ha|contract|engines|page

# What both engines give is tested over either; these packages' tests take the engine that they are told to. Permits are the same with
# either engine. Not over leases: tests that
# look for sessions in the server's queue or hold an advisory lock themselves, and the one of a deadlock_timeout of 1 ms, within which
# the server logs that one statement waits for another.
LEASED := ./locks ./leaders ./storm
OF_SESSIONS := TestTerminate_Waiter|TestFairness_WriterAmongReaders|TestRelay|TestQuiet
.PHONY: test/leases
test/leases: build/postgres ## run the tests of locks and leaders between processes, and the storms, over leases
	integration_test/ensure-pgbouncer.sh
	cd integration_test && PGBATON_TEST_ENGINE=lease $(GO_TEST) $(SHORT) -skip '^($(OF_SESSIONS))$$' $(LEASED)

# The table of law × ground is left in integration_test/results/contract.md.
.PHONY: test/contract
test/contract: build/postgres ## hold the library to its laws on every ground: session locks, leases, PgBouncer, emulated engines
	integration_test/ensure-pgbouncer.sh
	cd integration_test && $(GO_TEST) $(SHORT) ./contract
	@cat integration_test/results/contract.md

.PHONY: test/page
test/page: build/postgres ## look at the page in a headless Chromium (its handler is tested by test/unit, pgbaton serve by test/command)
	integration_test/ensure-chromium.sh
	cd integration_test && $(GO_TEST) $(SHORT) ./page

.PHONY: screenshots
screenshots: build/postgres ## draw docs/page-wide.png, page-narrow.png and page-dark.png anew
	integration_test/ensure-chromium.sh
	cd integration_test && PGBATON_SCREENSHOTS=$(CURDIR)/docs $(WITH_POSTGRES) -- go test -trimpath -vet=off -count=1 -run '^TestScreenshots$$' ./page

# PGBATON_TEST_ENGINES has URLs, or Docker images that are run as PostgreSQL's own, with commas.
.PHONY: test/engines
test/engines: build/postgres ## the same on your own servers (PGBATON_TEST_ENGINES=postgres://…,image)
	@test -n "$(PGBATON_TEST_ENGINES)" || { echo "PGBATON_TEST_ENGINES names no server: give URLs, or Docker images"; exit 2; }
	cd integration_test && PGBATON_TEST_ENGINES="$(PGBATON_TEST_ENGINES)" $(GO_TEST) -run '^TestLaw' $(SHORT) ./contract
	@cat integration_test/results/contract.md

.PHONY: test/poolers
test/poolers: build/postgres ## run the tests behind real poolers, PgBouncer and Pgpool-II
	integration_test/ensure-pgbouncer.sh
	integration_test/ensure-pgpool.sh
	cd integration_test && $(GO_TEST) $(SHORT) ./poolers

# Each test has eight processes, and the machine to itself.
.PHONY: test/change
test/change: build/postgres ## change the engine of a fleet's locks under load, in both directions, also behind PgBouncer and with faults
	integration_test/ensure-pgbouncer.sh
	cd integration_test && $(GO_TEST) $(SHORT) -parallel 1 ./engines

# It has the machine to itself: other tests would keep Patroni from giving signs of life.
FAILOVERS ?= 4
.PHONY: test/ha
test/ha: ## let six Patroni clusters fail over under load, four times each (FAILOVERS=N for another number)
	integration_test/ensure-pgbouncer.sh
	integration_test/ensure-patroni.sh
	cd integration_test && PGBATON_FAILOVERS=$(FAILOVERS) go test -race -trimpath -count=1 -timeout 90m -v ./ha

# One test after the other and without the race detector, so that none is measured while others run. A machine is as fast
# as it is: nothing fails for a figure, and the exit status is sed's.
MEASURING = $(shell grep -rl --include='*_test.go' 'testkit\.Figure' internal | xargs -n 1 dirname | sort -u | sed 's,^,./,')

.PHONY: figures
figures: build/postgres ## print what the tests measure: how late, how fast, how many statements, and which targets were missed
	@$(WITH_POSTGRES) -- go test -p 1 -parallel 1 -count=1 -timeout $(TEST_TIMEOUT) -short -v \
		$(MEASURING) 2>&1 | \
		sed -n 's/^.*: figure: /  /p'
	@cd integration_test && $(WITH_POSTGRES) -- go test -p 1 -parallel 1 -count=1 -timeout $(TEST_TIMEOUT) -short -v \
		./client 2>&1 | \
		sed -n 's/^.*: figure: /  /p'
	@cd integration_test && PGBATON_FIGURES=1 $(WITH_POSTGRES) -- go test -p 1 -parallel 1 -count=1 -timeout $(TEST_TIMEOUT) -v \
		./locks ./leaders ./semaphores ./frozen ./storm ./engines 2>&1 | \
		sed -n 's/^.*: figure: /  /p; s/^ *--- FAIL: /  missed: /p'
	@cd cmd/pgbaton && $(WITH_POSTGRES) -- go test -count=1 -timeout $(TEST_TIMEOUT) -v -run TestLs_Many . 2>&1 | \
		sed -n 's/^.*: figure: /  /p'
	integration_test/ensure-pgbouncer.sh
	@cd integration_test && PGBATON_FIGURES=1 $(WITH_POSTGRES) -- go test -p 1 -parallel 1 -count=1 -timeout $(TEST_TIMEOUT) -short -v \
		-run 'TestFigures|TestService' ./poolers 2>&1 | \
		sed -n 's/^.*: figure: /  /p; s/^ *--- FAIL: /  missed: /p'

# Servers and clients are processes of the program's own, and end with it. It needs the server programs of the majors.
.PHONY: storm storm/frozen
storm: build/storm ## let every kind of fault happen to the whole library, a minute each (STORM_FOR, STORM_KINDS, STORM_MAJORS=14,18)
	cd integration_test/storm && $(BIN)/storm

storm/frozen: build/storm ## measure what a frozen waiter costs those behind it (STORM_ROUNDS=50, STORM_MAJORS=14,18)
	cd integration_test/storm && $(BIN)/storm frozen

.PHONY: build/storm
build/storm:
	cd integration_test && go build -o $(BIN)/storm ./cmd/storm

.PHONY: bench
bench: build/postgres ## run the benchmarks once
	@set -e; for module in $(filter-out integration_test/,$(MODULES)); do \
		echo "$$module: benchmarks"; \
		(cd $$module && $(WITH_POSTGRES) -- go test -run '^$$' -bench . -benchmem ./...); \
	done

# Prints Markdown; benchmarks/RESULTS.md is such a run.
.PHONY: bench/compare
bench/compare: build/postgres ## measure pgbaton against locks and semaphores on Redis, about half an hour
	benchmarks/ensure-redis.sh
	cd benchmarks && go build -o $(BIN)/compare ./cmd/compare && $(WITH_POSTGRES) -- $(BIN)/compare $(COMPARE_FLAGS)

.PHONY: lint
lint: build/lint ## check the format, go vet and golangci-lint in every module
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "not formatted (make fmt):"; echo "$$unformatted"; exit 1; }
	$(call each-module,go vet ./...)
	$(call each-module,$(GOLANGCI_LINT) run --allow-parallel-runners ./...)

.PHONY: house
house: ## draw the packages floor by floor, and check that arrows only go down (the map is in CONTRIBUTING.md)
	cd integration_test && go build -o $(BIN)/house ./cmd/house
	$(BIN)/house

# The transcripts are those of a PostgreSQL without a pooler; the pages are written in place.
.PHONY: docs
docs: build/postgres build/command ## run the transcripts of docs/command.md and docs/operations.md again
	cd cmd/pgbaton && go build -o $(BIN)/mkdocs ./internal/mkdocs
	PATH=$(BIN):$$PATH $(WITH_POSTGRES) -- $(BIN)/mkdocs transcripts docs/command.md docs/operations.md

RELEASE ?= v0.1.0
.PHONY: release/dry-run
release/dry-run: ## install the command from a module proxy made of the tree, and build it for every system into dist/ (RELEASE=v0.1.0)
	cmd/pgbaton/release-dry-run.sh $(RELEASE) dist

.PHONY: fmt
fmt: build/lint ## format the code (gofumpt, gci)
	$(call each-module,$(GOLANGCI_LINT) fmt ./...)

.PHONY: tidy
tidy: ## bring every go.mod and go.sum in order
	$(call each-module,go mod tidy)

.PHONY: verify
verify: ## check that go.mod files are tidy and that the library brings at most 20 modules to its users
	$(call each-module,go mod tidy -diff)
	integration_test/module-budget.sh 20

# Builds with-postgres, and on a bare Debian installs PostgreSQL for it.
.PHONY: build/postgres
build/postgres:
	cd integration_test && go build -o $(WITH_POSTGRES) ./cmd/with-postgres
	integration_test/ensure-postgres.sh $(WITH_POSTGRES)

.PHONY: build/command
build/command: ## build the command into bin/
	cd cmd/pgbaton && go build -o $(BIN)/pgbaton .

.PHONY: build/lint
build/lint:
	@$(GOLANGCI_LINT) version --short 2>/dev/null | grep -qxF $(GOLANGCI_LINT_VERSION) || { \
		echo "installing golangci-lint v$(GOLANGCI_LINT_VERSION) into bin/"; \
		GOBIN=$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_LINT_VERSION); }
