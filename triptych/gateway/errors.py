"""The one shape of errors at the gateway, which OpenAI's clients read too."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from triptych.errors import StageError, TriptychError


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="One sentence.")
    type: str = Field(description="The kind of error, for callers that know few kinds.")
    param: str | None = Field(description="The field at fault, or the stage, or `stages` where they do not fit together.")
    code: str = Field(description="The very error, such as queue_full.")


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success, and the data of the event `error`."""

    error: ErrorDetail


def gateway_error(error: TriptychError) -> dict[str, Any]:
    param = error.stage if isinstance(error, StageError) else getattr(error, "param", None)
    return {"error": {"message": error.message, "type": error.type, "param": param, "code": error.code}}
