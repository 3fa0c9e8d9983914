"""Models: everything about them except weights; and the lists a stand-in starts with."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ollama_provider.testing.go.encoding import Json, dumps
from ollama_provider.testing.state.model_names import Name, parse

_PARAMETERS = {"K": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True)
class Model:
    """A model of the stand-in: everything about a model except the weights.

    Attributes:
        name: With or without tag, in any form that the server accepts.
        capabilities: Of `completion`, `tools`, `insert`, `vision`, `embedding`, `thinking`.
        context_length: The context it was trained for, in tokens.
        embedding_length: Number of values of its vectors.
        family: Architecture.
        parameter_size: As the API shows it, such as `3.2B`.
        quantization_level: As the API shows it.
        size: Bytes of the weights, which a pull downloads.
        template: Go template of the prompt.
        system: Default system message.
        parameters: Parameters of the Modelfile: defaults of the options.
        license: License text.
        messages: Messages of the Modelfile.
        parent: The model it was created from.
        revision: Each number gives another digest under the same name, as when a tag moves to other weights.
        load_error: If set, every load fails with status 500 and this text.
        file_error: If set, the file of weights is damaged: every load and `/api/show` fail with status 500 and this
            text.
        llama_runner: Runs on the llama.cpp runner, which until 0.24 embeds with any model. The other engine answers
            501.
        weights: Digest of the weights if they are shared with another model.
        adapters: Digests of LoRA adapters.
    """

    name: str
    capabilities: tuple[str, ...] = ("completion",)
    context_length: int = 131_072
    embedding_length: int = 384
    family: str = "llama"
    parameter_size: str = "3.2B"
    quantization_level: str = "Q4_K_M"
    size: int = 2_019_377_376
    template: str = "{{ .Prompt }}"
    system: str = ""
    parameters: Mapping[str, Json] = field(default_factory=dict)
    license: str = ""
    messages: tuple[Mapping[str, Json], ...] = ()
    parent: str = ""
    revision: int = 0
    load_error: str | None = None
    file_error: str | None = None
    llama_runner: bool = False
    weights: str = ""
    adapters: tuple[str, ...] = ()

    @cached_property
    def parsed(self) -> Name:
        """The parsed name.

        Raises:
            ValueError: The name is invalid.
        """
        if (name := parse(self.name)) is None:
            raise ValueError(f"invalid model name: {self.name!r}")
        return name

    @cached_property
    def layers(self) -> tuple[tuple[str, int], ...]:
        """Digest and size of the weights, the template and the configuration, in the order of a pull."""
        weights = self.weights or digest_of(
            "weights", self.parsed.full.lower(), self.parameter_size, str(self.revision)
        )
        settings = digest_of("settings", self.template, self.system, dumps(dict(self.parameters)), self.license)
        config = digest_of(
            "config", weights, *self.adapters, settings, dumps([dict(message) for message in self.messages])
        )
        return (weights, self.size), (settings, 1 + len(self.template) + len(self.license)), (config, 485)

    @cached_property
    def digest(self) -> str:
        """Digest of the manifest, 64 hex characters. It changes when anything about the model changes."""
        return digest_of(*(digest for digest, _ in self.layers)).removeprefix("sha256:")

    @cached_property
    def details(self) -> dict[str, Json]:
        """`details` in the replies of tags, ps and show."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization_level,
        }

    @cached_property
    def model_info(self) -> dict[str, Json]:
        """`model_info` in the reply of show. The arrays of the tokenizer are null, as without `verbose`."""
        return {
            f"{self.family}.attention.head_count": 32,
            f"{self.family}.block_count": 28,
            f"{self.family}.context_length": self.context_length,
            f"{self.family}.embedding_length": self.embedding_length,
            "general.architecture": self.family,
            "general.file_type": 15,
            "general.parameter_count": int(float(self.parameter_size[:-1]) * _PARAMETERS[self.parameter_size[-1]]),
            "general.quantization_version": 2,
            "tokenizer.ggml.model": "bert" if "embedding" in self.capabilities else "gpt2",
            "tokenizer.ggml.token_type": None,
            "tokenizer.ggml.tokens": None,
        }

    def renamed(self, name: str) -> "Model":
        """The same model under another name, with the same weights and digest."""
        return replace(self, name=name, weights=self.layers[0][0])


def digest_of(*parts: str) -> str:
    """A digest made of *parts*, in place of a digest of content that the stand-in does not have."""
    return "sha256:" + hashlib.sha256("\0".join(parts).encode()).hexdigest()


def default_models() -> tuple[Model, ...]:
    """The models that a stand-in has installed by default."""
    return (
        Model("llama3.2", ("completion", "tools")),
        Model(
            "nomic-embed-text",
            ("embedding",),
            context_length=2048,
            embedding_length=768,
            family="nomic-bert",
            parameter_size="137M",
            quantization_level="F16",
            size=274_290_656,
        ),
        Model(
            "qwen3",
            ("completion", "tools", "thinking"),
            context_length=40_960,
            family="qwen3",
            parameter_size="8.2B",
            size=5_225_374_496,
        ),
        Model("llava", ("completion", "vision"), 32_768, parameter_size="7B", size=4_108_916_384),
    )


def default_registry() -> tuple[Model, ...]:
    """The models that a stand-in can pull by default: the installed ones and some more."""
    return (
        *default_models(),
        Model("llama3.2:1b", ("completion", "tools"), parameter_size="1.2B", size=1_321_082_688),
        Model("mistral", ("completion", "tools"), 32_768, parameter_size="7.2B", size=4_372_811_936),
        Model("gemma3", ("completion", "vision"), family="gemma3", parameter_size="4.3B", size=3_338_792_448),
        Model(
            "qwen3:0.6b",
            ("completion", "tools", "thinking"),
            40_960,
            family="qwen3",
            parameter_size="751.63M",
            size=522_653_088,
        ),
        Model("codellama", ("completion", "insert"), 16_384, parameter_size="7B", size=3_825_898_144),
        Model(
            "all-minilm",
            ("embedding",),
            context_length=256,
            family="bert",
            parameter_size="23M",
            quantization_level="F16",
            size=45_949_216,
        ),
        Model("mxbai-embed-large", ("embedding",), 512, 1024, "bert", "334M", "F16", 669_603_712),
    )
