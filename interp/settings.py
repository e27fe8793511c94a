"""Every limit in one place: read from the environment, with a profile for a laptop and one for a server of strangers.

python -m interp.settings      writes the table of them into README.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
MB, GB = 2**20, 2**30
CORES = os.cpu_count() or 2


def _setting(help: str, laptop: Any, hosted: Any = None) -> Any:
    """A field with its help and its value in both profiles; the same in both where only one is given."""
    return field(metadata={"help": help, "laptop": laptop, "hosted": laptop if hosted is None else hosted})


@dataclass(frozen=True)
class Settings:
    """What may be used, by whom, for how long. Field `seconds` is $ACTISCOPE_SECONDS, and so on; 0 is "no limit".

    HOSTED=1 (or ACTISCOPE_HOSTED=1) takes the values for a server that strangers use; each can be set on top of it.
    """

    hosted: bool
    store: str = _setting("folder of everything that is kept; `.actiscope` in the home directory if empty", "")
    shared: str = _setting(
        "where shared links, their photos and numbers are kept: a folder, or s3://bucket/prefix; in the store if empty",
        "",
    )
    shared_bytes: int = _setting("bytes that shared links may take; the oldest are dropped first", 20 * GB, 2 * GB)
    shared_days: float = _setting("days after which a shared link that nobody opens is dropped", 0.0, 180.0)
    shared_each: int = _setting("bytes of one shared link with its photos and numbers", 64 * MB, 8 * MB)
    local_bytes: int = _setting(
        "bytes that fits (directions, operators, indexes) may take in the store", 50 * GB, 5 * GB
    )
    models: int = _setting("models in memory", 4)
    model_bytes: int = _setting("weights of one model, before it is downloaded or read", 4 * GB, GB)
    sae_bytes: int = _setting("weights of one SAE, before it is downloaded or read", 2 * GB, GB // 2)
    hub_bytes: int = _setting("disk for what is downloaded from the hub; the longest unused go first", 50 * GB, 10 * GB)
    hub: str = _setting(
        "what may be downloaded from the hub: `*` for all, or owner/name@revision ids separated by commas", "*", ""
    )
    fits: bool = _setting("whether visitors may train SAEs and build indexes", True, False)
    seconds: float = _setting("longest run of one experiment", 600.0, 120.0)
    heavy: int = _setting("long experiments that run at once", max(1, CORES // 2), max(1, CORES // 2))
    waiting: int = _setting("long experiments that may wait for their turn", 200, 40)
    visitor_waiting: int = _setting("of these, one visitor's", 50, 4)
    visitor_seconds: float = _setting("seconds of computing that one visitor gets in an hour", 0.0, 600.0)
    visitors: int = _setting("open sessions", 0, 200)
    address_visitors: int = _setting("open sessions from one address", 0, 30)
    address_rate: float = _setting("requests and messages from one address in a second, over a minute", 0.0, 20.0)
    proxies: int = _setting("proxies in front whose X-Forwarded-For is believed", 0, 0)
    memory: int = _setting("bytes this process may take; what the machine or container has if 0", 0)
    result_bytes: int = _setting("bytes of results kept in memory", GB, GB // 4)
    upload_bytes: int = _setting("bytes of an uploaded file", 20 * MB, 10 * MB)
    held_bytes: int = _setting("bytes of all uploaded files while their pages are open", 0, GB // 2)
    pixels: int = _setting("pixels of an image, from its header", 50_000_000, 25_000_000)
    characters: int = _setting("characters of a prompt", 10_000, 4_000)
    frames: str = _setting(
        "which sites may show this one in a frame: `*`, `none`, or addresses separated by spaces", "*"
    )
    metrics_token: str = _setting("whoever sends it as a bearer token may read /metrics from anywhere", "")
    drain: float = _setting("seconds that running work gets after SIGTERM, while nobody new is let in", 0.0, 8.0)
    logs: str = _setting("how the log is written: text or json", "text", "json")


def read(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment.

    Raises:
        ValueError: a value that can't be read; the text names the variable and what it takes.
    """
    said = environment.get("ACTISCOPE_HOSTED") or environment.get("HOSTED") or ""
    hosted = _read("HOSTED", said, False) if said else False
    values: dict[str, Any] = {"hosted": hosted}
    for each in fields(Settings):
        if each.metadata:
            default = each.metadata["hosted" if hosted else "laptop"]
            text = environment.get(name := f"ACTISCOPE_{each.name.upper()}", "").strip()
            values[each.name] = _read(name, text, default) if text else default
    return Settings(**values)


def _read(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            return text.lower() in ("1", "true", "yes", "on")
        raise ValueError(f"{name} is 0 or 1, not {text!r}.")
    if isinstance(default, str):
        return text
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(KB|MB|GB|)", text, re.IGNORECASE)
    if not found:
        raise ValueError(f"{name} is a number (512, 0.5, or 2GB for bytes), not {text!r}.")
    number = float(found[1]) * {"": 1, "KB": 2**10, "MB": MB, "GB": GB}[found[2].upper()]
    return number if isinstance(default, float) else int(number)


def table() -> str:
    """The settings as a table in Markdown."""

    def shown(name: str, value: Any) -> str:
        if isinstance(value, bool):
            return "1" if value else "0"
        if isinstance(value, str):
            return f"`{value}`" if value else "-"
        if name.endswith("bytes") or name in ("memory", "shared_each"):
            return f"{value / GB:g} GB" if value >= GB // 2 else f"{value / MB:g} MB" if value else "0"
        return "cores / 2" if name == "heavy" else f"{value:,}" if isinstance(value, int) else f"{value:,g}"

    rows = ["| variable | | laptop | HOSTED=1 |", "|---|---|---|---|"]
    for each in fields(Settings):
        if each.metadata:
            both = [shown(each.name, each.metadata[profile]) for profile in ("laptop", "hosted")]
            rows.append(f"| `ACTISCOPE_{each.name.upper()}` | {each.metadata['help']} | {both[0]} | {both[1]} |")
    return "\n".join(rows)


def written(text: str) -> str:
    """`text` with the table between its markers."""
    marked = r"(<!-- settings -->\n).*?(<!-- /settings -->)"
    return re.sub(marked, lambda match: f"{match[1]}{table()}\n{match[2]}", text, flags=re.DOTALL)


SETTINGS = read(os.environ)
"""Those of this process. Read as `settings.SETTINGS.seconds` where it is used, so that a test can put others in."""

if __name__ == "__main__":
    README.write_text(written(README.read_text()))
