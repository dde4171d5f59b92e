"""The reasons why nodes stay in float, stated in the metadata of a quantized file.

The file alone does not show whether a node was excluded or could not be quantized.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx

EXCLUDED = "it is excluded by name"
METADATA_KEY = "edgeproof.float"


def reasons_metadata(reasons: Mapping[str, str]) -> dict[str, str]:
    """The metadata that states reasons, node -> reason; empty if there are none."""
    return {METADATA_KEY: json.dumps(dict(reasons), sort_keys=True)} if reasons else {}


def stated_reasons(model: onnx.ModelProto) -> dict[str, str]:
    """The stated reasons of a quantized model, node -> reason; empty if it states none or is damaged."""
    stated = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), "{}")
    try:
        found = json.loads(stated)
    except ValueError:
        return {}
    return {str(name): str(reason) for name, reason in found.items()} if isinstance(found, dict) else {}
