"""Libraries that only some uses of this package need, each behind an extra of the distribution.

They are imported when they are asked for: a command that does not need them starts without them.
"""

import importlib
from typing import Any

from limbeck.errors import LimbeckError


def extra(module: str, name: str) -> Any:
    """The module, which is there with the extra `name`. Raises `LimbeckError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LimbeckError(
            f"this needs {module.partition('.')[0]}, which is not installed", hint=f"pip install 'limbeck[{name}]'"
        ) from error
