# What the workflows run; each verb runs on a developer's machine too. docs/delivery.md says what they need.
DELIVERY := .venv-delivery
ENVIRONMENTS := argocd/environments
REGISTRY ?=
REPOSITORY = $(REGISTRY)/xgboost-server
DIGEST ?= $(shell cat build/digest 2>/dev/null)
REVIEW ?= build/review.md

.PHONY: lint-workflows links audit sbom load registry-login image-push image-scan image-sign chart-push scan-deployed \
  deploy promote check-promotion values-review test-gitops test-platform pull-request comment kind-up kind-down

$(DELIVERY)/.installed: requirements/delivery.txt
	$(PYTHON) -m venv $(DELIVERY)
	$(DELIVERY)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# `$(call tools,NAMES)` builds Go programs into $(TOOLS).
tools = @delivery/tools.sh $(TOOLS) $(1)
required = @test -n "$($(1))" || { echo "$(1) is not set: $(2)"; exit 1; }

lint-workflows: $(DELIVERY)/.installed ## Check workflows, scripts and YAML
	$(call tools,actionlint)
	PATH="$(abspath $(DELIVERY))/bin:$$PATH" $(TOOLS)/actionlint
	$(DELIVERY)/bin/zizmor --quiet --offline --persona pedantic --strict-collection .github
	$(DELIVERY)/bin/yamllint --strict --config-file delivery/yamllint.yaml $(wildcard .github argocd infra)
	git ls-files -z '*.sh' | xargs -0 $(DELIVERY)/bin/shellcheck
	$(DELIVERY)/bin/md-dead-link-check --config delivery/links-here.toml

links: $(DELIVERY)/.installed ## Follow every link of the documents (needs the internet)
	$(DELIVERY)/bin/md-dead-link-check --config delivery/links.toml

# Strict: a package that the service does not know would pass unseen. Only what this Python would install is looked up.
audit: $(DELIVERY)/.installed ## Look the locked dependencies up in the advisories (needs the internet)
	$(DELIVERY)/bin/pip-audit --strict --progress-spinner off --require-hashes --disable-pip -r requirements/server.txt
	$(DELIVERY)/bin/pip-audit --strict --progress-spinner off --require-hashes --disable-pip -r requirements/build.txt

# What the image installs, without pip, as it is installed: the lock alone knows neither licences nor what needs what.
sbom: $(DELIVERY)/.installed $(VENV)/.server ## Write build/sbom.cdx.json; PYTHON should be the image's version
	$(PYTHON) -m venv --clear --without-pip .venv-sbom
	$(BIN)/python -m pip --python .venv-sbom/bin/python install --quiet --disable-pip-version-check --require-hashes \
	  --only-binary :all: --no-compile -r requirements/server.txt
	@mkdir -p build
	$(DELIVERY)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --sv 1.6 --of JSON \
	  --output-reproducible --output-file build/sbom.cdx.json .venv-sbom/bin/python

URL ?= http://127.0.0.1:8000/v1/models/iris:predict
BODY ?= examples/iris/request.json

load: ## Put load on URL with the file BODY for DURATION seconds, by hey
	$(call tools,hey)
	@delivery/load.sh $(TOOLS)/hey "$(URL)" "$(BODY)"

registry-login: ## Log in to REGISTRY, an ECR, private or public, by the AWS credentials at hand
	@delivery/registry-login.sh "$(REGISTRY)"

image-push: ## Build the image for both architectures and push it to REGISTRY; CACHE names where layers are kept
	$(call required,REGISTRY,ACCOUNT.dkr.ecr.REGION.amazonaws.com or public.ecr.aws/ALIAS)
	@version=$$(delivery/version.sh) && delivery/push-image.sh "$(REPOSITORY)" "$$version" "$(CACHE)"

image-scan: ## Look the pushed image up in the advisories
	$(call required,DIGEST,make image-push writes it)
	$(call tools,grype)
	@delivery/scan-image.sh $(TOOLS)/grype "$(REPOSITORY)@$(DIGEST)"

