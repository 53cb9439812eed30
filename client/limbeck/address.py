"""Where the service is and with which key: what the caller says, else the environment, else the data folder.

`limbeck up` leaves two files in its data folder: `admin.key`, and `url` with the address that it listens on.
"""

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_FILE = "admin.key"
URL_FILE = "url"


@dataclass(frozen=True)
class Address:
    url: str
    key: str | None


def data_dir(given: Path | None = None) -> Path:
    """The data folder, absolute: `given`, else `LIMBECK_DATA_DIR`, else `limbeck-data` in the working directory."""
    return (given or Path(os.environ.get("LIMBECK_DATA_DIR") or "limbeck-data")).absolute()


def find(url: str | None = None, key: str | None = None) -> Address:
    folder = data_dir()
    found = (url or os.environ.get("LIMBECK_URL") or _read(folder / URL_FILE) or DEFAULT_URL).rstrip("/")
    secret = key or os.environ.get("LIMBECK_API_KEY")
    # The folder's key opens the service of this machine. It is never sent to another one.
    if not secret and is_loopback(urlsplit(found).hostname or ""):
        secret = _read(folder / KEY_FILE)
    return Address(found, secret or None)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None
