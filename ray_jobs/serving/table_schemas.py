"""JSON schemas of the tables that requests bring."""

from __future__ import annotations

from typing import Any

from ray_jobs.serving.tables import Columns


def csv_schema(columns: Columns) -> dict[str, Any]:
    return {
        "type": "string",
        "description": f"Rows of {len(columns.names)} numbers, with a header or in this order: "
        f"{', '.join(columns.names)}",
    }


def json_schema(columns: Columns, cell: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of a body in any of the shapes of `read_json`."""
    width, required = len(columns.names), [] if columns.may_be_missing else list(columns.names)
    listed = {"type": "array", "items": cell, "minItems": width, "maxItems": width}
    record = {
        "type": "object",
        "properties": dict.fromkeys(columns.names, cell),
        "required": required,
        "additionalProperties": columns.may_be_missing,
    }
    rows = {"type": "array", "minItems": 1, "items": {"anyOf": [listed, record]}}
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}},
            "data": {"type": "array", "minItems": 1, "items": {"type": "array", "items": cell}},
        },
        "required": ["columns", "data"],
    }
    column_lists = {
        "type": "object",
        "properties": {name: {"type": "array", "items": cell} for name in columns.names},
        "required": required,
    }
    shapes = {
        "dataframe_split": split,
        "dataframe_records": {"type": "array", "minItems": 1, "items": record},
        "instances": rows,
        "inputs": {"anyOf": [rows, column_lists]},
    }
    options = {"type": "object", "properties": params, "additionalProperties": False}
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {name: shape, "params": options},
                "required": [name],
                "additionalProperties": False,
            }
            for name, shape in shapes.items()
        ]
    }
