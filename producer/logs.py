"""The log lines of one job, out of the logs of all workers of a data folder."""

import json
from collections.abc import Iterator
from pathlib import Path

from ramole_core.errors import NotFoundError


def job_lines(folder: Path, job_id: str) -> list[str]:
    """The JSON lines whose `job` is `job_id`, by time; lines that are not JSON are left out.

    Raises NotFoundError when there is none.
    """
    if not folder.is_dir():
        raise NotFoundError(f"no logs in {folder}; in served mode they are where the workers run")
    found = [
        (str(record.get("time", "")), line)
        for path in sorted(folder.glob("*.log*"))
        for line, record in _records(path, job_id)
        if record.get("job") == job_id
    ]
    if not found:
        raise NotFoundError(f"no log line about job {job_id} in {folder}")
    return [line for _, line in sorted(found, key=lambda pair: pair[0])]


def _records(path: Path, job_id: str) -> Iterator[tuple[str, dict[str, object]]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if job_id not in line:
                continue
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield line.rstrip(), record
