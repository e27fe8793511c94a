# docker build -t actiscope .                                         for NVIDIA GPUs (CUDA)
# docker build -t actiscope --build-arg TORCH_INDEX=ADDRESS .         for the CPU alone, several GB smaller: ADDRESS is
#                                                                     that of PyTorch's CPU wheels, named at pytorch.org
# docker run --read-only --tmpfs /tmp -p 8501:8501 -v actiscope:/data actiscope
FROM python:3.11-slim

ARG TORCH_INDEX=""

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MALLOC_ARENA_MAX=2 \
    OMP_WAIT_POLICY=passive \
    HOSTED=1 \
    DATA=/data \
    PORT=8501

WORKDIR /app
COPY requirements.txt .
# Torch first, and from there: what is installed already is not taken from elsewhere afterwards. Its version is pinned in
# requirements.txt.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' requirements.txt)" \
 && pip install --no-cache-dir -r requirements.txt

RUN useradd --create-home --uid 1000 actiscope \
 && install --directory --owner=actiscope --group=actiscope /data
COPY . .

USER 1000
VOLUME /data
EXPOSE 8501
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/healthz\", timeout=4)"]
ENTRYPOINT ["/app/deploy/entrypoint.sh"]
