"""Chat templates are programs that came with a model: they run in a process of their own, with a deadline.

Run as a module, this is that process.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from vr1_jax.media.frames import MediaError
from vr1_jax.media.isolation import IsolatedProcess, serve

DEADLINE_SECONDS = 10.0  # published templates take milliseconds
MEMORY_BYTES = 4 << 30
MOST_CHARACTERS = 100_000  # around the marks; published templates write about a hundred

Messages = list[dict[str, Any]]


class TemplateError(ValueError):
    """A template that does not render; the message says why."""


@dataclass(frozen=True)
class ChatTemplate:
    """Renders conversations whose texts are marks, so that few differ: each is rendered once, and remembered."""

    source: str
    variables: dict[str, str]  # special tokens by their role, which templates may use
    rendered: dict[str, str] = field(default_factory=dict)

    def render(self, messages: Messages, generate: bool) -> str:
        if _key(messages, generate) not in self.rendered:
            self.prepare([messages], generate)
        return self.rendered[_key(messages, generate)]

    def prepare(self, conversations: list[Messages], generate: bool = True) -> None:
        """Render several, in one process."""
        process = IsolatedProcess(__name__, DEADLINE_SECONDS, MEMORY_BYTES)
        request = {
            "conversations": conversations,
            "chat_template": self.source,
            "add_generation_prompt": generate,
            "variables": self.variables,
        }
        try:
            result, _ = process.call("chat template", request)
        except MediaError as error:
            what = (
                f"does not end within {DEADLINE_SECONDS:g} s" if error.reason == "timeout" else "ends its process"
            )
            raise TemplateError(f"the chat template {what}") from error
        finally:
            process.close()
        if "problem" in result:
            raise TemplateError(f"the chat template cannot be rendered: {result['problem']}")
        for messages, text in zip(conversations, result["texts"], strict=True):
            self.rendered[_key(messages, generate)] = text


def _key(messages: Messages, generate: bool) -> str:
    return json.dumps([messages, generate])


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], list]:
    """In the process of the template: the texts, or what is wrong."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(**request.pop("variables"), **request)
        if (longest := max(map(len, texts))) > MOST_CHARACTERS:
            return {"problem": f"it writes {longest} characters"}, []
        return {"texts": [text.encode().decode() for text in texts]}, []  # no lone surrogates
    except Exception as error:  # whatever the template does
        return {"problem": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}, []


if __name__ == "__main__":
    import transformers.utils.chat_template_utils  # noqa: F401 (before the deadline runs)

    serve(_answer)
