"""A login at a registry: the value that credentials yield and a registry is asked with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

IDENTITY_TOKEN: Final = "<token>"  # noqa: S105 (a user name, as docker spells it)
"""The user name that stands for an identity token: the secret is then an OAuth 2 refresh token."""


@dataclass(frozen=True, slots=True)
class Login:
    """A user and a secret; the secret is kept out of the repr."""

    username: str
    secret: str = field(repr=False)

    @property
    def is_identity_token(self) -> bool:
        return self.username == IDENTITY_TOKEN
