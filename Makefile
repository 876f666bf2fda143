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
# Packages whose tests count lost packets of processes that do the encryption:
# beside others on two cores they count what a full queue lost.
ALONE     := /test/(encrypt|wireguard)$$
FUZZTIME  ?= 1m

say = @echo '==> $(1)'

##@ Use

.PHONY: help
help: ## show this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: build ## three nodes, a real API server, pods that talk; KEEP=1 leaves it up, ENCRYPT=1 encrypts
	@WEFT_BIN_DIR=$(CURDIR)/bin go run ./test/demo $(if $(KEEP),-keep) $(if $(ENCRYPT),-encrypt)

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

# The tag that the manifests name.
IMAGE     ?= ghcr.io/weft-cni/weft:$(shell awk '$$1 == "newTag:" { print $$2 }' manifests/base/kustomization.yaml)
PLATFORMS ?= linux/amd64 linux/arm64

.PHONY: image
image: ## bin/image/weft.tar, the container image, with licences and SBOM
	$(call say,making the image $(IMAGE) of $(VERSION))
	@hack/image.sh '$(VERSION)' '$(IMAGE)' $(PLATFORMS)

.PHONY: image-check
image-check: ## the image is right, and the same when it is made again elsewhere
	@hack/image-check.sh '$(VERSION)' '$(IMAGE)' $(PLATFORMS)

.PHONY: release
release: image ## bin/release, the files of a release: VERSION=v1.2.3
	@hack/release.sh '$(VERSION)' $(PLATFORMS)

.PHONY: clean
clean: ## remove bin/
	rm -rf bin

##@ Check

.PHONY: test
test: ## all tests, with the race detector; as root none is skipped
	@hack/need.sh gcc:gcc,libc6-dev nft:nftables
	$(call say,testing; the first run builds an API server: about 10 minutes on two cores)
	@CGO_ENABLED=1 go test -race -count=1 -p $(TESTP) -timeout 30m $(TESTFLAGS) $$(go list ./... | grep -vE '$(ALONE)')
	@CGO_ENABLED=1 go test -race -count=1 -p 1 -timeout 30m $(TESTFLAGS) $$(go list ./... | grep -E '$(ALONE)')

# The packages of test/vm, a boot each; VMTEST=./test/vm/sriov for some of them.
VMTEST ?= ./test/vm/...

.PHONY: test-vm
test-vm: build bin/cni/.built ## tests in a virtual machine with real VFs: docs/vm.md
	$(call say,testing in a virtual machine; the first run downloads QEMU and a kernel: 150 MB)
	@WEFT_BIN_DIR=$(CURDIR)/bin CGO_ENABLED=0 go test -tags vm -count=1 -p 1 -parallel 4 -timeout 30m -exec $(CURDIR)/hack/vm/vmrun $(TESTFLAGS) $(VMTEST)

# What pods and nodes have: IPv4, IPv6, dual, or several of them.
VARIANT ?= dual

.PHONY: e2e
e2e: ## end-to-end tests on a kind cluster; VARIANT=IPv4, IPv6, dual; ENCRYPT=1; E2E=short; KEEP=1
	$(call say,testing end to end: docs/e2e.md says what it needs and how long it takes)
	@for variant in $(VARIANT); do VERSION='$(VERSION)' IMAGE='$(IMAGE)' hack/e2e.sh "$$variant"; done

.PHONY: e2e-down
e2e-down: ## remove the clusters of make e2e, and stop the Docker engine that it started
	@for variant in IPv4 IPv6 dual; do for name in $${variant,,}{,-encrypted}; do test/kind/cluster.sh down weft-$$name; done; done
	@hack/node-image/engine.sh down

# The sets of Kubernetes' own tests: conformance, network, policy.
SETS ?= conformance network policy

.PHONY: conformance
conformance: ## Kubernetes' own tests of a network; SETS='conformance network policy'; ENCRYPT=1; KEEP=1
	$(call say,testing conformance: docs/conformance.md says how long it takes)
	@VERSION='$(VERSION)' IMAGE='$(IMAGE)' SETS='$(SETS)' hack/conformance.sh $(firstword $(VARIANT))

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

.PHONY: vuln
vuln: ## known vulnerabilities in what the product calls; asks vuln.go.dev
	@go tool -modfile=hack/ci/go.mod govulncheck ./...

.PHONY: verify
verify: ## generated files are current, go.mod files are tidy
	@hack/verify.sh $(MODULES)
