# Every target calls one command or one script: there is no logic in this file.
.DEFAULT_GOAL := help
.PHONY: manifests chart-readme test-chart test-gitops \
        help prerequisites crds programs programs-sp1 backend-risc0 backend-sp1 backend-sp1-cuda \
        sp1-alone e2e-sp1 test-sp1 build demo demo-sp1 \
        test test-light \
        test-store test-api test-risc0 test-risc0-proving test-e2e test-proof test-load e2e e2e-part e2e-sp1-cluster \
        lint verify sim mutants bench bench-core bench-overhead bench-scheduler bench-tables bench-cpu-levels \
        bench-sp1 bench-cluster minio kube-apiserver \
        cluster-up cluster-down cluster-install cluster-images test-cluster images image-sp1 image-sp1-cuda sample-gnark clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

prerequisites: ## Install the system packages that builds and tests need (Debian, as root)
	@tools/prerequisites.sh

crds: ## Write crds/*.yaml from the Rust types
	cargo run --quiet -p prover-operator -- crds

programs: prerequisites ## Compile the sample programs to target/programs
	@config/samples/programs/build.sh target/programs

backend-risc0: prerequisites ## Build the RISC Zero backend (10 min on 2 cores the first time, then cached)
	@tools/build-backend-risc0.sh

programs-sp1: ## Put SP1's sample programs into target/programs/sp1
	@tools/fetch-sp1-programs.sh

backend-sp1: prerequisites ## Build the SP1 backend, which is in the making (docs/sp1.md; 30 core minutes the first time, then cached)
	@tools/build-backend-sp1.sh

backend-sp1-cuda: prerequisites ## Compile and link the SP1 backend for GPUs into target/bin/cuda, no GPU needed (SP1_CUDA_ARCHS=90)
	@tools/build-backend-sp1.sh cuda

sp1-alone: prerequisites ## Build the program that verifies and proves with SP1's own sdk, for comparison
	@tools/build-backend-sp1.sh alone

e2e-sp1: build backend-sp1 sp1-alone programs-sp1 ## Real SP1 proofs, with processes killed meanwhile (40 core minutes)
	@tools/test.sh sp1

test-sp1: prerequisites programs-sp1 ## The SP1 backend without its prover: executor, names, keys of the action cache
	@tools/build-backend-sp1.sh test

build: programs backend-risc0 ## Build everything that local mode needs into target/bin
	@tools/build-light.sh

demo-sp1: programs-sp1 backend-sp1 ## Prove the Fibonacci sample with SP1 and verify the proof against the program
	@tools/build-light.sh
	@tools/demo-sp1.sh

demo: build ## Prove a program of several segments with two workers and verify the proof
	@tools/demo.sh

manifests: ## Render the chart to target/install/prover-operator.yaml, for users without Helm
	@tools/render-install.sh

chart-readme: ## Write the table of values in the chart's README
	UPDATE_README=1 cargo test --quiet -p prover-chart --test documentation

test: test-light test-store test-api test-risc0 test-e2e test-proof ## Run all tests

test-light: prerequisites ## Unit and property tests, fakes, folders: nothing heavy
	@tools/test.sh light

test-store: minio ## The artifact store against a real MinIO
	@tools/test.sh store

test-api: kube-apiserver ## The resource types on a real kube-apiserver
	@tools/test.sh api

test-chart: ## The Helm chart: lints, unit tests, renderings
	@tools/verify-chart.sh

test-gitops: ## What Argo CD and Flux make of our objects, by their own code (large Go modules, cached)
	@tools/test-gitops.sh

test-risc0: programs ## The RISC Zero backend: executor, planner, guests
	@tools/build-backend-risc0.sh test

test-risc0-proving: programs ## What RISC Zero's verifier accepts and refuses, kind by kind (about 7 core minutes)
	@tools/build-backend-risc0.sh test-proving

test-e2e: build ## Local mode with real processes, faults and bad input
	@tools/test.sh e2e

