"""The version of edgeproof."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def tool_version() -> str:
    """Return the version of the installed package; "unknown" if edgeproof is not installed."""
    try:
        return version("edgeproof")
    except PackageNotFoundError:
        return "unknown"
