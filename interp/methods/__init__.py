"""All methods, found by walking this package: one file each, named like its function."""

import importlib
import pkgutil

from interp.method import Method

METHODS: dict[str, Method] = {}
for _module in pkgutil.walk_packages(__path__, __name__ + "."):
    _key = _module.name.rpartition(".")[2]
    if not _module.ispkg and not _key.startswith("_"):
        METHODS[_key] = getattr(importlib.import_module(_module.name), _key)
