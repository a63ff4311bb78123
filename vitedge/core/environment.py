"""Secrets in environment variables: read them, and keep them from child processes."""

from __future__ import annotations

import os
import re

from vitedge.errors import UsageError

_secret_names: set[str] = set()
#: Names of variables that hold credentials for any service; no child process needs them.
_CREDENTIAL = re.compile(
    r"(?i)(?:^|_)(?:PW|PASS|PASSWD|PASSWORD|PWD|PASSPHRASE|SECRET|TOKEN|CREDENTIALS?|API_?KEY|ACCESS_KEY"
    r"|PRIVATE_KEY|AUTH)(?:$|_(?!FILE|PATH|DIR|SOCK))"
)
_LEAST_SECRET = 8  # characters of one that is looked for in other variables
_USER_INFO = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]*@")


def secret(name: str, action: str, hint: str) -> str:
    """Return a variable that holds a secret; child processes that start afterwards don't inherit it.

    Args:
        name: of the variable.
        action: for the error text.
        hint: what the variable should hold.

    Raises:
        UsageError: it isn't set.
    """
    value = os.environ.get(name)
    if value is None:
        raise UsageError(action, f"the environment variable {name} isn't set", hint)
    _secret_names.add(name)
    return value


def for_children() -> dict[str, str]:
    """Return this process's environment without credentials.

    What :func:`secret` has read is left out, and so is what looks like one: by its name (``MQTT_PASSWORD``,
    ``HF_TOKEN``), by a URL in it with a user name or password, or by the value of a secret that was read.
    """
    secrets = {value for name in _secret_names if len(value := os.environ.get(name, "")) >= _LEAST_SECRET}
    return {name: value for name, value in os.environ.items() if not _is_secret(name, value, secrets)}


def _is_secret(name: str, value: str, secrets: set[str]) -> bool:
    by_name = name in _secret_names or (_CREDENTIAL.search(name) is not None and name not in ("PWD", "OLDPWD"))
    return by_name or _USER_INFO.search(value) is not None or any(secret in value for secret in secrets)
