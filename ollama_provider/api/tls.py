"""TLS: how the server's certificate is checked, and which client certificate is sent."""

import ssl
from pathlib import Path

import httpx

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.settings import Settings


def ssl_context_for(settings: Settings) -> ssl.SSLContext:
    """Return the TLS context: how to check the server's certificate, and the client certificate to send.

    Raises:
        InvalidRequestError: a file does not exist, or is not of the right kind.
    """
    if not settings.base_url.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and loading the trusted certificates takes 30 ms
    if isinstance(settings.verify, str):
        context = _trusting(settings.verify)
    else:
        context = httpx.create_ssl_context(verify=settings.verify, trust_env=settings.trust_env)
    if settings.client_cert:
        try:
            context.load_cert_chain(settings.client_cert)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or "it is no PEM file with certificate and key"
            raise InvalidRequestError(f"client_cert: cannot read {settings.client_cert!r}: {reason}") from None
    return context


def _trusting(file: str) -> ssl.SSLContext:
    path = Path(file)
    try:
        return ssl.create_default_context(capath=file) if path.is_dir() else ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "it is no PEM file with certificates"
        raise InvalidRequestError(f"verify: cannot read {file!r}: {reason}") from None
