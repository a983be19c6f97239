"""The description of the JSON endpoint, in OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from firstlight import __version__

MOST_BYTES = 32 * 2**20
"""Bytes of the largest picture that is taken."""
MOST_SIMILAR = 24


def description(classes: Sequence[str]) -> dict[str, Any]:
    """Return the OpenAPI description of a server for these classes."""
    number, text = {"type": "number"}, {"type": "string"}
    whole, name = {"type": "integer"}, {"type": "string", "enum": list(classes)}
    unsure = {"type": ["string", "null"]}
    window = _object(left=number, top=number, width=number, height=number)
    window["description"] = (
        "What the network sees of the upright picture, in fractions of its width and height; "
        "it reaches beyond the picture where that is padded."
    )
    heat = _object(
        **{"class": name},
        endpoint=text,
        strongest=number,
        rows=whole,
        columns=whole,
        cells={"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
    )
    heat["description"] = "Grad-CAM on a grid over `seen`, row by row; 255 is `strongest`, in logits."
    similar = _object(picture=text, similarity=number, index=whole, name=text, true=unsure, predicted=unsure)
    answer = _object(
        label=name,
        probabilities=_list(_object(**{"class": name}, probability=number)),
        seen=window,
    )
    answer["properties"] |= {"heat": heat, "similar": _list(similar), "preview": text}
    refusals = {
        "400": "A parameter is wrong.",
        "403": "Host or Origin is not this server's; the body was not read.",
        "408": "The picture did not arrive in time.",
        "413": f"The picture is larger than {MOST_BYTES // 2**20} MiB.",
        "415": "The content type is not that of a picture.",
        "422": "This is no readable picture, or there is no such class; `error` says why.",
        "429": "Too many requests: see Retry-After.",
        "503": "Too many pictures are waiting: see Retry-After.",
    }
    predict = {
        "operationId": "predict",
        "summary": "Classify one picture",
        "parameters": [
            _query("name", text, "What messages call the picture."),
            _query("heat", text, "Also return Grad-CAM for this class; empty for the predicted one."),
            _query(
                "similar",
                {"type": "integer", "minimum": 0, "maximum": MOST_SIMILAR, "default": 0},
                "Also return this many of the run's images, the most similar first.",
            ),
            _query("preview", {"enum": ["1"]}, "Also return the upright picture as a data URL."),
        ],
        "requestBody": {
            "required": True,
            "description": "The bytes of one image file.",
            "content": {"application/octet-stream": {}, "image/*": {}},
        },
        "responses": {
            "200": _json("Class probabilities, the highest first.", {"$ref": "#/components/schemas/Answer"}),
            **{k: _json(words, {"$ref": "#/components/schemas/Refusal"}) for k, words in refusals.items()},
        },
    }
    place = {"name": "place", "in": "path", "required": True, "schema": whole}
    png = {"description": "The image.", "content": {"image/png": {}}}
    kept = {
        "operationId": "kept",
        "summary": "One of the images that the run keeps",
        "parameters": [place],
        "responses": {"200": png, "404": {"description": "There is no such image."}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "firstlight serve", "version": __version__},
        "paths": {"/predict": {"post": predict}, "/kept/{place}.png": {"get": kept}},
        "components": {"schemas": {"Answer": answer, "Refusal": _object(error=text, hint=text)}},
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _query(name: str, schema: Any, words: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": words}


def _json(words: str, schema: Any) -> dict[str, Any]:
    return {"description": words, "content": {"application/json": {"schema": schema}}}
