"""Signatures of manifests: HMAC-SHA256 with a key that signer and device share, which Python alone can check.

Source: RFC 2104. A signature by a public key would need a package that devices seldom have, or another program; for
those, manifest.json is the one file to sign, since it vouches for all others.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import DeviceError
from .stored import DIGEST, DamagedError, read_whole, said_by

#: Key of the signature in a manifest. It covers all but itself and the manifest's hash, which covers it too: that one
#: was there shows even without the key.
SIGNATURE = "hmac_sha256"
_LEAST_KEY, _MOST_KEY = 16, 1 << 16


def read_key(path: Path, *, flag: str = "--key") -> bytes:
    """The key that a file holds, all of its bytes; `flag` named it. Raises DeviceError where it cannot be one."""
    try:
        key = read_whole(path, most=_MOST_KEY)
    except DamagedError as error:
        raise DeviceError(f"{flag} {error}") from error
    if len(key) < _LEAST_KEY:
        raise DeviceError(
            f"{flag} {path} has {len(key)} bytes: a key has {_LEAST_KEY} or more, such as head -c 32 /dev/urandom >"
            " FILE"
        )
    return key


def signature_of(manifest: Mapping[str, Any], key: bytes) -> str:
    """The signature of all that a manifest says, in hexadecimal."""
    return hmac.new(key, said_by(manifest, without=(DIGEST, SIGNATURE)), hashlib.sha256).hexdigest()


def check_signature(manifest: Mapping[str, Any], key: bytes | None, bundle: Path) -> None:
    """Raise DeviceError unless a manifest is signed by the key, or by none where there is no key."""
    signature = manifest.get(SIGNATURE)
    if signature is None and key is not None:
        raise DeviceError(f"{bundle} is not signed, and a key is given: get the signed bundle, or leave --key out")
    if signature is not None and key is None:
        raise DeviceError(f"{bundle} is signed: give the file of its key with --key FILE")
    if key is not None and not (
        isinstance(signature, str)
        and hmac.compare_digest(signature.encode("utf-8", "replace"), signature_of(manifest, key).encode())
    ):
        raise DeviceError(f"{bundle} is not signed by this key: give the key that signed it, or get the bundle anew")
