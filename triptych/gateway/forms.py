"""Bodies that come as forms: fields, and pictures as files."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Mapping

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from triptych.errors import InvalidValue, MalformedRequest

MEDIA_TYPE = "multipart/form-data"
FILES = ("image", "mask")
MAX_FIELDS = 64


async def read_form(raw: bytes, headers: Headers) -> Mapping[str, str]:
    """The fields of a form; those that are files in base64, as JSON would have them.

    Args:
        raw: The body, already read and bounded.
        headers: Of the request; they say what separates the parts.

    Raises:
        MalformedRequest: It is no form, or one with too many parts.
        InvalidValue: A field is there twice, or is a file where none is read.
    """
    parser = MultiPartParser(headers, _at_once(raw), max_files=len(FILES), max_fields=MAX_FIELDS, max_part_size=len(raw) + 1)
    parser.spool_max_size = len(raw) + 1  # in memory, where the body is anyhow: a container's disk may be read-only
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedRequest(f"the form cannot be read: {error.message}") from None
    try:
        fields: dict[str, str] = {}
        for name, value in form.multi_items():
            if name in fields:
                raise InvalidValue(f"{name[:60]} is in the form twice", param=name[:60])
            fields[name] = value if isinstance(value, str) else await _text_of(name, value)
        return fields
    finally:
        await form.close()


async def _text_of(name: str, file: UploadFile) -> str:
    if name not in FILES:
        raise InvalidValue(f"{name[:60]} must be a field of the form and no file", param=name[:60])
    return base64.b64encode(await file.read()).decode("ascii")


async def _at_once(raw: bytes) -> AsyncGenerator[bytes, None]:
    yield raw
