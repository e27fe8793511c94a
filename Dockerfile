# docker build -t actiscope . && docker run -p 8501:8501 -v actiscope:/data actiscope
FROM python:3.11-slim

# Where torch is taken from. The default index has the build for NVIDIA GPUs, several GB larger;
# to get the CPU build, give the address of PyTorch's CPU wheels: --build-arg TORCH_INDEX=...
ARG TORCH_INDEX=""

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MALLOC_ARENA_MAX=2 \
    OMP_WAIT_POLICY=passive \
    HF_HOME=/data/hf \
    ACTISCOPE_STORE=/data/store \
    STREAMLIT_SERVER_HEADLESS=true \
    PORT=8501

WORKDIR /app
COPY requirements.txt .
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep ^torch== requirements.txt)" \
 && pip install -r requirements.txt

RUN useradd --create-home --uid 1000 actiscope \
 && install --directory --owner=actiscope --group=actiscope /data
COPY . .

USER actiscope
VOLUME /data
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/_stcore/health\", timeout=4)"]
CMD ["sh", "-c", "exec python -m streamlit run app.py --server.address=0.0.0.0 --server.port=${PORT:-8501}"]
