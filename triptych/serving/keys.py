"""Keys of callers: known by their hashes, compared in constant time.

An entry of a setting is the key itself, or `name:sha256:<64 hexadecimal digits>`, which `triptych keys new` prints: whoever reads
the settings then cannot call. SHA-256 without salt or stretching is enough for keys that were drawn, and for no others.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

KEY_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

_HASHED = re.compile(rf"({NAME.pattern}):sha256:([0-9a-fA-F]{{64}})")


@dataclass(frozen=True)
class Key:
    """One key, as much as is to be known of it.

    Attributes:
        name: What logs and queues call its holder.
        digest: SHA-256 of the key.
    """

    name: str
    digest: bytes = field(repr=False)


def read_key(entry: str) -> Key:
    """One entry of a setting. A plain key goes by the first digits of its hash, since nobody named it.

    Raises:
        ValueError: It is neither.
    """
    if hashed := _HASHED.fullmatch(entry):
        return Key(hashed[1], bytes.fromhex(hashed[2]))
    if is_like_a_hash(entry):
        raise ValueError("a hashed key is name:sha256:<64 hexadecimal digits>, as `triptych keys new` prints it")
    if not (entry.isascii() and entry.isprintable() and entry) or " " in entry:
        raise ValueError("a token must be printable ASCII without blanks")
    digest = hashlib.sha256(entry.encode("ascii")).digest()
    return Key(digest.hex()[:8], digest)


def is_like_a_hash(entry: str) -> bool:
    """Whether an entry is meant as a hash: no drawn key looks like one."""
    return ":sha256:" in entry or entry.startswith("sha256:")


def draw_key(name: str) -> tuple[str, str]:
    """A new key, and the entry that lets its holder in.

    Raises:
        ValueError: The name is none that fits into an entry.
    """
    if not NAME.fullmatch(name):
        raise ValueError("the name of a key has 1 to 64 letters, digits, dots, dashes and underscores")
    key = secrets.token_urlsafe(KEY_BYTES)
    return key, f"{name}:sha256:{hashlib.sha256(key.encode('ascii')).hexdigest()}"


def find_key(keys: Sequence[Key], sent: bytes) -> Key | None:
    """The key that was sent, if it is one of these."""
    digest = hashlib.sha256(sent).digest()
    # All of them, each in constant time: how long this takes says nothing about how near a guess came.
    matches = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    return matches[0] if matches else None
