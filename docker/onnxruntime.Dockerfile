# The runtime alone, for the check that every bundle brings along. Not built by the project's tests.
FROM python:3.11-slim

RUN pip install --no-cache-dir numpy onnxruntime && useradd --create-home checker
USER checker
VOLUME /bundle
ENTRYPOINT ["python", "/bundle/check.py"]
