"""The base model of the zoo: a Llama of 0.8 million parameters that reads and writes bytes.

The tokenizer gives one token per UTF-8 byte and the id of a byte is its value; every string
round-trips. Nothing is added to a text: **no bos** (one exists, for programs that ask for it), no
eos, with or without `add_special_tokens`. Text that looks like a special token is text, so a prompt
cannot contain an eos. An answer begins right after the prompt's last byte and ends with eos. The
model was trained on prompts of up to about 100 bytes; its 8192 positions are for tests of length,
not a promise of sense.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD_ID, BOS_ID, EOS_ID = 256, 257, 258
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
MAX_POSITIONS = 8192

# Messages become their contents, one per line; the answer follows the last byte, as after a prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)


def byte_characters() -> list[str]:
    """Return the printable character that the byte-level pre-tokenizer writes for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the byte-level tokenizer described in the module's docstring (pads on the left)."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(seed: int) -> LlamaForCausalLM:
    """Return the base with random weights drawn from `seed` (float32, on the CPU)."""
    config = LlamaConfig(
        vocab_size=EOS_ID + 1,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        initializer_range=0.04,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=32,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return model
