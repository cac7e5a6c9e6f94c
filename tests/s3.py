"""A server that speaks as much of S3 as a store of jobs needs, over HTTP, of one bucket: no more of it than Amazon documents.

It is not Amazon's, and checks no signature: only that there is one, by the key that it knows. Lists come in pages of two, so that
whoever reads the first page alone is found out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import md5
from xml.sax.saxutils import escape, unescape

from fastapi import FastAPI, Request
from starlette.responses import Response

from tests.gateway.served import served

BUCKET = "pictures"
KEY_ID = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
PAGE = 2
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Bucket:
    """What is in it, and what was asked of it.

    Attributes:
        objects: By key: bytes, and when they were written.
        asked: Method and key or query of each request.
        refuses: A status to answer everything with; None is as usual.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.asked: list[tuple[str, str]] = []
        self.refuses: int | None = None

    async def answer(self, request: Request) -> Response:
        key = request.url.path.removeprefix(f"/{BUCKET}").lstrip("/")
        self.asked.append((request.method, key or request.url.query))
        if self.refuses is not None:
            return _error(self.refuses, "AccessDenied")
        if not request.headers.get("Authorization", "").startswith(f"AWS4-HMAC-SHA256 Credential={KEY_ID}/"):
            return _error(403, "InvalidAccessKeyId")
        if not request.url.path.startswith(f"/{BUCKET}"):
            return _error(404, "NoSuchBucket")
        return await self._of_object(request, key) if key else await self._of_bucket(request)

    async def _of_object(self, request: Request, key: str) -> Response:
        if request.method == "PUT":
            if request.headers.get("If-None-Match") == "*" and key in self.objects:
                return _error(412, "PreconditionFailed")
            self.objects[key] = await request.body(), datetime.now(UTC)
            return Response(headers={"ETag": _etag(self.objects[key][0])})
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return Response(status_code=204)
        if key not in self.objects:
            return _error(404, "NoSuchKey")
        content, written = self.objects[key]
        told = {"ETag": _etag(content), "Last-Modified": f"{written:%a, %d %b %Y %H:%M:%S GMT}"}
        return Response(content, headers=told)

    async def _of_bucket(self, request: Request) -> Response:
        if request.method == "POST" and "delete" in request.query_params:
            return self._delete_many(await request.body())
        prefix = request.query_params.get("prefix", "")
        after = request.query_params.get("continuation-token", "")
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        page, rest = keys[:PAGE], keys[PAGE:]
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if rest else ""
        listed = "".join(_entry(key, *self.objects[key]) for key in page)
        told = f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>{PAGE}</MaxKeys><KeyCount>{len(page)}</KeyCount>"
        truncated = f"<IsTruncated>{'true' if rest else 'false'}</IsTruncated>"
        return _document(f'<ListBucketResult xmlns="{NAMESPACE}">{told}{truncated}{more}{listed}</ListBucketResult>')

    def _delete_many(self, asked: bytes) -> Response:
        keys = [unescape(key) for key in re.findall("<Key>(.*?)</Key>", asked.decode())]
        for key in keys:
            self.objects.pop(key, None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return _document(f'<DeleteResult xmlns="{NAMESPACE}">{deleted}</DeleteResult>')


def _entry(key: str, content: bytes, written: datetime) -> str:
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>{written:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
        f"<ETag>{escape(_etag(content))}</ETag><Size>{len(content)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def _etag(content: bytes) -> str:
    return f'"{md5(content, usedforsecurity=False).hexdigest()}"'


def _error(status: int, code: str) -> Response:
    return _document(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status=status)


def _document(text: str, *, status: int = 200) -> Response:
    content = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'
    return Response(content, status_code=status, media_type="application/xml")


@contextlib.contextmanager
def s3() -> Iterator[tuple[Bucket, dict[str, str]]]:
    """A bucket, and the environment by which it is found, for the length of the block."""
    bucket, app = Bucket(), FastAPI(openapi_url=None)
    app.add_route("/{path:path}", bucket.answer, methods=["GET", "HEAD", "PUT", "POST", "DELETE"])
    with served(app) as address:
        yield (
            bucket,
            {
                "AWS_ACCESS_KEY_ID": KEY_ID,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": "eu-central-1",
                "AWS_ENDPOINT_URL": address,
                "AWS_ALLOW_HTTP": "true",
            },
        )
