"""Credentials in the URL of a database, a server or a storage: never shown, never kept.

A URL may be stored and printed as `public_uri` gives it; text of others, such as error messages, as `cleaned` does.
"""

import logging
import re
from urllib.parse import parse_qsl, unquote, unquote_plus

# What a query may say and still be shown and kept; all else may be a secret, and is left out.
_HARMLESS = frozenset(
    [
        *("host", "hostaddr", "port", "dbname", "service", "options", "client_encoding", "application_name", "charset"),
        *("connect_timeout", "timeout", "target_session_attrs", "channel_binding", "gssencmode", "driver"),
        *(
            "ssl",
            "sslmode",
            "sslcert",
            "sslkey",
            "sslrootcert",
            "sslcrl",
            "ssl_ca",
            "ssl_cert",
            "ssl_key",
            "ssl_check_hostname",
            # of a storage, as pyarrow names them
            "region",
            "scheme",
            "endpoint_override",
            "allow_bucket_creation",
            "tls_ca_file_path",
        ),
    ]
)
_FILES = ("sqlite", "file")
# Azure's storage: what stands in the place of a user is a folder's name.
_CONTAINERS = ("abfs", "abfss")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`]+")
_ASSIGNED = re.compile(r"(?i)\b((?:\w*(?:password|passwd|secret|token|signature|credential)|pwd|api_?key)=)[^\s&;,'\")]+")
# Shorter ones are in half of all words.
_SHORTEST = 3


def public_uri(uri: str) -> str:
    """The URI as it may be shown and stored: without user and password, and of its query what is known to be harmless.

    Whatever stands before the last @ goes, so that a password with characters that should have been escaped goes too.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark or scheme.lower().split("+")[0] in _FILES:
        return uri
    before, _, after = rest.rpartition("@")
    path, _, query = after.partition("#")[0].partition("?")
    if scheme.lower() in _CONTAINERS and (container := before.partition(":")[0]):
        path = f"{container}@{path}"
    kept = [part for part in query.split("&") if part.partition("=")[0] in _HARMLESS]
    return f"{scheme}://{path}{'?' if kept else ''}{'&'.join(kept)}"


def first_line(error: BaseException, *uris: str | None) -> str:
    """What an error says, or what it is, in one line without the credentials of `uris`."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return cleaned(lines[0], *secrets_of(*uris))


def secrets_of(*uris: str | None) -> tuple[str, ...]:
    """What must not be read anywhere of these URIs, as it is written there and as it is meant; longest first."""
    found: set[str] = set()
    for uri in uris:
        scheme, mark, rest = (uri or "").partition("://")
        if not mark or scheme.lower().split("+")[0] in _FILES:
            continue
        before, _, after = rest.rpartition("@")
        user, _, password = before.partition(":")
        # A user without a password is a token.
        secret = password or ("" if scheme.lower() in _CONTAINERS else user)
        found |= {secret, unquote(secret)}
        query = after.partition("#")[0].partition("?")[2]
        found |= {value for name, value in parse_qsl(query) if name not in _HARMLESS}
        raw = [part.partition("=") for part in query.split("&")]
        found |= {form for name, _, value in raw if name not in _HARMLESS for form in (value, unquote_plus(value))}
    return tuple(sorted((secret for secret in found if len(secret) >= _SHORTEST), key=len, reverse=True))


def cleaned(text: str, *secrets: str) -> str:
    """The text without `secrets`, every URI in it as `public_uri` gives it, and ``password=...`` and the like hidden."""
    text = _ASSIGNED.sub(r"\1***", _URI.sub(lambda found: public_uri(found[0]), text))
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


class CleanFormatter(logging.Formatter):
    """Formats what is logged, tracebacks too, as `cleaned`."""

    def __init__(self, form: str | None = None, secrets: tuple[str, ...] = ()) -> None:
        super().__init__(form)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return cleaned(super().format(record), *self._secrets)
