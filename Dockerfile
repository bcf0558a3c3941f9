# The container image of mmh. Stages: deps (everything but mmh), made (mmh), templates, app, tests, and the image itself, which is app.
#
#   docker build -t mmh:0.1.0 .                                                 CUDA build of PyTorch, as pip finds it
#   docker build -t mmh:0.1.0-cpu --build-arg TORCH_PIP_ARGS="--index-url ..." .   another build: docs/install.md
#   docker build -t mmh:tests --target tests .                                  with the tests: docker run --rm mmh:tests
#
# docs/containers.md tells the rest. No here-documents, no COPY --link: podman 4.3 refuses them.

# To pin the base to the byte: --build-arg BASE=docker.io/library/python:3.11-slim-bookworm@sha256:...
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# --- deps: an environment with everything but mmh; made again when the metadata or the pins change -------------------
FROM ${BASE} AS deps
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# The base's pip fills the environment, so that none stays in it.
RUN python3 -m venv --without-pip /opt/mmh
COPY constraints.txt ./
# pip arguments that choose a build of PyTorch, as in `make`. Its own tests and C++ headers (there is no compiler) go.
ARG TORCH_PIP_ARGS=""
# hadolint ignore=SC2086
RUN python3 -m pip --python /opt/mmh/bin/python install --no-deps -c constraints.txt torch torchvision ${TORCH_PIP_ARGS} \
    && rm -rf /opt/mmh/lib/python3.*/site-packages/torch/test /opt/mmh/lib/python3.*/site-packages/torch/include \
    && find /opt/mmh/lib/python3.*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete
COPY setup.cfg pyproject.toml ./
COPY mmh_bids/__init__.py mmh_bids/
# An almost empty mmh brings its dependencies, and goes again.
RUN python3 -m pip --python /opt/mmh/bin/python install -c constraints.txt '.[train]' bids-validator-deno \
    && python3 -m pip --python /opt/mmh/bin/python uninstall --yes mmh_bids \
    && rm -rf /opt/mmh/lib/python3.*/site-packages/pandas/tests

# --- made: mmh itself, with the model bundles ------------------------------------------------------------------------
FROM deps AS made
COPY LICENSE README.md ./
COPY mmh_bids mmh_bids
# Into a folder of its own, that the image gets as one small layer. (A mount of this stage would do without, but podman 4.3
# mounts nothing once the stage comes out of its cache.)
RUN python3 -m pip --python /opt/mmh/bin/python install --no-deps --prefix /made .

# --- templates: those of TemplateFlow that were asked for; the default, nilearn's, is in its package -----------------
FROM deps AS templates
COPY docker/fetch_templates.py ./
# for example "MNI152NLin2009cAsym MNI152NLin6Asym:res-2"
ARG TEMPLATEFLOW_TEMPLATES=""
# hadolint ignore=SC2086
RUN TEMPLATEFLOW_HOME=/opt/templateflow /opt/mmh/bin/python fetch_templates.py ${TEMPLATEFLOW_TEMPLATES} \
    && chmod -R a+rX /opt/templateflow

# --- app -------------------------------------------------------------------------------------------------------------
FROM ${BASE} AS app
COPY --from=deps /opt/mmh /opt/mmh
COPY --from=templates /opt/templateflow /opt/templateflow
COPY --from=made /made /opt/mmh
# mmh_bids.__version__: the build stops where they differ
ARG VERSION=0.1.0
ARG REVISION=unknown
RUN made=$(/opt/mmh/bin/mmh --version) \
    && if [ "${made}" != "mmh ${VERSION}" ]; then echo "ARG VERSION=${VERSION}, but this is ${made}" >&2; exit 1; fi
# Nothing of the caller's environment may enter: Apptainer hands HOME and with it ~/.local through.
ENV PATH=/opt/mmh/bin:${PATH} \
    LANG=C.UTF-8 \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    MMH_CONTAINER_IMAGE=mmh:${VERSION}@${REVISION}
LABEL org.opencontainers.image.title="mmh" \
      org.opencontainers.image.description="BIDS App that harmonizes T1w and T2w brain MR images across scanners" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.authors="The mmh_bids team" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="docs/containers.md in the repository"
ENTRYPOINT ["mmh"]

# --- tests: the image with the tests and their tools; not part of what users get ---------------------------------------
FROM app AS tests
# what the app does otherwise in its image is tested by setting this
ENV MMH_CONTAINER_IMAGE=""
WORKDIR /src
COPY . .
# the base's pip, as above: the environment has none
RUN PATH="${PATH#/opt/mmh/bin:}" python3 -m pip --python /opt/mmh/bin/python install --no-cache-dir -c constraints.txt '.[test]'
ENTRYPOINT ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]

# --- the image -------------------------------------------------------------------------------------------------------
FROM app
