# The server without a model: SCORER_MODEL names one that is mounted, or added by an image built on this one.
#
#     docker build -t xgboost-server .
#     docker run --rm -p 8000:8000 -v "$PWD/examples/iris/model.ubj:/model.ubj:ro" -e SCORER_MODEL=/model.ubj xgboost-server
#
# No build mounts, no here-documents: BuildKit is not needed, Buildah 1.28 (Debian 12) builds it too. The result runs under
# any user id, without HOME, on a read-only root with a writable /tmp.

ARG BASE_IMAGE=python:3.13-slim

# The official slim images carry the standard library without bytecode (docker-library/python#615), and a read-only root can
# never keep any: each start and each health check would compile it again (0.45 s of CPU to import the server, 0.21 s with
# it, for 12 MB). Unchecked: nobody edits a source file in an image, and builders round or rewrite the files' times.
FROM ${BASE_IMAGE} AS python
ENV PYTHONDONTWRITEBYTECODE=1
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/(ensurepip|idlelib|lib2to3|pydoc_data|test|tests|tkinter|turtledemo|site-packages|dist-packages)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

# pip and setuptools stay here, in an environment of their own; what is shipped has neither. Wheels only: there is no
# compiler, and xgboost's wheels bring their own libgomp (xgboost_cpu.libs), so nothing is needed from Debian either.
FROM python AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# For a build behind an index or an authority of one's own; the hashes hold wherever the wheels come from.
ARG PIP_INDEX_URL
ARG PIP_CERT
ARG PIP_DEFAULT_TIMEOUT
WORKDIR /src
COPY requirements/build.txt requirements/server.txt requirements/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install -q --require-hashes --only-binary :all: -r requirements/build.txt \
    && python3 -m venv --without-pip /opt/venv \
    && /opt/build/bin/pip --python /opt/venv/bin/python install -q --require-hashes --only-binary :all: --no-compile \
        -r requirements/server.txt \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/tests/' /opt/venv/lib

# The project is a layer of its own, a few hundred kilobytes: nodes that have the dependencies pull only this one.
FROM dependencies AS project
COPY LICENSE README.md pyproject.toml gunicorn.conf.py ./
COPY service service
RUN /opt/build/bin/pip wheel -q --no-deps --no-build-isolation --wheel-dir /tmp/wheels . \
    && /opt/build/bin/pip --python /opt/venv/bin/python install -q --no-index --no-deps --no-compile \
        --no-warn-script-location --root /opt/project /tmp/wheels/*.whl \
    && install -D -m 0644 gunicorn.conf.py /opt/project/app/gunicorn.conf.py \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /opt/project -p / /opt/project/opt/venv/lib

FROM python AS server
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=project /opt/project /

ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    SCORER_HOST=0.0.0.0
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Alive, not ready: an engine that restarts unhealthy containers must not do so while a model is still loading.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-S", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('SCORER_PORT') or 8000), timeout=2); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["xgboost-server"]
CMD ["serve"]

ARG BASE_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="xgboost-server" \
      org.opencontainers.image.description="Hand it an XGBoost model file and it becomes a scoring endpoint that other teams can depend on." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
