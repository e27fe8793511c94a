#!/bin/sh
# Starts the server. Everything it writes goes below $DATA (/data) and /tmp; the rest may be read-only.
set -eu
: "${DATA:=/data}" "${PORT:=8501}"
export DATA PORT

if ! mkdir -p "$DATA/home" 2>/dev/null || ! [ -w "$DATA/home" ]; then
  echo "$DATA can't be written by user $(id -u): mount a volume there that it may write, or set DATA to another folder." >&2
  exit 1
fi
export HOME="$DATA/home"
export HF_HOME="${HF_HOME:-$DATA/hf}"
export ACTISCOPE_STORE="${ACTISCOPE_STORE:-$DATA/store}"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-/tmp/cache}" MPLCONFIGDIR="${MPLCONFIGDIR:-/tmp/matplotlib}"
export HF_HUB_DISABLE_TELEMETRY=1 WANDB_MODE="${WANDB_MODE:-disabled}"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" MALLOC_ARENA_MAX="${MALLOC_ARENA_MAX:-2}"
export STREAMLIT_SERVER_HEADLESS=true STREAMLIT_LOGGER_HIDE_WELCOME_MESSAGE=true STREAMLIT_LOGGER_ENABLE_RICH=false

cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m streamlit run app.py --server.address="${ADDRESS:-0.0.0.0}" --server.port="$PORT" "$@"
