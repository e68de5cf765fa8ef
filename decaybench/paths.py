"""The user's cache folder."""

import os
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """Returns the user's cache folder of decaybench, or a temporary one for a user without a home."""
    try:
        return Path.home() / ".cache" / "decaybench"
    except RuntimeError:
        number = os.getuid() if hasattr(os, "getuid") else "user"
        return Path(tempfile.gettempdir()) / f"decaybench-{number}"
