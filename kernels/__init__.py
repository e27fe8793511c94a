"""Fast arithmetic, each with its plain reference beside it; no knowledge of models or methods."""
