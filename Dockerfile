# oneflow_dist and all that it needs to train; docs/containers.md says how to build and run it.
# The base has Python, a C compiler, which Triton and torch.compile call while a model trains, and make.
ARG BASE=docker.io/library/python:3.11-bookworm@sha256:b99029c95d3d37fb1e4e76d287f7984373dca77c665885986e31b2c95260c13c
# hadolint ignore=DL3006
FROM ${BASE}

WORKDIR /oneflow_dist
# From another index comes another torch: PyPI's is for CUDA 13, that of https://download.pytorch.org/whl/cpu for CPUs.
ARG PIP_EXTRA_INDEX_URL=
# Where it is set, a .pyc holds the hash of its source, not the time of it: two builds are the same, bit for bit.
ARG SOURCE_DATE_EPOCH=0

# What pyproject.toml asks for, without the tools for tests: pip refuses what is not in the lock with its hash.
COPY --chmod=0755 pyproject.toml requirements.lock ./
# Downloads stay with the builder, whoever builds, and are in no layer.
ARG PIP_CACHE_DIR=/var/cache/pip
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m venv .venv \
    && grep '^pip==' requirements.lock >.venv/pip.lock \
    && .venv/bin/python -m pip install --no-deps --require-hashes -r .venv/pip.lock \
    && .venv/bin/python -c 'import tomllib; \
table = tomllib.load(open("pyproject.toml", "rb")); \
project = table["project"]; \
extras = project["optional-dependencies"]; \
names = ("evaluate", "experiments", "latents", "remote", "serve", "track"); \
chosen = [package for name in names for package in extras[name]]; \
print(*table["build-system"]["requires"], *project["dependencies"], *chosen, sep="\n")' \
        >.venv/requirements.txt \
    && .venv/bin/python -m pip install --require-hashes -c requirements.lock -r .venv/requirements.txt

# One mode for all, whatever umask they were checked out with. Anyone may write data and runs: USER can be overridden.
COPY --chmod=0755 . ./
RUN .venv/bin/python -m pip install --no-index --no-deps --no-build-isolation -e . \
    && .venv/bin/python -m pip check \
    && .venv/bin/python -m compileall -q kernels launch oneflow_dist tools \
    && touch .venv/installed \
    && install -d -m 1777 data runs

# A user without an account has no name and no home, and libraries ask for both.
ENV PATH=/oneflow_dist/.venv/bin:$PATH \
    HOME=/tmp \
    USER=oneflow \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

ARG SOURCE=
ARG REVISION=
# What launch/attempt.py writes down of a run, where there is no git to ask.
ENV ONEFLOW_COMMIT=${REVISION}
LABEL org.opencontainers.image.title="oneflow_dist" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
HEALTHCHECK --interval=60s --timeout=10s --start-period=30m CMD ["/oneflow_dist/launch/container.sh", "health"]
ENTRYPOINT ["/oneflow_dist/launch/container.sh"]
