"""Settings of every test: one thread per forward (tiny networks only lose by more), offline, and a store of its own."""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ACTISCOPE_STORE"] = tempfile.mkdtemp(prefix="actiscope-test-")
