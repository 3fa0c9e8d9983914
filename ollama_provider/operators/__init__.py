"""Tasks that talk to Ollama."""

from ollama_provider.operators.batch import OllamaBatchOperator
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
