"""The card's section on use: code for plain transformers (and peft) that runs in the run's folder as it stands.

Values from the run are written as Python literals, so none can end the string that it stands in.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from preftune.report import preference_words, words
from preftune.report.markdown import fenced
from preftune.report.read import Run, as_number

SHORT = 300
"""Characters of a prompt that may stand in the code."""
TURN = re.compile(
    r"<\|im_start\|>user\n(.*?)<\|im_end\|>|<\|start_header_id\|>user<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", re.S
)
"""A user's turn in the two most used chat templates."""


def is_adapter(run: Run) -> bool:
    """Whether the run made an adapter; before it is saved the recipe says so."""
    if (run.folder / "final").is_dir():
        return (run.folder / "final" / "adapter_config.json").exists()
    model = run.recipe.get("model")
    return isinstance(model, dict) and model.get("lora") is not None


def usage(run: Run) -> str:
    """How to load and ask the model in `final/`."""
    if preference_words.is_score(run):
        return _reward_usage(run)
    adapter = is_adapter(run)
    code = [
        "import torch",
        *(["from peft import PeftModel"] if adapter else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        'tokenizer = AutoTokenizer.from_pretrained("final")',
    ]
    if adapter:
        code += [
            f"base = AutoModelForCausalLM.from_pretrained({_literal(run.model or 'BASE MODEL')})",
            'model = PeftModel.from_pretrained(base, "final").to(device).eval()',
        ]
    else:
        code.append('model = AutoModelForCausalLM.from_pretrained("final").to(device).eval()')
    code += ["", *_ask(run), *_generate(run)]
    kind = "an adapter; its base model is loaded with it" if adapter else "the whole trained model"
    text = f"`final/` is {kind}. On the Hub its place is the repository's own id.\n\n"
    return text + fenced("\n".join(code), "python")


def _ask(run: Run) -> list[str]:
    """Lines that make `inputs` out of a prompt, by the chat template where the run was prompted by one."""
    texts = run.answers.texts.values() if run.answers is not None else ()
    shown = next((s.prompt for s in (*reversed(run.samples), *texts) if s.prompt), "")
    if not is_chat(run, shown):
        return [
            f"prompt = {_literal(shown if 0 < len(shown) <= SHORT else 'Your prompt')}",
            'inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(device)',
        ]
    found = TURN.findall(shown)
    question = next((text.strip() for text in found[-1] if text), "") if found else ""
    question = question if 0 < len(question) <= SHORT else "What kind of sport do you like?"
    kwargs = words.section(run, "tokens").get("chat_template_kwargs")
    # Names that are no identifiers would be no keyword arguments.
    given = {k: v for k, v in kwargs.items() if str(k).isidentifier()} if isinstance(kwargs, dict) else {}
    more = "".join(f", {name}={_literal(value)}" for name, value in given.items())
    return [
        f'messages = [{{"role": "user", "content": {_literal(question)}}}]',
        f"text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True{more})",
        'inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(device)',
    ]


def _generate(run: Run) -> list[str]:
    temperature, tokens = drawn(run)
    how = "do_sample=False" if temperature == 0.0 else f"do_sample=True, temperature={temperature:g}"
    stop = words.section(run, "sampling").get("stop")
    stops = [str(text) for text in stop] if isinstance(stop, list) else []
    how += f", stop_strings={_literal(stops)}, tokenizer=tokenizer" if stops else ""
    return [
        "with torch.no_grad():",
        f"    out = model.generate(**inputs, max_new_tokens={tokens}, {how})",
        'print(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def drawn(run: Run) -> tuple[float, int]:
    """Temperature and most tokens of answers to held-out prompts."""
    measured, sampling = words.section(run, "eval"), words.section(run, "sampling")
    temperature = as_number(measured.get("temperature"))
    tokens = as_number(measured.get("max_tokens")) or as_number(sampling.get("max_tokens")) or 256.0
    usable = temperature is not None and math.isfinite(temperature) and temperature > 0.0
    return (temperature if usable and temperature is not None else 0.0), int(tokens) if math.isfinite(tokens) else 256


def is_chat(run: Run, prompt: str) -> bool:
    """Whether prompts were rendered by the model's chat template: it has one, and one of its special tokens stands in
    the prompt. A prompt without is used as it is, which is right however it was made."""
    final = run.folder / "final"
    config = _json(final / "tokenizer_config.json")
    if not (config.get("chat_template") or (final / "chat_template.jinja").is_file()):
        return False
    added = [
        t.get("content") for t in _list(_json(final / "tokenizer.json").get("added_tokens")) if isinstance(t, dict)
    ]
    specials = [text for text in added if isinstance(text, str) and text]
    first = config.get("bos_token")
    body = prompt.removeprefix(first) if isinstance(first, str) else prompt
    return any(text in body for text in specials)


def _json(path: Any) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _literal(value: object) -> str:
    """A Python literal: a string in double quotes, letters of every script as they are, what can't be seen escaped."""
    if isinstance(value, str):
        shown = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in shown)
    if isinstance(value, list):
        return f"[{', '.join(_literal(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(str(k))}: {_literal(v)}' for k, v in value.items())}}}"
    return repr(value)


def _reward_usage(run: Run) -> str:
    """A snippet for a reward model in plain transformers, with its normalisation where the model carries one."""
    prompt, completion = "Your prompt", "An answer to it"
    texts = run.answers.texts if run.answers is not None else {}
    first = next(iter(texts.values()), None)
    if first is not None and len(first.prompt) + len(first.text) <= 600:
        prompt, completion = first.prompt, first.text
    normal = normalization(run)
    code = [
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("final")',
        'model = AutoModelForSequenceClassification.from_pretrained("final").eval()',
        f"prompt = {_literal(prompt)}",
        f'completions = [{_literal(completion)}, "Another one."]',
        "texts = [prompt + completion + tokenizer.eos_token for completion in completions]",
        'inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)',
        "with torch.no_grad():",
        "    scores = model(**inputs).logits[:, 0]  # one raw score each; higher is better",
    ]
    if normal is not None:
        code.append("scores = (scores - model.config.preftune_reward_mean) / model.config.preftune_reward_std")
    code.append("print(scores.tolist())")
    text = (
        "`final/` is a sequence classifier with one label; on the Hub its place is the repository's own id. Scores of "
        "one prompt compare its completions; across prompts they need not mean the same. With a chat model, write the "
        "prompt with `tokenizer.apply_chat_template(…, add_generation_prompt=True, tokenize=False)`, and end a "
        "completion as the template ends a turn. A plain prompt begins with `tokenizer.bos_token` where the "
        "tokenizer adds one.\n\n"
    )
    if normal is not None:
        text += (
            f"Raw scores on the training set have mean {words.number(normal[0])} and standard deviation "
            f"{words.number(normal[1])}; both are in the model's config.\n\n"
        )
    elif run.answers is not None:
        text += "The scores are raw: no scale was recorded (`train.normalize: true` records one).\n\n"
    return text + fenced("\n".join(code), "python")


def normalization(run: Run) -> tuple[float, float] | None:
    """Mean and standard deviation that a reward model's config carries; None without them."""
    try:
        config = json.loads((run.folder / "final" / "config.json").read_text(encoding="utf-8"))
        mean, std = float(config["preftune_reward_mean"]), float(config["preftune_reward_std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (mean, std) if math.isfinite(mean) and math.isfinite(std) and std > 0 else None
