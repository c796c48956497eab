# Stages:
#   build    the wheel; a virtual environment with it and the packages of requirements.txt, by hash; and, from these, all that
#            runs and nothing else: deploy/image/runtime.py says what
#   runtime  that: no shell, no package manager, no compiler, not root
#
# It writes nothing to its file system and starts no shell, so it runs with `--read-only`, without capabilities and
# under any user id:
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" -t vm-sync .
#   docker run --read-only --cap-drop ALL --env-file vm-sync.env -p 8080:8080 vm-sync
#
# The same sources and the same base give the same layer. For the moment of a release instead of 1970 in it:
#   --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)"

ARG PYTHON=3.13.9-slim-trixie

# ---------------------------------------------------------------- build

FROM python:${PYTHON} AS build

ARG SOURCE_DATE_EPOCH=0
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/vm-sync
WORKDIR /src

# The packages first: they change less often than the code, and stay in the build cache.
COPY requirements.txt ./
RUN pip --python /opt/vm-sync/bin/python install --require-hashes --only-binary :all: -r requirements.txt

COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY service service
RUN pip wheel --no-deps --wheel-dir /dist . \
    && pip --python /opt/vm-sync/bin/python install --no-deps /dist/*.whl

COPY deploy/image/runtime.py ./
RUN python runtime.py /runtime /opt/vm-sync

# ---------------------------------------------------------------- runtime

FROM scratch AS runtime

ARG PYTHON
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vm-sync" \
      org.opencontainers.image.description="Kafka messages to syncs of VM replications at VMware Cloud Director Availability" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:${PYTHON}"

COPY --from=build /runtime /
ENV PATH=/opt/vm-sync/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# A number, so that Kubernetes' runAsNonRoot can check it.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM

# A check in Python, since there is no curl: any answer but 200 raises, and so fails.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"VM_SYNC_OPS__PORT\", \"8080\")}/livez', timeout=4)"]

ENTRYPOINT ["vm-sync"]
CMD ["run"]
