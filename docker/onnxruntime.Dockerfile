# The runtime alone, for the check that every bundle brings along. Not built by the project's tests.
FROM python:3.11-slim

COPY device_wheels.txt /tmp/
RUN pip install --no-cache-dir --no-deps --only-binary=:all: --require-hashes --requirement /tmp/device_wheels.txt \
    && useradd --create-home checker
USER checker
VOLUME /bundle
ENTRYPOINT ["python", "/bundle/check.py"]