e2e-part: build images sample-gnark ## The cluster scenarios that fit into continuous integration (the cluster is stopped afterwards)
	@tools/test-cluster-part.sh

e2e: build images sample-gnark ## Scenarios on a real Kubernetes, faults among them (23 min on 2 busy cores; starts the cluster)
	@tools/test.sh cluster

e2e-sp1-cluster: build images image-sp1 programs-sp1 ## Scenarios that prove with SP1 in pods (starts the cluster; its scenes take 10 min on 2 cores)
	@tools/test.sh sp1-cluster sp1::real

test-load: kube-apiserver ## The operator with 100 ProverClusters and 10,000 ProofJobs on a real kube-apiserver
	@tools/test.sh load

test-proof: build ## Real RISC Zero proofs, with workers killed meanwhile
	@tools/test.sh proof

minio: ## Build MinIO from its module (cached)
	@e2e/tools/build-minio.sh

kube-apiserver: prerequisites ## Build kube-apiserver from its module (cached)
	@e2e/tools/build-kubernetes.sh kube-apiserver

cluster-up: ## Start a single-node Kubernetes with MinIO and simulated GPUs (as root; PROVER_CLUSTER=existing uses yours)
	@e2e/cluster/up.sh

cluster-down: ## Stop that cluster and remove what it wrote, but not the cache
	@e2e/cluster/down.sh

cluster-install: ## Install the operator into that cluster with Helm (images of make images)
	@e2e/cluster/install.sh

cluster-images: ## Load target/images/*.tar into the cluster
	@e2e/cluster/load-images.sh

test-cluster: ## What cluster-up and cluster-down promise, on a second cluster beside any other
	@e2e/cluster/test.sh

images: backend-risc0 ## Build all container images as archives in target/images, without a container engine
	@tools/images.sh

image-sp1: backend-sp1 ## Build the image of the SP1 backend, which `make images` leaves out
	@tools/images.sh prover-backend-sp1

image-sp1-cuda: backend-sp1-cuda ## Build the image of the SP1 backend for GPUs
	@tools/images.sh prover-backend-sp1-cuda

sample-gnark: ## Build the sample prover of one's own and the programs of its jobs into target/samples
	@config/samples/command/gnark/build.sh bundles

lint: ## Formatting and clippy
	@tools/lint.sh

verify: prerequisites ## What must hold before a commit: generated files, format, lints, documentation, clean tree
	@tools/verify.sh

sim: ## Simulate SEEDS=n clusters with faults (500), or replay SEED=x and print what happened
	@tools/sim.sh

mutants: ## Put deliberate bugs into a copy of the code and report which layer of tests notices each
	@tools/mutants.sh

bench: bench-core bench-overhead bench-scheduler ## All benchmarks, held against their expected ranges

bench-core: ## Decisions per second of the scheduling core
	@tools/bench-core.sh

bench-scheduler: minio ## W1 to W6 with real gRPC, MinIO, Postgres and Redis; W="2 5" runs parts (see tools/bench-scheduler.sh)
	@tools/bench-scheduler.sh $(or $(W),all)

bench-tables: ## Write the results of bench-scheduler into docs/benchmarks.md
	@tools/bench-scheduler.sh tables

bench-overhead: build ## Wall time through coordinator and agents against RISC Zero's own local prover
	@tools/bench-overhead.sh

bench-sp1: build backend-sp1 sp1-alone programs-sp1 ## SP1 through coordinator and agent against sp1-sdk alone, time and memory
	@tools/bench-sp1.sh

bench-cluster: ## How soon jobs start and lost workers are replaced, in the cluster of cluster-up and cluster-install
	@tools/bench-cluster.sh

bench-cpu-levels: prerequisites ## What building the prover for x86-64-v3 brings, pair by pair
	@tools/bench-cpu-levels.sh

clean: ## Remove build results of this checkout, but not the cache
	cargo clean
