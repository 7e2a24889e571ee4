"""What settings of an OpenAI-compatible endpoint must not say, whoever asks it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit


def check_request(
    extra_body: Mapping[str, Any], base_url: str | None, *, ours: Collection[str], key_variable: str
) -> None:
    """Raises ValueError where a field of the request is not the user's to set, or an address is none or holds a secret.

    Args:
        ours: fields of a request that `extra_body` may not change.
        key_variable: where keys belong, for the message.
    """
    for name in ours:
        if name in extra_body:
            raise ValueError(f"extra_body.{name} is set by preftune itself; remove it")
    if base_url is None:
        return
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("base_url must begin with http:// or https://")
    if "@" in parts.netloc or parts.query:
        raise ValueError(
            "base_url holds a user or a query, which may be secret; keys belong into the environment variable "
            f"{key_variable}"
        )
