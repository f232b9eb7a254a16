# Two images: `producer` (no torch) and `worker`.
FROM python:3.12-slim AS producer
WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY ramole_core ramole_core
COPY producer producer
COPY worker worker
RUN pip install --no-cache-dir -c constraints.txt . \
    && useradd --create-home ramole && mkdir /data && chown ramole /data
USER ramole
WORKDIR /data
ENTRYPOINT ["ramole"]

FROM producer AS worker
USER root
WORKDIR /app
# A further wheel index, when another build of torch (CPU only, another CUDA) is wanted.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir -c constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[worker]'
USER ramole
WORKDIR /data
ENTRYPOINT []
CMD ["python", "-m", "worker"]
