# Everything in requirements.lock and the code; data, runs and notebooks are folders of the host (see compose.yaml).
FROM python:3.12-slim

# EXTRA="tensorflow[and-cuda]" adds NVIDIA's libraries; the driver is the host's.
ARG EXTRA=""

WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
RUN test -z "$EXTRA" || pip install --no-cache-dir $EXTRA
COPY pyproject.toml README.md LICENSE ./
COPY transfer_learning ./transfer_learning
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

# Downloads stay in the data folder of the host, and any user may run this.
ENV HOME=/app/data/home KERAS_HOME=/app/data/keras KAGGLEHUB_CACHE=/app/data/kagglehub HF_HOME=/app/data/huggingface
RUN mkdir -p data runs notebooks && chmod 777 /app data runs notebooks

ENTRYPOINT ["python", "-m"]
CMD ["transfer_learning", "--help"]
