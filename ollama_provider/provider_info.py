"""What Airflow may find in this package. Strings only: Airflow reads this at every start.

The connection form stands here and nowhere else. Airflow 3.2 and later build it from this; for older ones
`ollama_provider.connection` makes their widgets of the same fields. No number field has a form default: a default that
was saved into every connection could never be changed again, so the description tells it and `Settings` applies it.
"""

from typing import Any

_SECONDS = {"type": ["number", "null"], "exclusiveMinimum": 0}
_TEXT = {"type": ["string", "null"]}
_JSON = {"type": ["object", "null"]}
_ON = {"type": ["boolean", "null"], "default": True}  # without null it would carry the star of a required field

#: What people fill in of the connection's extra, the most frequent first: each takes a hand's breadth of the form.
#: `Settings` knows a few more, for which there is the extra JSON. Examples are part of the descriptions, as only
#: Airflow 2.11 shows placeholders here.
EXTRA_FIELDS: dict[str, dict[str, Any]] = {
    "model": {
        "label": "Default model",
        "description": "For tasks that name none.",
        "schema": _TEXT,
    },
    "options": {
        "label": "Default options",
        "description": 'JSON object of model options, such as {"num_ctx": 8192}. '
        "A task's own options are laid over them, key by key.",
        "schema": _JSON,
    },
    "keep_alive": {
        "label": "Keep alive",
        "description": "How long a model stays in memory after a request: 5m, 1h30m, seconds, -1 for ever. "
        "If empty, the server decides.",
        "schema": _TEXT,
    },
    "auto_pull": {
        "label": "Pull missing models",
        "description": "A model that is missing is downloaded once, then the request is sent again.",
        "schema": _ON,
    },
    "pull_allow": {
        "label": "Other registries to pull from",
        "description": "Patterns with a comma between them (hf.co/ours/*). Names on Ollama's own registry need none.",
        "schema": _TEXT,
    },
    "first_token_timeout": {
        "label": "First token timeout (s)",
        "description": "From the request to the first token: queue, load of the model, reading of the prompt. "
        "If empty, 900.",
        "schema": _SECONDS,
    },
    "idle_timeout": {
        "label": "Idle timeout (s)",
        "description": "Between two tokens. If empty, 120.",
        "schema": _SECONDS,
    },
    "total_timeout": {
        "label": "Total timeout (s)",
        "description": "For one attempt in all. If empty, no bound.",
        "schema": _SECONDS,
    },
    "max_attempts": {
        "label": "Attempts",
        "description": "For one request in all, the first included; 1 never tries again. If empty, 4.",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "verify": {
        "label": "Check the certificate",
        "description": "true, false, or the path of a CA file for a private certificate. If empty, true.",
        "schema": _TEXT,
    },
    "headers": {
        "label": "Headers",
        "description": 'JSON object, sent with every request, such as {"X-Tenant": "team-blue"}. Values are masked in '
        "logs, not in this form: an API key belongs in its own field above.",
        "schema": _JSON,
    },
}

UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": [],
    "relabeling": {
        "schema": "Scheme",
        "login": "Login (Basic auth)",
        "password": "API key, or password of the login",
    },
    "placeholders": {
        "host": "gpu1, or https://ollama.example.com/base",
        # An empty field is told here what it means, as nothing else can say it: Airflow 3.3.1 and 3.3.2 answer the Test
        # button of a connection without a port by themselves, with "Bad Request".
        "port": "11434, or 443 with https; Airflow 3.3 needs it for Test",
        "schema": "http or https",
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata as described by Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-ollama",
        "name": "Ollama",
        "description": "Local language models served by Ollama, above all in nightly batches.",
        "integrations": [
            {"integration-name": "Ollama", "external-doc-url": "https://docs.ollama.com", "tags": ["ai"]},
        ],
        "connection-types": [
            {
                "connection-type": "ollama",
                "hook-class-name": "ollama_provider.hooks.OllamaHook",
                "hook-name": "Ollama",
                "conn-fields": EXTRA_FIELDS,
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
            }
        ],
        "hooks": [{"integration-name": "Ollama", "python-modules": ["ollama_provider.hooks"]}],
        "operators": [{"integration-name": "Ollama", "python-modules": ["ollama_provider.operators"]}],
        "sensors": [{"integration-name": "Ollama", "python-modules": ["ollama_provider.sensors"]}],
        "extra-links": ["ollama_provider.links.BatchResultsLink"],
        "triggers": [{"integration-name": "Ollama", "python-modules": ["ollama_provider.triggers"]}],
        "task-decorators": [
            {"name": "ollama_generate", "class-name": "ollama_provider.decorators.ollama_generate_task"},
            {"name": "ollama_chat", "class-name": "ollama_provider.decorators.ollama_chat_task"},
            {"name": "ollama_embed", "class-name": "ollama_provider.decorators.ollama_embed_task"},
            {"name": "ollama_batch", "class-name": "ollama_provider.decorators.ollama_batch_task"},
        ],
        "config": {
            "ollama": {
                "description": "The Ollama provider (airflow-provider-ollama).",
                "options": {
                    "handover_path": {
                        "description": "Directory on any ObjectStoragePath that the workers and the triggerer share. "
                        "A deferred task hands over its prompt and its answer through Airflow's database; what is too "
                        "large for that goes here, and is removed when the task is done. If empty, it is refused.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://aws_default@bucket/ollama-handover",
                        "default": "",
                    },
                },
            },
        },
    }
