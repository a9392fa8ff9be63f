# make demo    a real guest behind vmnetd, shown in under a minute
# make test    everything, as CI runs it
# make bench   vmnetd beside its peers on this machine (root): BENCHFLAGS="--tests all --rounds 3 --markdown table.md",
#              BENCHFLAGS=--help tells all
# make build   bin/vmnetd
# make release vmnetd for Linux, macOS and Windows in dist/, bit for bit the same wherever the same commit is built
# make package deb and rpm in dist/
# make man     manual pages in dist/man
# make fmt     format the tree
# make clean   remove what make built

GO ?= go

# Pinned: a new release must not turn a green tree red by itself.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOTESTSUM = gotest.tools/gotestsum@v1.13.0

.PHONY: build demo test bench release package man check fmt clean

build:
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/vmnetd ./cmd/vmnetd

demo:
	@sh e2e/deps.sh demo
	@echo "building bin/vmnetd (the first time takes a while)"
	@$(MAKE) -s build
	@CGO_ENABLED=0 $(GO) run -trimpath ./e2e/demo -vmnetd bin/vmnetd

# CI=true: a test that cannot have what it needs fails instead of skipping. Tests that need root skip for others, and
# the summary names them.
# -timeout: the matrix of guests takes six minutes on two quiet cores, and Go ends it after ten.
# cmd/vmnetd and e2e one after the other: beside a booting guest the waits of others would be measured, not they. The other
# packages two at a time.
# A test that fails runs once more, and fails if it does so again: guests boot, links race and hosts answer on two busy cores.
# Both runs are printed. A data race is none of that: nothing runs again after one.
# The guards against allocations run once more without -race, under which pools forget at random.
test: check
	@echo "go test -race ./..."
	@if [ "$$(id -u)" = 0 ]; then CI=true; export CI; fi; \
	again="--format testname --format-hide-empty-pkg --rerun-fails=1 --rerun-fails-abort-on-data-race"; \
	$(GO) run $(GOTESTSUM) $$again --packages="$$($(GO) list ./... | grep -v -e /cmd/vmnetd$$ -e /e2e$$)" -- -race -p 2 -timeout 20m && \
	$(GO) run $(GOTESTSUM) $$again --packages="./cmd/vmnetd ./e2e" -- -race -p 1 -timeout 20m && \
	echo "go test -run '^TestAllocs' ./backend ./backend/checksum ./qemu ./vfkit" && \
	$(GO) run $(GOTESTSUM) --format testname --format-hide-empty-pkg -- -run '^TestAllocs' ./backend ./backend/checksum ./qemu ./vfkit

# A binary of its own: it starts itself again in namespaces.
bench: build
	@sh e2e/deps.sh bench
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/bench ./e2e/bench
	@bin/bench $(BENCHFLAGS)

release:
	@$(GO) run ./contrib/release

package:
	@GO="$(GO)" sh contrib/package/build.sh dist

check:
	@sh e2e/deps.sh test
	@echo "gofmt -l ."
	@l=$$(gofmt -l .); test -z "$$l" || { echo "not formatted (make fmt):" $$l >&2; exit 1; }
	@for os in linux darwin windows; do echo "GOOS=$$os go vet ./..."; GOOS=$$os $(GO) vet ./... || exit 1; done
	@echo "staticcheck ./..."
	@$(GO) run $(STATICCHECK) ./...

man: build
	@bin/vmnetd man dist/man

fmt:
	@gofmt -w .

clean:
	@rm -rf bin dist
