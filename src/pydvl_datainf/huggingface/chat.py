"""Where the answers of a conversation stand in what a chat template writes."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.records import Placed

Messages: TypeAlias = Sequence[Mapping[str, Any]]
Span: TypeAlias = tuple[int, int]

MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
PRIVATE = [chr(code) for code in range(0xE000, 0xF900)]
"""Characters that Unicode leaves to private use, as no template writes them."""


def answers_in(tokenizer: Any, messages: Messages, placed: Placed) -> tuple[str, list[Span]]:
    """Writes a conversation in the tokenizer's chat template, and finds the answers in it.

    A template that marks answers by `{% generation %}` says itself what they are. Otherwise an
    answer is what changes with the assistant's message, and the end of its turn follows: the
    template is asked once more for each answer, set between two characters that are nowhere else.
    What the template writes before, such as who speaks or an empty thought, does not belong to it.

    Args:
        tokenizer: with a chat template.
        messages: mappings with role and content.
        placed: the record, for messages.

    Returns:
        The text, and for each answer from which to which character it reaches.

    Raises:
        SourceError: if there is no template, it does not take the conversation, or hides where an
            answer is.
    """
    if tokenizer.chat_template is None:
        raise SourceError("The tokenizer has no chat template; write prompts out as plain text.")

    def write(messages: Messages, prompt: bool = False) -> str:
        with template_refusals(placed):
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=prompt
                )
            )

    with template_refusals(placed):
        template = tokenizer.get_chat_template()
        if MARK.search(template):
            return _marked(tokenizer, template, messages)
    text = write(messages)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = {i: _span(write, messages, i, text) for i in turns}
    for i, span in spans.items():
        if span is None:
            raise SourceError(
                f"{placed[0]}: the chat template does not show where the answer in turn {i} is, or "
                "where it ends, once others follow. Write the texts out in a prompt and an answer "
                "column, or mark answers in the template by {% generation %}."
            )
    return text, [span for span in spans.values() if span is not None]


@contextmanager
def template_refusals(placed: Placed) -> Iterator[None]:
    """Tells of a conversation that a chat template does not take.

    Args:
        placed: the record of the conversation, for messages.

    Yields:
        Nothing.

    Raises:
        SourceError: if anything was raised inside.
    """
    try:
        yield
    except Exception as error:  # templates are programs, and raise anything
        raise SourceError(
            f"{placed[0]}: the chat template does not take this conversation: {error}"
        ) from error


def _marked(tokenizer: Any, template: str, messages: Messages) -> tuple[str, list[Span]]:
    """What the template marks, by characters: the tokenizer's own mask misses some at borders."""
    (text,), (spans,) = imported("transformers.utils.chat_template_utils").render_jinja_template(
        conversations=[messages],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return text, spans


def _span(write: Callable[..., str], messages: Messages, i: int, text: str) -> Span | None:
    """The answer in turn i and the end of its turn; None = the template hides them."""
    content = messages[i]["content"].strip()
    taken = text + content
    first, last = [character for character in PRIVATE if character not in taken][:2]
    framed = {**messages[i], "content": f"{first}{content}{last}"}
    others = messages[:i], messages[i + 1 :]
    alone, whole = (write([*others[0], framed, *rest]) for rest in ((), others[1]))
    if alone.count(last) != 1 or whole.count(last) != 1 or whole.count(first) > 1:
        return None
    until, _, after = whole.partition(last)
    end, stop = alone.partition(last)[2], len(text) - len(after)
    if first in until:
        before: str | None = until.partition(first)[0]
    else:  # it tells thoughts from what is said, and drops what stands before them
        bare = write([*others[0], {**framed, "content": first}, *others[1]]).partition(first)[0]
        before = bare if text.startswith(bare) else _prompt(write, others[0])
    if before is None or len(before) > stop:
        return None
    shown = text.startswith(before) and text.endswith(after) and text.startswith(end, stop)
    return (len(before), stop + len(end)) if shown else None


def _prompt(write: Callable[..., str], messages: Messages) -> str | None:
    """What a template writes before the assistant's turn; None = it cannot be asked for it."""
    asked = write(messages, prompt=True) if messages else ""
    return asked if messages and asked != write(messages) else None
