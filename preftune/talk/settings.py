"""How answers are drawn in a talk: typed settings, read from flags and from `/set`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from preftune.config import SamplingConfig, Strict
from preftune.errors import UsageError
from preftune.recipes.schema import expected, is_list, nearest, without_none
from preftune.recipes.yamltext import read_value

COMPETITION_TEMPERATURE = 0.5
"""Default in a contest: the form holds better when it is drawn less widely."""


class TalkConfig(Strict):
    """How answers are drawn."""

    temperature: float = Field(
        0.7, ge=0, description=f"0: always the likeliest token; with --style competition {COMPETITION_TEMPERATURE}"
    )
    top_k: int = Field(50, ge=0, description="draw from the k likeliest tokens; 0: all")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the smallest set of tokens with this mass")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="leave out tokens under this share of the likeliest one's probability"
    )
    repetition_penalty: float = Field(1.0, gt=0, description="above 1: tokens that were seen become less likely")
    max_tokens: int | None = Field(None, ge=1, description="longest answer in tokens; null: all that the window leaves")
    context: int | None = Field(
        None, ge=2, description="window in tokens, for prompt and answer together; null: the model's own"
    )
    seed: int | None = Field(None, ge=0, description="seed of the draws; null: another one each time")
    stop: list[str] = Field(default_factory=list, description="text that ends an answer, and is not shown")

    def sampling(self, max_tokens: int) -> SamplingConfig:
        """The sampler's settings for one answer. Its temperature is given to the sampler beside it, as it may be 0."""
        return SamplingConfig(
            max_tokens=max_tokens, temperature=self.temperature or 1.0, top_k=self.top_k, top_p=self.top_p,
            min_p=self.min_p, repetition_penalty=self.repetition_penalty, stop=self.stop, rows=1,
        )  # fmt: skip


def read_settings(given: Mapping[str, Any], base: TalkConfig | None = None, *, flag: str = "") -> TalkConfig:
    """Settings changed by name → value; text is read as YAML, as in a recipe's flags.

    Args:
        flag: what stands before a name in messages.

    Raises:
        UsageError: an unknown name, or a value that does not fit.
    """
    import yaml

    values = {} if base is None else base.model_dump()
    for name, value in given.items():
        if name not in TalkConfig.model_fields:
            near = nearest(name, TalkConfig.model_fields)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(TalkConfig.model_fields)}"
            raise UsageError(f"no setting is named {name!r}; {hint}")
        info = TalkConfig.model_fields[name]
        wrong = f"{flag}{name}: got {value!r}; expected {expected(info.annotation, info.metadata)}"
        if isinstance(value, str):
            try:
                read = read_value(value)
            except yaml.YAMLError:
                raise UsageError(wrong) from None
            # One stop string needs no brackets, and is text whatever it looks like.
            value = [value] if is_list(info.annotation) and not isinstance(read, list) and read is not None else read
        if value is None and not without_none(info.annotation)[1]:
            value = info.get_default(call_default_factory=True)
        if isinstance(value, bool) or (isinstance(value, list) and not all(isinstance(v, str) and v for v in value)):
            raise UsageError(wrong)
        try:
            TalkConfig.model_validate({name: value})
        except ValidationError:
            raise UsageError(wrong) from None
        values[name] = value
    return TalkConfig.model_validate(values)


def read_system(text: str) -> str:
    """A system prompt: the text itself, or a UTF-8 file's after `@`, its last line break left off.

    Raises:
        UsageError: a file that can't be read.
    """
    if not text.startswith("@"):
        return text
    path = Path(text[1:]).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"system prompt {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"system prompt {path} can't be read: {error.strerror}") from None
