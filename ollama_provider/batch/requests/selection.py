"""Which of several servers take part in a batch: those whose models are the same. No network.

Two models of one name may differ from server to server, and answers of both must not be mixed. So the digest decides.
"""

from collections import Counter
from collections.abc import Mapping

from ollama_provider.batch.requests.preflight import Checked, digest_of, split_model
from ollama_provider.batch.spec import BatchSpec


def digests(spec: BatchSpec, server: Checked) -> tuple[str | None, str | None]:
    """Return the digests of model and fallback model; None for one that there is not, or that is not listed."""
    name, _ = split_model(spec.model)
    fallback = spec.failures.fallback_model
    second = server.fallback and fallback and digest_of(server.fallback.tags, split_model(fallback)[0])
    return digest_of(server.model.tags, name), second or None


def reference(spec: BatchSpec, servers: Mapping[str, Checked], earlier: str | None = None) -> str:
    """Return the server whose models the batch is made with: those of most servers, and of the first one in a tie.

    Args:
        spec: the batch. Digests that it demands were checked.
        servers: what each says, by its URL, in the order of the connection; one at least.
        earlier: digest of the model in an earlier run of the batch. Servers that have it come before all others:
            another one would ask again what was answered.
    """
    found = {url: digests(spec, server) for url, server in servers.items()}
    count = Counter(found.values())
    # The first of those with most.
    return max(found, key=lambda url: (earlier is not None and found[url][0] == earlier, count[found[url]]))


def difference(spec: BatchSpec, server: Checked, url: str, chosen: Checked) -> str | None:
    """Return in what the models of a server differ from those of the batch; None if they are the same.

    Args:
        spec: the batch.
        server: what it says.
        url: of the server that the batch's models are taken from.
        chosen: what that one says.
    """
    names = (spec.model, spec.failures.fallback_model)
    for name, own, wanted in zip(names, digests(spec, server), digests(spec, chosen), strict=True):
        if name is not None and own != wanted:
            return (
                f"its model {split_model(name)[0]!r} has the digest {_short(own)}, not {_short(wanted)} as at {url}. "
                "Pull the same version on all servers"
            )
    return None


def _short(digest: str | None) -> str:
    return "(none)" if digest is None else digest[:12]
