# DP2O-SR on NVIDIA GPUs: docs/docker.md. PyTorch's wheels bring their own CUDA 13, so the small base image will do.
#     docker build -t dp2osr .
#     docker run --rm dp2osr                                   # lists the programs
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Ubuntu keeps no older versions of its packages that could be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dp2osr

# The exact tested set, as scripts/environment.sh installs it: pyiqa and facexlib without their own lists of dependencies.
COPY requirements.txt constraints.txt ./
RUN python3.12 -m venv .venv \
    && grep -Ev '^(pyiqa|facexlib)[^a-z]' requirements.txt >/tmp/with.txt \
    && grep -E '^(pyiqa|facexlib)[^a-z]' requirements.txt >/tmp/without.txt \
    && .venv/bin/pip install --no-cache-dir -c constraints.txt -r /tmp/with.txt \
    && .venv/bin/pip install --no-cache-dir -c constraints.txt --no-deps -r /tmp/without.txt \
    && rm /tmp/with.txt /tmp/without.txt

# What .dockerignore lets through; the code stays root's, and the user writes into runs/ and /cache alone.
COPY . .
RUN .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && groupadd --gid 10001 dp2osr \
    && useradd --create-home --uid 10001 --gid 10001 dp2osr \
    && mkdir -p runs /cache \
    && chown dp2osr:dp2osr runs /cache

# Caches of the hub, of metrics' weights and of hashes go to /cache, also for another --user. The linter takes TOKENIZERS for a secret.
# hadolint ignore=DL3064
ENV PATH=/opt/dp2osr/.venv/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    XDG_CONFIG_HOME=/cache/config \
    TRITON_CACHE_DIR=/cache/triton \
    LOGNAME=dp2osr \
    TOKENIZERS_PARALLELISM=false \
    PYTHONUNBUFFERED=1

USER 10001:10001
ENTRYPOINT ["/opt/dp2osr/scripts/docker_entry.sh"]
