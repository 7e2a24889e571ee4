"""The demo's base model: a tokenizer and a tiny Qwen3, trained on the spot to be truly bad at sums.

Its training data are worked examples by someone who mostly forgets to carry, so the wrong procedure is the
model's most likely one, while the right one stays within reach of sampling: what GRPO needs to find it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preftune.demo.arithmetic import words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that loses nothing: each word once with and once without a space before it, each
    digit a token of its own, a space before a number a token of its own. Decoding joins the pieces as they are,
    so ids of "The answer is 85." read "The answer is 85." again."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [PAD, EOS, UNKNOWN, " ", "\n", " +", " -", *"0123456789.,?:"]
    pieces += [space + word for word in words() for space in (" ", "")]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?(?:\p{L}+|[+-])|[^\p{L}+-]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def random_model(vocabulary: int, eos: int, pad: int, seed: int, **kw) -> Qwen3ForCausalLM:
    """A Qwen3 of about a million parameters with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(**{**dict(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad),**kw},
    )
    return Qwen3ForCausalLM(config)
