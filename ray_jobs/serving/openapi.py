"""The app's description, in OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_jobs.serving.model import Model
from ray_jobs.serving.routing import REQUEST_ID, VARIANT
from ray_jobs.serving.scorer import JSON

_REFUSALS = {
    "400": "The body is no CSV or JSON of the shapes that are taken, or the request's id is no id.",
    "406": "None of the accepted media types can be given.",
    "408": "The body did not come in time.",
    "413": "The body, or its number of rows, is too large.",
    "415": "The body's media type, charset or encoding is not taken.",
    "422": "A row or a column of the body cannot be scored; the error names it.",
    "429": "Too many requests are waiting.",
    "503": "The model is being loaded.",
    "504": "There was no answer in time.",
}
_ID = {"type": "string", "pattern": "^[!-~]{1,128}$"}


def describe(model: Model, roles: Sequence[str] = ("champion",)) -> dict[str, Any]:
    """The description of an app that serves this model.

    Args:
        roles: of the variants that there are.
    """
    scorer = model.scorer
    refusal = _content({"$ref": "#/components/schemas/Error"})
    predictions = {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": scorer.prediction_schema()}},
        "required": ["predictions"],
    }
    answered = {
        media_type: {"schema": predictions if media_type == JSON else {"type": "string"}}
        for media_type in scorer.answer_types
    }
    invoke = {
        "summary": "Predictions of rows.",
        "parameters": [
            {
                "name": REQUEST_ID,
                "in": "header",
                "description": "The request's id, by which it is given to a variant and recorded.",
                "schema": _ID,
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                media_type: {"schema": schema}
                for media_type, schema in scorer.request_content().items()
            },
        },
        "responses": {
            "200": {
                "description": "A prediction for each row.",
                "headers": {
                    REQUEST_ID: {"description": "The id, or a new one.", "schema": _ID},
                    VARIANT: {
                        "description": "Which variant answers.",
                        "schema": {"type": "string", "enum": list(roles)},
                    },
                },
                "content": answered,
            },
            **{code: {"description": why, **refusal} for code, why in _REFUSALS.items()},
        },
    }
    state = _content({"type": "object", "properties": {"status": {"type": "string"}}})
    told = ["name", "version", "workload", "digest", "variants"]
    about = _content({"type": "object", "required": told})
    not_yet = {"503": {"description": _REFUSALS["503"], **refusal}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Emberline: {model.name}", "version": model.version},
        "paths": {
            "/ping": _get(
                "Whether requests are wanted.",
                {
                    "200": {"description": "They are.", **state},
                    "503": {"description": "The model is being loaded, or is to end.", **state},
                },
            ),
            "/invocations": {"post": invoke},
            "/metrics": _get(
                "Metrics for Prometheus.",
                {"200": {"description": "Its text.", "content": {"text/plain": {}}}},
            ),
            "/version": _get(
                "Which model this is.", {"200": {"description": "It is this.", **about}, **not_yet}
            ),
            "/openapi.json": _get(
                "This description.",
                {"200": {"description": "It.", **_content({"type": "object"})}, **not_yet},
            ),
        },
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "properties": {"error": {"type": "string"}},
                    "required": ["error"],
                }
            }
        },
    }


def _get(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": responses}}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {JSON: {"schema": schema}}}
