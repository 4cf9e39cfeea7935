"""A Hugging Face GPT-2's weights as the peers want them, for device.py --peers.

    convert.py MODEL FOLDER

writes `f32.gguf`, `q8_0.gguf` and `q4_0.gguf` for llama.cpp (with the package gguf) and `ct2-float32` and `ct2-int8` for CTranslate2 (with
ctranslate2 and transformers), as far as these packages are installed. The tokens' texts are made up: what is measured takes and gives ids.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy

# Each layer's tensors in the Hugging Face layout (matrices [in, out]), and in GGUF's ([out, in]).
LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def tensors(model):
    from safetensors.numpy import load_file

    found = load_file(model / "model.safetensors")
    return {name.removeprefix("transformer."): values.astype(numpy.float32) for name, values in found.items()}


def named_for_gguf(weights, layers):
    """Each tensor's GGUF name, its values, and whether it is a matrix that products are made with."""
    embedding = weights["wte.weight"]
    yield "token_embd.weight", embedding, True
    yield "output.weight", embedding, True
    yield "position_embd.weight", weights["wpe.weight"], False
    for part in ("weight", "bias"):
        yield f"output_norm.{part}", weights[f"ln_f.{part}"], False
        for layer in range(layers):
            for theirs, ours in LAYER.items():
                values = weights[f"h.{layer}.{theirs}.{part}"]
                yield f"blk.{layer}.{ours}.{part}", numpy.ascontiguousarray(values.T), values.ndim == 2


def write_gguf(path, config, weights, kind):
    import gguf

    size = config["vocab_size"]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{id}" for id in range(size)])
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * size)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(size - 1)
    writer.add_eos_token_id(size - 1)
    for name, values, is_matrix in named_for_gguf(weights, config["n_layer"]):
        if is_matrix and kind is not None:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_ctranslate2(model, folder, size, kind):
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as work:
        words = Tokenizer(models.WordLevel({f"t{id}": id for id in range(size)}, unk_token="t0"))
        special = {"bos_token": f"t{size - 1}", "eos_token": f"t{size - 1}", "unk_token": "t0"}
        PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(work)
        for file in ("config.json", "model.safetensors"):
            shutil.copy(model / file, work)
        TransformersConverter(work).convert(str(folder), quantization=kind, force=True)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model, folder = map(pathlib.Path, sys.argv[1:])
    config = json.loads((model / "config.json").read_text(encoding="utf8"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        from gguf import GGMLQuantizationType as Kind

        weights = tensors(model)
        for name, kind in (("f32", None), ("q8_0", Kind.Q8_0), ("q4_0", Kind.Q4_0)):
            write_gguf(folder / f"{name}.gguf", config, weights, kind)
    except ModuleNotFoundError as missing:
        print(f"no files for llama.cpp: {missing}", file=sys.stderr)
    try:
        for kind in ("float32", "int8"):
            write_ctranslate2(model, folder / f"ct2-{kind}", config["vocab_size"], kind)
    except ModuleNotFoundError as missing:
        print(f"no folders for CTranslate2: {missing}", file=sys.stderr)


if __name__ == "__main__":
    main()
