# An appliance for a machine with NVIDIA GPUs:
#   docker build -t appliance .
#   docker run -d --gpus all --shm-size 8g --stop-timeout 45 -p 127.0.0.1:8000:8000 \
#     -v appliance:/home/appliance/.cache appliance up --no-auth MODEL
# The volume keeps models and compiled kernels. Port 8000 is published to this machine only, so no key is asked for;
# to serve others, mount a file made by `appliance key add NAME --file keys.json` and set APPLIANCE_SERVE_KEYS_FILE.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# FlashInfer and Triton compile the kernels of a shape when it is first served: nvcc and a C++ compiler.
# The CUDA packages carry their version in their names; the others are the distribution's for this tag.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        cuda-cudart-dev-13-0 \
        cuda-driver-dev-13-0 \
        cuda-nvcc-13-0 \
        g++ \
        libcurand-dev-13-0 \
        python3-dev \
        python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 appliance \
    && install --directory --owner=appliance --group=appliance /home/appliance/.cache

WORKDIR /usr/local/src/appliance
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY profiles profiles
COPY appliance appliance
RUN python3 -m venv /usr/local/lib/appliance \
    && /usr/local/lib/appliance/bin/pip install --no-cache-dir -c constraints.txt ".[gpu,modelscope]"

ENV PATH=/usr/local/lib/appliance/bin:$PATH \
    CUDA_HOME=/usr/local/cuda \
    TRITON_CACHE_DIR=/home/appliance/.cache/triton \
    APPLIANCE_HOST=0.0.0.0

USER 10001:10001
WORKDIR /home/appliance
VOLUME ["/home/appliance/.cache"]
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["appliance", "status", "--quiet"]

ENTRYPOINT ["appliance"]
CMD ["up"]
