# Weft. `make` alone lists what there is to do.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-builtin-rules --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'

# Every Go module of the repository; the product is the first.
MODULES := . $(patsubst %/go.mod,%,$(shell git ls-files '*/go.mod'))

TESTFLAGS ?=
# Packages tested at a time. The cluster tests keep a core busy each.
TESTP     ?= 2
FUZZTIME  ?= 1m

say = @echo '==> $(1)'

##@ Use

.PHONY: help
help: ## show this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: build ## three nodes, a real API server, pods that talk; KEEP=1 leaves it up
	@WEFT_BIN_DIR=$(CURDIR)/bin go run ./test/demo $(if $(KEEP),-keep)

##@ Build

.PHONY: build
build: ## bin/weft (the CNI plugin) and bin/weftd (the node daemon), static
	$(call say,building bin/weft and bin/weftd $(VERSION))
	@$(GOBUILD) -o bin/weft ./cmd/plugin
	@$(GOBUILD) -o bin/weftd ./cmd/daemon

.PHONY: generate
generate: ## deepcopy, client, informers, CRDs, flat manifests
	$(call say,generating code and manifests)
	@hack/generate.sh

IMAGE     ?= ghcr.io/weft-cni/weft:dev
PLATFORMS ?= linux/amd64 linux/arm64

.PHONY: image
image: ## bin/image/weft.tar, the container image, with licences and SBOM
	$(call say,making the image $(IMAGE) of $(VERSION))
	@hack/image.sh '$(VERSION)' '$(IMAGE)' $(PLATFORMS)

.PHONY: image-check
image-check: ## the image is right, and the same when it is made again elsewhere
	@hack/image-check.sh '$(VERSION)' '$(IMAGE)' $(PLATFORMS)

.PHONY: clean
clean: ## remove bin/
	rm -rf bin

##@ Check

.PHONY: test
test: ## all tests, with the race detector; as root none is skipped
	@hack/need.sh gcc:gcc,libc6-dev nft:nftables
	$(call say,testing; the first run builds an API server: about 10 minutes on two cores)
	@CGO_ENABLED=1 go test -race -count=1 -p $(TESTP) -timeout 30m $(TESTFLAGS) ./...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (1m)
	$(call say,fuzzing each target for $(FUZZTIME))
	@hack/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: build bin/cni/.built ## speed against the reference plugins and the bare kernel; bin/bench.json
	$(call say,measuring: about 15 minutes; keep the machine quiet)
	@$(GOBUILD) -o bin/ ./test/bench ./test/bench/empty
	@bin/bench -json bin/bench.json $(BENCHFLAGS)

# The plugins that tests chain with and benchmarks compare with.
bin/cni/.built: hack/cni/go.mod
	$(call say,building the reference CNI plugins)
	@mkdir -p bin/cni && cd hack/cni && $(GOBUILD) -o ../../bin/cni/ tool
	@touch $@

.PHONY: lint
lint: bin/golangci-lint ## formatting, vet and linters, in every module
	@hack/lint.sh $(MODULES)

bin/golangci-lint: hack/lint/go.mod
	$(call say,building golangci-lint: about 4 minutes the first time)
	@cd hack/lint && CGO_ENABLED=0 go build -trimpath -o ../../$@ tool
	@touch $@

.PHONY: verify
verify: ## generated files are current, go.mod files are tidy
	@hack/verify.sh $(MODULES)

##@ Not there yet

.PHONY: test-vm e2e
test-vm: ## tests in a virtual machine with real VFs
	@echo 'make $@: not there yet; it comes with SR-IOV' >&2; exit 1
e2e: ## Kubernetes conformance tests on a kind cluster
	@echo 'make $@: not there yet; it comes with the node image' >&2; exit 1
