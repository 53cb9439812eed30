# Two images from one file: `--target app` answers (no torch), `--target worker` trains.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 LIMBECK_DATA_DIR=/data
WORKDIR /srv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client
COPY models models
COPY app app
COPY worker worker
RUN useradd --system --uid 10001 --create-home limbeck && mkdir /data && chown limbeck /data
VOLUME /data

FROM base AS app
RUN pip install --constraint constraints.txt ./client '.[postgres,s3]'
USER limbeck
# The installed packages are used, never the sources in this folder.
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["python", "-P", "-m", "app.main", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
RUN pip install --constraint constraints.txt torch==2.13.0 \
 && pip install --constraint constraints.txt ./client '.[worker,postgres,s3]'
USER limbeck
WORKDIR /data
STOPSIGNAL SIGTERM
CMD ["python", "-P", "-m", "worker.main"]
