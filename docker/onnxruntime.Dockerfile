# The runtime alone, with the check of a bundle. Not built by the project's tests.
FROM python:3.11-slim

RUN pip install --no-cache-dir numpy onnxruntime && useradd --create-home checker
COPY check_bundle.py /check_bundle.py
USER checker
VOLUME /bundle
ENTRYPOINT ["python", "/check_bundle.py", "/bundle"]
