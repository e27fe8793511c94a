"""Actiscope's backend: look into neural networks, change them, look again. Knows no Streamlit."""

import os

# Idle OpenMP threads that spin steal the cores from the other visitors' threads; torch reads this once, at its import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


class Unsuitable(ValueError):
    """Input that can't be served, with one sentence for the person who gave it that says what to do."""


class Missing(Unsuitable):
    """Something that a link refers to and that is not here (an upload, a local model)."""


__version__ = "0.1.0"
__all__ = ["Missing", "Unsuitable", "__version__"]
