"""The provider's metadata for Airflow. Plain data, because Airflow reads it at every start.

The connection form is defined here only. Airflow 3.2 and later build it from `EXTRA_FIELDS`; for older ones
`ollama_provider.connection` makes widgets of the same fields. No number field has a default in the form: it would be
saved into every connection and could never be changed later. The description names the default, `Settings` applies it.
"""

from typing import Any

_SECONDS = {"type": ["number", "null"], "exclusiveMinimum": 0}
_TEXT = {"type": ["string", "null"]}
_JSON = {"type": ["object", "null"]}
_ON = {"type": ["boolean", "null"], "default": True}  # without null the form would mark it as required

#: The fields of the connection form, the most used first. Each takes much space there, so rarely used settings are left
#: to the extra JSON. Descriptions contain examples, because only Airflow 2.11 shows placeholders for extra fields.
EXTRA_FIELDS: dict[str, dict[str, Any]] = {
    "model": {
        "label": "Default model",
        "description": "Model of tasks that set none.",
        "schema": _TEXT,
    },
    "options": {
        "label": "Default options",
        "description": 'JSON object of model options, such as {"num_ctx": 8192}. '
        "Options that a task sets itself win, key by key.",
        "schema": _JSON,
    },
    "keep_alive": {
        "label": "Keep alive",
        "description": "How long a model stays in memory after a request: 5m, 1h30m, seconds, or -1 for no limit. "
        "If empty, the server decides.",
        "schema": _TEXT,
    },
    "auto_pull": {
        "label": "Pull missing models",
        "description": "If the server lacks the model of a request, it is pulled, and the request is sent again.",
        "schema": _ON,
    },
    "pull_allow": {
        "label": "Other registries to pull from",
        "description": "Patterns of models that may be pulled, separated by commas (hf.co/ours/*). "
        "Models of Ollama's own registry need none.",
        "schema": _TEXT,
    },
    "first_token_timeout": {
        "label": "First token timeout (s)",
        "description": "Time from sending a request to its first token: queue, loading the model, reading the "
        "prompt. If empty, 900.",
        "schema": _SECONDS,
    },
    "idle_timeout": {
        "label": "Idle timeout (s)",
        "description": "Longest time between two tokens. If empty, 120.",
        "schema": _SECONDS,
    },
    "total_timeout": {
        "label": "Total timeout (s)",
        "description": "Longest time for a whole attempt. If empty, no limit.",
        "schema": _SECONDS,
    },
    "max_attempts": {
        "label": "Attempts",
        "description": "Number of times a request is sent, the first one included; 1 means no retries. If empty, 4.",
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "verify": {
        "label": "Check the certificate",
        "description": "true, false, or the path of the CA file of a private certificate. If empty, true.",
        "schema": _TEXT,
    },
    "headers": {
        "label": "Headers",
        "description": 'JSON object of headers for every request, such as {"X-Tenant": "team-blue"}. Values are masked '
        "in logs, but not in this form, so put an API key into its own field above.",
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
        "host": "gpu1, or several: gpu1, gpu2:11435, https://gpu3.example.com/base",
        # Airflow 3.3.1 and 3.3.2 answer the Test button of a connection without a port with "Bad Request", before our
        # code is called. The placeholder is the only place to mention it.
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
            {"name": "ollama_branch", "class-name": "ollama_provider.decorators.ollama_branch_task"},
            {"name": "ollama_batch", "class-name": "ollama_provider.decorators.ollama_batch_task"},
        ],
        "config": {
            "ollama": {
                "description": "The Ollama provider (airflow-provider-ollama).",
                "options": {
                    "handover_path": {
                        "description": "Directory on any ObjectStoragePath that the workers and the triggerer share. "
                        "A deferred task passes its prompt and its answer through Airflow's database. Those that are "
                        "too large for it are stored here, and deleted when the task is done. If empty, such prompts "
                        "and answers fail the task.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://aws_default@bucket/ollama-handover",
                        "default": "",
                    },
                    "show_page": {
                        "description": "Whether Airflow's UI, from 3.1 on, has the page Ollama: batches and their "
                        "rows, servers and their models. Without it, the button Results of a batch leads to its XCom. "
                        "Set it alike for the API server and the workers.",
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    },
                    "trace_rows": {
                        "description": "Share of a batch's rows whose requests get a span of their own, where tracing "
                        "with OpenTelemetry is on: 0 for none, 0.01 for about one in a hundred, 1 for all. The batch "
                        "itself, loads and pulls of models and single requests always have one.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": "0.01",
                        "default": "0",
                    },
                },
            },
        },
    }
