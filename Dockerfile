# An appliance for a machine with NVIDIA GPUs:
#   docker build -t appliance .
#   docker run -d --gpus all --shm-size 8g --stop-timeout 45 -p 127.0.0.1:8000:8000 \
#     -v appliance:/home/appliance appliance up --no-auth MODEL
# and for one without:
#   docker build --build-arg FOR=cpu -t appliance:cpu .
#   docker run -d --stop-timeout 45 -p 127.0.0.1:8000:8000 -v appliance:/home/appliance appliance:cpu up --no-auth
# The volume keeps models, compiled kernels, settings and keys. Port 8000 is published to this machine only, so no key
# is asked for; to serve others make keys: docker run --rm -v appliance:/home/appliance appliance key add NAME

# Any Debian or Ubuntu with Python 3.11 or newer: CUDA comes with the Python packages, in torch's version.
# nvidia/cuda:13.0.1-base-ubuntu24.04 adds what lets GPUs of a datacenter use a driver older than 580.
ARG BASE=ubuntu:24.04
ARG FOR=gpu

# hadolint ignore=DL3006
FROM ${BASE} AS ground
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Packages are the distribution's for the tag.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 appliance \
    && python3 -m venv /usr/local/lib/appliance
ENV PATH=/usr/local/lib/appliance/bin:$PATH \
    APPLIANCE_HOST=0.0.0.0
WORKDIR /usr/local/src/appliance
COPY constraints.txt pyproject.toml ./
# What the appliance needs, by extra: a layer that stays the same when only the appliance has changed.
RUN for extra in gpu modelscope; do \
        python -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
            print(*p["dependencies"], *p["optional-dependencies"][sys.argv[1]], sep="\n")' "$extra" \
            >"/tmp/$extra.txt"; \
    done

FROM ground AS cpu
# torch without CUDA is a tenth of its size; Triton, which a library asks for, compiles for GPUs alone: a gigabyte.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" torch \
    && pip install --no-cache-dir -c constraints.txt -r /tmp/modelscope.txt \
    && pip uninstall --yes triton

FROM ground AS gpu
# FlashInfer and Triton compile the kernels of a shape when it is first served: nvcc and a C++ compiler.
ENV CUDA_HOME=/usr/local/lib/appliance/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/home/appliance/.cache/triton
ENV PATH=$CUDA_HOME/bin:$PATH
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*
# These packages have lib/ with numbered names; FlashInfer links by lib64/, plain names and a stub of the driver's
# library (flashinfer-ai/flashinfer#5064).
RUN pip install --no-cache-dir -c constraints.txt -r /tmp/gpu.txt -r /tmp/modelscope.txt \
        "cuda-toolkit[cccl,crt,cublas,cudart,curand,nvcc,nvrtc,nvvm]==13.0.*" \
    && ln -s "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13" "$CUDA_HOME" \
    && mkdir "$CUDA_HOME/lib/stubs" \
    && ln -s lib "$CUDA_HOME/lib64" \
    && ln -s libcudart.so.13 "$CUDA_HOME/lib/libcudart.so" \
    && gcc -shared -Wl,-soname,libcuda.so.1 -o "$CUDA_HOME/lib/stubs/libcuda.so" -x c /dev/null \
    && echo "$CUDA_HOME/lib" >/etc/ld.so.conf.d/cuda.conf \
    && ldconfig

# hadolint ignore=DL3006
FROM ${FOR}
WORKDIR /usr/local/src/appliance
COPY README.md LICENSE ./
COPY profiles profiles
COPY appliance appliance
RUN pip install --no-cache-dir --no-deps .

USER 10001:10001
WORKDIR /home/appliance
VOLUME ["/home/appliance"]
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["appliance", "status", "--quiet"]

ENTRYPOINT ["appliance"]
CMD ["up"]
