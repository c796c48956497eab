"""A JSON Schema validator that reads patterns as JSON Schema means them: as ECMAScript's, where `$` is the very end."""

import json
from functools import cache

from jsonschema import Draft202012Validator

from service.messages import schemas


@cache
def validator(name: str) -> Draft202012Validator:
    """Give the validator of a message's schema. In Python's own reading `$` would let a last line break pass."""
    schema = json.loads(json.dumps(schemas.file(name)), object_hook=_pythonic)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _pythonic(schema: dict[str, object]) -> dict[str, object]:
    pattern = schema.get("pattern")
    return {**schema, "pattern": pattern.removesuffix("$") + r"\Z"} if isinstance(pattern, str) else schema
