"""How golden data is written down."""

import json
from pathlib import Path

import torch
import transformers


def versions() -> dict[str, str]:
    """What computed the numbers."""
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}


def write_json(path: Path, value: dict) -> None:
    """A field a line, and an item a line in lists of objects."""
    fields = []
    for key, field in value.items():
        if isinstance(field, list) and field and isinstance(field[0], dict):
            text = "[\n  " + ",\n  ".join(json.dumps(item) for item in field) + "\n ]"
        else:
            text = json.dumps(field)
        fields.append(f" {json.dumps(key)}: {text}")
    path.write_text("{\n" + ",\n".join(fields) + "\n}\n")
