"""Reads what W&B wrote offline: records in LevelDB's log format behind a header of seven bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEAD, _FILE_HEAD = 32768, 7, 7


@dataclass
class OfflineRun:
    """What a run told W&B."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    alerts: list[Any] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)

    def names(self) -> set[str]:
        """Of the history and the summary."""
        return {key for row in self.history for key in row} | set(self.summary)


def records(path: Path):
    raw, place, parts = path.read_bytes(), _FILE_HEAD, []
    while place + _HEAD <= len(raw):
        left = _BLOCK - place % _BLOCK
        if left < _HEAD:
            place += left
            continue
        size, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        parts.append(raw[place + _HEAD : place + _HEAD + size])
        place += _HEAD + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def read(folder: Path) -> OfflineRun:
    """The run whose folder this is."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = OfflineRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
        elif kind == "config":
            for one in record.config.update:
                found.config[one.key or "/".join(one.nested_key)] = json.loads(one.value_json)
        elif kind == "history":
            found.history.append(
                {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            )
        elif kind == "summary":
            found.summary |= {
                one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.summary.update
            }
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "alert":
            found.alerts.append(record.alert)
        elif kind == "metric":
            found.metrics.append(record.metric)
    return found
