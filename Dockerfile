# The tested set of packages and the code, for Kubernetes (cluster/kubernetes.yaml), for the nodes of
# `ray up cluster.yaml`, and for one machine, where the user with id 1000 must be able to write:
#
#   docker build -t beamclip .
#   docker run --rm --gpus all --shm-size=16g -v "$PWD:/mnt" -w /mnt \
#       -e MLFLOW_TRACKING_URI=sqlite:////mnt/runs/mlflow.db beamclip beamclip distill --use-gpu ...
#
# torch as published for Linux brings CUDA's libraries, so the host needs only NVIDIA's driver and container
# toolkit. For CPUs alone, name the index where PyTorch publishes such builds; the image is over 4 GB smaller:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=INDEX -t beamclip:cpu .
#
# The code lies in ~/beamclip and the environment in ~/beamclip-env, as cluster/setup.sh has them. Code that a
# node is sent later therefore replaces that of the image, and nothing is installed a second time.

# The version that the tests run on.
FROM python:3.11-slim-bookworm

# wget: KubeRay's probes. rsync and ssh: `ray up` sends files into containers, and the head starts workers.
# Compilers: `--compile` has kernels built where it runs.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

# User id 1000 is also that of `ubuntu` on the machines of cluster.yaml, whose files are mounted here.
# A login shell sets PATH anew; KubeRay and `ray up` start some.
RUN useradd --uid 1000 --create-home --shell /bin/bash ubuntu \
    && install -d -o ubuntu -g ubuntu /home/ubuntu/beamclip \
    && echo 'export PATH=/home/ubuntu/beamclip-env/bin:$PATH' > /etc/profile.d/beamclip.sh

USER ubuntu
WORKDIR /home/ubuntu/beamclip
ENV PATH=/home/ubuntu/beamclip-env/bin:/usr/local/bin:/usr/bin:/bin

# Packages come before the code: only a change of these two files, or of the version, installs them again.
COPY --chown=1000:1000 pyproject.toml constraints.txt ./
COPY --chown=1000:1000 beamclip/__init__.py beamclip/
ARG PIP_EXTRA_INDEX_URL=
RUN python3 -m venv /home/ubuntu/beamclip-env \
    && pip install --no-cache-dir --progress-bar off -c constraints.txt -e '.[aws,export,ingest,optuna,transformers,wordnet]'
# By this cluster/setup.sh knows that nothing is left to install.
RUN cat constraints.txt pyproject.toml | sha256sum | cut -d' ' -f1 \
        > /home/ubuntu/beamclip-env/.beamclip-installed

COPY --chown=1000:1000 beamclip beamclip
COPY --chown=1000:1000 pipelines pipelines
COPY --chown=1000:1000 tune tune

# No node of Ray starts without the cluster's token, with which alone its ports answer.
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# The parts of a GPU's driver that are for computing, and the folder where GKE puts them.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility LD_LIBRARY_PATH=/usr/local/nvidia/lib64

# No entry point: KubeRay and `ray up` start a shell of their own.
CMD ["beamclip", "--help"]
