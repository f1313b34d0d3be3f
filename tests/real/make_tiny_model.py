"""Writes a llama model of random weights as a GGUF file, some hundred kilobytes.

It is a real model to a real server: it loads, takes tokens and gives tokens. Its words mean nothing.

usage: make_tiny_model.py FILE
"""

import sys

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, INNER, CONTEXT = 64, 2, 4, 128, 2048

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"

WORDS = "the a of to and in is it you that he was for on are with as his they be at one have this from".split()


def vocabulary():
    """Token texts with their types and scores: controls, every byte, letters, and some words."""
    kinds = gguf.TokenType
    yield b"<unk>", kinds.UNKNOWN, 0.0
    yield b"<s>", kinds.CONTROL, 0.0
    yield b"</s>", kinds.CONTROL, 0.0
    for byte in range(256):
        yield f"<0x{byte:02X}>".encode(), kinds.BYTE, 0.0
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    for rank, text in enumerate(letters + ["\u2581"] + ["\u2581" + word for word in WORDS]):
        yield text.encode(), kinds.NORMAL, -float(rank + 1)


def main(path):
    tokens, kinds, scores = (list(column) for column in zip(*vocabulary()))
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_file_type(0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)

    def weights(name, *shape):
        writer.add_tensor(name, random.normal(0, 0.05, shape).astype(np.float32))

    def ones(name):
        writer.add_tensor(name, np.ones(WIDTH, np.float32))

    weights("token_embd.weight", len(tokens), WIDTH)
    ones("output_norm.weight")
    weights("output.weight", len(tokens), WIDTH)
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        ones(prefix + "attn_norm.weight")
        ones(prefix + "ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"{prefix}{part}.weight", WIDTH, WIDTH)
        weights(prefix + "ffn_gate.weight", INNER, WIDTH)
        weights(prefix + "ffn_up.weight", INNER, WIDTH)
        weights(prefix + "ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
