"""What a host keeps between jobs: fine-tuned teachers, their exports, control arms. Folders by content, never by job.

A folder's name is a hash of everything that decided what is in it, so that an equal question finds it and an unequal
one cannot. A folder appears whole or not at all. When the folders outgrow their budget, those used least recently go
first. The signals of teachers have a cache of their own, by row: `worker.signals`.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAME = re.compile("[0-9a-f]{64}")


class HostCache:
    """Folders below `root`; several jobs may use one cache at once. `budget` is in bytes."""

    def __init__(self, root: Path, budget: int) -> None:
        self._root = root
        self._budget = budget
        self._in_use: set[Path] = set()

    def folder(self, kind: str, *parts: Any) -> Path:
        """Where the thing of this kind that `parts` decide lies, or would lie. It now counts as used."""
        document = json.dumps([kind, *parts], sort_keys=True, default=str)
        folder = self._root / kind / hashlib.sha256(document.encode()).hexdigest()
        self._in_use.add(folder)
        if folder.exists():
            os.utime(folder)
        return folder

    @contextmanager
    def new(self, folder: Path) -> Iterator[Path]:
        """A folder to fill, which then stands as `folder`; if another job was faster, its folder stays."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        try:
            yield partial
            try:
                partial.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._evict()

    def _evict(self) -> None:
        """Remove the folders used least recently until the rest fits; never one that this job uses."""
        folders = [path for path in self._root.glob("*/*") if _NAME.fullmatch(path.name) and path.is_dir()]
        found = sorted((path.stat().st_mtime_ns, path) for path in folders)
        sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for _, path in found}
        total = sum(sizes.values())
        for _, path in found:
            if total <= self._budget:
                return
            if path in self._in_use:
                continue
            # First out of sight, so that nobody opens half of it.
            doomed = path.with_name(f".doomed-{path.name}")
            try:
                path.rename(doomed)
            except OSError:
                continue
            shutil.rmtree(doomed, ignore_errors=True)
            total -= sizes[path]
