# The runtime alone, for the check that every bundle brings along. Not built by the project's tests.
# A tag is moved by its owner: --build-arg BASE=python:3.11-slim@sha256:... pins it (README.md beside this file).
ARG BASE=python:3.11-slim
FROM ${BASE}

COPY device_wheels.txt /tmp/
RUN pip install --no-cache-dir --no-deps --only-binary=:all: --require-hashes --requirement /tmp/device_wheels.txt \
    && useradd --create-home checker
USER checker
VOLUME /bundle
ENTRYPOINT ["python", "/bundle/check.py"]
