# docker build -t actiscope .                               for the CPU
# docker build -t actiscope --build-arg VARIANT=cuda .      for NVIDIA GPUs, several GB larger
# docker run --read-only --tmpfs /tmp -p 8501:8501 -v actiscope:/data actiscope
FROM python:3.11-slim

ARG VARIANT=cpu

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
# PyPI has the build of torch for NVIDIA GPUs; the one for the CPU alone comes from PyTorch.
RUN case "$VARIANT" in \
      cpu) index=https://download.pytorch.org/whl/cpu ;; \
      cuda) index=https://pypi.org/simple ;; \
      *) echo "VARIANT is cpu or cuda, not $VARIANT" >&2; exit 1 ;; \
    esac \
 && pip install --no-cache-dir --index-url "$index" "$(grep '^torch==' requirements.txt)" \
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
