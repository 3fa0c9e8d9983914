"""A prompt that a server cut without a word is recognised by the number of tokens it read."""

import pytest

from ollama_provider.api.schemas import ChatRequest, GenerateReply, GenerateRequest
from ollama_provider.api.truncation import oversized_context, prompt_was_cut

#: English text of about 12,000 tokens.
LONG = "The quick brown fox jumps over the lazy dog near the river bank. " * 830


def judge(prompt: str, count: int, num_ctx: int | None = None, **settings: object) -> bool:
    options = {"num_ctx": num_ctx} if num_ctx else None
    request = GenerateRequest(model="m", prompt=prompt, options=options)
    return prompt_was_cut(request, GenerateReply(done=True, prompt_eval_count=count), **settings)


@pytest.mark.parametrize(
    ("prompt", "num_ctx", "count"),
    [
        pytest.param(LONG, 4096, 2050, id="0.32: 12 k tokens at 4096 gave 2050"),
        pytest.param(LONG, 2048, 2048, id="0.24: filled to the brim"),
        pytest.param("hi", 4, 4, id="0.24: even a greeting, where the context is tiny"),
        pytest.param(LONG, 2048, 900, id="a chat's oldest messages dropped: it cannot have fitted"),
    ],
)
def test_a_cut_prompt_is_recognised(prompt, num_ctx, count):
    """The numbers that servers were seen to give after cutting are taken for what they are."""
    assert judge(prompt, count, num_ctx)


@pytest.mark.parametrize(
    ("prompt", "num_ctx", "count"),
    [
        pytest.param("Why is the sky blue?", 4096, 26, id="short"),
        pytest.param(LONG[:8200], 4096, 2050, id="a prompt that has just as many tokens as half the context"),
        pytest.param(LONG, 16384, 11800, id="long, and it fits"),
        pytest.param(LONG, 16384, 0, id="wholly cached before 0.30.1: not counted"),
        pytest.param(LONG, 16384, 40, id="mostly cached before 0.30.1"),
        pytest.param(" " * 60_000, 4096, 900, id="blanks, many in a token"),
        pytest.param("=" * 60_000, 4096, 1000, id="a ruler, many in a token"),
    ],
)
def test_what_may_have_another_reason_is_no_cut(prompt, num_ctx, count):
    """The judgement is conservative: no alarm where the prompt may well have been read whole."""
    assert not judge(prompt, count, num_ctx)


def test_an_unknown_context_is_no_reason_to_judge():
    """Without the size of the context there is nothing to compare with."""
    assert not judge(LONG, 2050)


def test_the_context_of_the_loaded_model_serves_where_the_request_sets_none():
    """What /api/ps says of the loaded model stands in for options.num_ctx."""
    assert judge(LONG, 2050, context_length=4096)


def test_the_smaller_of_the_known_contexts_counts():
    """A server makes no context larger than the model, whatever the option says: it cuts at the model's, in silence."""
    assert judge(LONG, 2048, 131_072, context_length=2048)
    assert judge(LONG, 1026, 131_072, context_length=2048)
    assert judge(LONG, 2048, 2048, context_length=131_072)
    assert not judge(LONG, 11_800, 131_072, context_length=16_384)
    assert not judge("Why is the sky blue?", 26, 131_072, context_length=2048)


@pytest.mark.parametrize(
    ("num_ctx", "trained", "warns"),
    [(8192, 2048, True), (2048, 2048, False), (1024, 2048, False), (None, 2048, False), (8192, None, False)],
)
def test_an_option_larger_than_the_model_is_told(num_ctx, trained, warns):
    """With both numbers, since one of them has to be changed."""
    warning = oversized_context(num_ctx, trained)

    assert (warning is not None) is warns
    assert not warns or ("8192" in warning and "2048" in warning)


def test_num_keep_moves_the_mark():
    """More kept of the beginning means more read of a cut prompt."""
    request = GenerateRequest(model="m", prompt=LONG[:30_000], options={"num_ctx": 4096, "num_keep": 1000})

    assert prompt_was_cut(request, GenerateReply(prompt_eval_count=2548))
    assert not prompt_was_cut(request, GenerateReply(prompt_eval_count=2050))


def test_a_chat_is_judged_by_all_its_messages():
    """The texts of a chat count together."""
    messages = [{"role": "user", "content": LONG[:10_000]}] * 3
    request = ChatRequest(model="m", messages=messages, options={"num_ctx": 4096})

    assert prompt_was_cut(request, GenerateReply(prompt_eval_count=2051))
    assert not prompt_was_cut(
        request.model_copy(update={"messages": request.messages[:1]}), GenerateReply(prompt_eval_count=2051)
    )
