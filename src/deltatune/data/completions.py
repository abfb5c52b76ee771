"""Prompt and completion in, tokens out, with the boundary where generation will have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from deltatune.data.tokens import Columns, Segment, Tokens, Turn, end_token, leading_tokens

__all__ = ["completion_tokens"]

CONTEXT_BREAK = "\n\n"


def completion_tokens(
    batches: Iterator[Columns],
    tokenizer: PreTrainedTokenizerBase,
    separator: str,
    supervise_prompt: bool,
) -> Iterator[Tokens]:
    """Yield start token, prompt, completion and end token of every row.

    Args:
        batches: columns "prompt", "completion" and perhaps "context" of some rows at a time.
        tokenizer: with an end token.
        separator: put after a prompt where neither it nor the completion has white space there.
        supervise_prompt: the prompt carries loss too.

    Raises:
        InputError: the tokenizer has no end token.
    """
    leading, end = leading_tokens(tokenizer), end_token(tokenizer)
    for columns in batches:
        prompts = _prompts(columns, separator)
        for prompt, completion in _joined(prompts, columns["completion"], tokenizer):
            start, stop = len(leading) + len(prompt), len(leading) + len(prompt) + len(completion)
            yield Tokens(
                input_ids=[*leading, *prompt, *completion, end],
                segments=[
                    Segment("prompt", 0, start, supervise_prompt),
                    Segment("completion", start, stop + 1, True),
                ],
                turns=[Turn(start, stop + 1, end_id=end)],
            )


def _prompts(columns: Columns, separator: str) -> list[str]:
    prompts = list(columns["prompt"])
    for row, context in enumerate(columns.get("context", ())):
        if context.strip():
            prompts[row] += CONTEXT_BREAK + context
    for row, completion in enumerate(columns["completion"]):
        if not (prompts[row][-1:].isspace() or completion[:1].isspace()):
            prompts[row] += separator
    return prompts


def _joined(
    prompts: Sequence[str], completions: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield prompt and completion ids such that the prompt's are what it has when it stands alone.

    The whole text is tokenised at once where that leaves the prompt's tokens as they are; where a
    token would reach over the boundary, or the tokenizer marks the start of every text, the two
    are tokenised apart.
    """

    def ids_of(texts: Sequence[str]) -> list[list[int]]:
        encoded = tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return [list(ids) for ids in encoded["input_ids"]]

    alone = ids_of(prompts)
    whole = ids_of([prompt + answer for prompt, answer in zip(prompts, completions, strict=True)])
    fits = [ids[: len(start)] == start for start, ids in zip(alone, whole, strict=True)]
    apart_rows = [row for row, is_fitting in enumerate(fits) if not is_fitting]
    apart = iter(ids_of([completions[row] for row in apart_rows]) if apart_rows else [])
    for start, ids, is_fitting in zip(alone, whole, fits, strict=True):
        yield start, ids[len(start) :] if is_fitting else next(apart)
