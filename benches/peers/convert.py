"""A model's weights as the peers want them, for device.py --peers.

    convert.py MODEL FOLDER

writes, of a Hugging Face GPT-2, `f32.gguf`, `q8_0.gguf` and `q4_0.gguf` for llama.cpp (with the package gguf) and `ct2-float32` and `ct2-int8`
for CTranslate2 (with ctranslate2 and transformers), as far as these packages are installed. The tokens' texts are made up: what is
measured takes and gives ids.

Of a GGUF file it writes the same three for llama.cpp, with all matrices in that type and everything else as it was, and `own.gguf`, which
is the file.
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


def rewrite_gguf(path, reader, kind):
    """The file again with its matrices in another type; None stands for f32. Vectors are f32, as ever."""
    import gguf

    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind is None else f"MOSTLY_{kind.name}"])
    for name, field in reader.fields.items():
        # The writer's own, or given above.
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=element)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32, copy=False)
        if kind is None or values.ndim < 2:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
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
    is_gguf = model.suffix == ".gguf"
    config = {} if is_gguf else json.loads((model / "config.json").read_text(encoding="utf8"))
    if not is_gguf and config["model_type"] != "gpt2":
        sys.exit(f"{model} is a {config['model_type']}; of these, give the GGUF file")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import gguf

        kinds = {"f32": None, "q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
        source = gguf.GGUFReader(model) if is_gguf else tensors(model)
        for name, kind in kinds.items():
            if is_gguf:
                rewrite_gguf(folder / f"{name}.gguf", source, kind)
            else:
                write_gguf(folder / f"{name}.gguf", config, source, kind)
    except ModuleNotFoundError as missing:
        print(f"no files for llama.cpp: {missing}", file=sys.stderr)
    if is_gguf:
        own = folder / "own.gguf"
        own.unlink(missing_ok=True)
        own.symlink_to(model.resolve())
        return
    try:
        for kind in ("float32", "int8"):
            write_ctranslate2(model, folder / f"ct2-{kind}", config["vocab_size"], kind)
    except ModuleNotFoundError as missing:
        print(f"no folders for CTranslate2: {missing}", file=sys.stderr)


if __name__ == "__main__":
    main()