scan-deployed: ## Look the images of all environments up in the advisories
	$(call required,REGISTRY,ACCOUNT.dkr.ecr.REGION.amazonaws.com or public.ecr.aws/ALIAS)
	$(call tools,grype)
	@digests=$$($(PYTHON) delivery/environments.py digests $(ENVIRONMENTS)) && \
	  delivery/scan-image.sh $(TOOLS)/grype $$(printf '$(REPOSITORY)@%s ' $$digests)

image-sign: ## Sign the pushed image and its SBOM, and verify the signature
	$(call required,DIGEST,make image-push writes it)
	$(call tools,cosign)
	@delivery/sign.sh $(TOOLS)/cosign "$(REPOSITORY)@$(DIGEST)" build/sbom.cdx.json

chart-push: ## Push the chart to REGISTRY as an OCI artefact and sign it
	$(call required,REGISTRY,ACCOUNT.dkr.ecr.REGION.amazonaws.com or public.ecr.aws/ALIAS)
	$(call tools,helm4 cosign)
	@version=$$(delivery/version.sh) && delivery/push-chart.sh $(TOOLS)/helm4 "$(REGISTRY)" "$$version"
	@delivery/sign.sh $(TOOLS)/cosign "$$(cat build/chart)"

deploy: ## Write the image DIGEST with its VERSION into the values of dev
	@mkdir -p build
	@$(PYTHON) delivery/environments.py deploy $(ENVIRONMENTS) "$(DIGEST)" "$(VERSION)" >build/change && cat build/change

promote: ## Copy image and version of the environment FROM (dev, staging) to the next one
	@mkdir -p build
	@$(PYTHON) delivery/environments.py promote $(ENVIRONMENTS) "$(FROM)" >build/change && cat build/change

check-promotion: ## Refuse an image that did not run one environment earlier; BASE is the commit before
	@$(PYTHON) delivery/environments.py check $(ENVIRONMENTS) "$(or $(BASE),origin/main)"

# With the Helm that Argo CD embeds, 3 up to Argo CD 3.4; the chart's tests hold Helm 3 and 4 to the same output.
values-review: $(DELIVERY)/.installed ## Say in words what changed in argocd/ since BASE, in REVIEW too; refuse what is not safe
	$(call tools,helm3)
	@HELM=$(abspath $(TOOLS))/helm3 $(DELIVERY)/bin/python -m delivery.review "$(or $(BASE),origin/main)" \
	  --markdown "$(REVIEW)" --json "$(basename $(REVIEW)).json"

test-platform: $(VENV)/.test ## Hold the values of the platform's add-ons to their charts (needs the internet)
	$(call tools,helm4)
	@delivery/charts.sh $(TOOLS)/helm4 build/charts argocd/platform/*.yaml argocd/optional/*.yaml
	CHARTS=$(abspath build/charts) $(BIN)/python -m pytest tests/delivery/test_platform.py

# LOAD_IMAGE: a command that puts the image in a file on the nodes. GITOPS_REPOSITORY: see tests/gitops/test_gitops.py.
test-gitops: $(VENV)/.test ## Test argocd/ in the Argo CD of the cluster that KUBECONFIG names; LOAD_IMAGE loads images
	$(call tools,$(CHART_TOOLS))
	$(BIN)/python -m pytest -v -s tests/gitops

pull-request: ## Open a pull request with what deploy or promote changed
	@delivery/pull-request.sh $(ENVIRONMENTS) "$$(cat build/change)"

comment: ## Comment the file REVIEW on PULL_REQUEST, a number or a branch
	@delivery/comment.sh "$(REVIEW)" "$(PULL_REQUEST)"

KIND_KUBECONFIG ?= build/kubeconfig

kind-up: ## Start a cluster on this machine, with the ingress controller and Argo CD
	$(call tools,kind helm4)
	@delivery/kind.sh up $(TOOLS)/kind $(TOOLS)/helm4 $(abspath $(KIND_KUBECONFIG))

kind-down: ## Remove that cluster
	$(call tools,kind helm4)
	@delivery/kind.sh down $(TOOLS)/kind $(TOOLS)/helm4 $(abspath $(KIND_KUBECONFIG))
