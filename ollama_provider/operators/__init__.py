"""The operators. Import them from here; the modules below load when an operator is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ollama_provider.operators.batch import OllamaBatchOperator
    from ollama_provider.operators.branch import OllamaBranchOperator
    from ollama_provider.operators.chat import OllamaChatOperator
    from ollama_provider.operators.create import OllamaCreateModelOperator
    from ollama_provider.operators.disk import OllamaCopyModelOperator, OllamaDeleteModelOperator
    from ollama_provider.operators.embed import OllamaEmbedOperator
    from ollama_provider.operators.generate import OllamaGenerateOperator
    from ollama_provider.operators.memory import OllamaLoadModelOperator, OllamaUnloadModelOperator
    from ollama_provider.operators.models import OllamaPullModelOperator
    from ollama_provider.operators.prune import OllamaPruneModelsOperator

__all__ = [
    "OllamaBatchOperator",
    "OllamaBranchOperator",
    "OllamaChatOperator",
    "OllamaCopyModelOperator",
    "OllamaCreateModelOperator",
    "OllamaDeleteModelOperator",
    "OllamaEmbedOperator",
    "OllamaGenerateOperator",
    "OllamaLoadModelOperator",
    "OllamaPruneModelsOperator",
    "OllamaPullModelOperator",
    "OllamaUnloadModelOperator",
]

# Modules are imported on first access, so that parsing a DAG file loads only the operators that it uses.
_MODULES = {
    "OllamaBatchOperator": "batch",
    "OllamaBranchOperator": "branch",
    "OllamaChatOperator": "chat",
    "OllamaCopyModelOperator": "disk",
    "OllamaCreateModelOperator": "create",
    "OllamaDeleteModelOperator": "disk",
    "OllamaEmbedOperator": "embed",
    "OllamaGenerateOperator": "generate",
    "OllamaLoadModelOperator": "memory",
    "OllamaPruneModelsOperator": "prune",
    "OllamaPullModelOperator": "models",
    "OllamaUnloadModelOperator": "memory",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
