"""Tasks that talk to Ollama."""

from ollama_provider.operators.chat import OllamaChatOperator
from ollama_provider.operators.embed import OllamaEmbedOperator
from ollama_provider.operators.generate import OllamaGenerateOperator
from ollama_provider.operators.models import OllamaPullModelOperator

__all__ = [
    "OllamaChatOperator",
    "OllamaEmbedOperator",
    "OllamaGenerateOperator",
    "OllamaPullModelOperator",
]
