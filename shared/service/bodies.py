"""Request and response bodies of routes that read their own: bounded, parsed and written once.

FastAPI reads a body of any size and validates a response a second time; where that matters a
route takes the `Request` and uses these.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, TypeVar, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shared.errors import ApiProblem

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises `ApiProblem` 413 as soon as it is known to be over the limit."""
    too_large = ApiProblem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "Request too large",
        f"the body is over the limit of {max_bytes} bytes",
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def parse_body(body: bytes, model: type[M]) -> M:
    """The body as a model. Raises the error that FastAPI would raise for it."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = [
            {**problem, "loc": ("body", *problem["loc"]), "msg": _message(problem, model)}
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise RequestValidationError(problems) from error


def _message(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """pydantic's words; for an unknown field also those that are known in its place."""
    if problem["type"] != "extra_forbidden":
        return problem["msg"]
    known = _fields_at(inlined_schema(model), problem["loc"][:-1])
    return f"unknown field; accepted: {', '.join(known)}" if known else "unknown field"


def _fields_at(schema: dict[str, Any], where: Sequence[int | str]) -> list[str]:
    """The fields of the object at a place of a body, as its schema has them."""
    node = schema
    for part in where:
        members = [node, *node.get("anyOf", ()), *node.get("oneOf", ())]
        tagged = [m for m in node.get("oneOf", ()) if _tag_of(m) == part]
        inner = [m["properties"][part] for m in members if part in m.get("properties", ())]
        items = [m["items"] for m in members if isinstance(part, int) and "items" in m]
        node = next(iter([*tagged, *inner, *items]), {})
    return list(node.get("properties", ()))


def _tag_of(member: dict[str, Any]) -> str | None:
    """What pydantic calls a member of a discriminated union."""
    tags = [field["const"] for field in member["properties"].values() if "const" in field]
    return tags[0] if tags else None


def model_response(model: BaseModel) -> Response:
    """A model as a JSON response."""
    return Response(model.__pydantic_serializer__.to_json(model), media_type="application/json")


def inlined_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema, free of references."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(node: object) -> object:
        if isinstance(node, dict):
            members = cast(dict[str, object], node)
            if "$ref" in members:
                return inlined(definitions[str(members["$ref"]).rsplit("/", 1)[-1]])
            kept = {key: value for key, value in members.items() if key != "discriminator"}
            return {key: inlined(value) for key, value in kept.items()}
        if isinstance(node, list):
            return [inlined(value) for value in cast(list[object], node)]
        return node

    return cast(dict[str, Any], inlined(schema))


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that parses its own body."""
    content = {"application/json": {"schema": inlined_schema(model)}}
    return {"requestBody": {"required": True, "content": content}}
