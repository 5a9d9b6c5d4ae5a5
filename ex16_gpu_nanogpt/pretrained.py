"""Start from GPT-2's weights, or a trained model's, in exercise 17 or 16, and export models for Hugging Face.

    python ex16_gpu_nanogpt/pretrained.py --init-from path/to/gpt2 --save runs/finetune/checkpoint.pt
    python ex17_ddp_openwebtext/train.py --resume --out runs/finetune --data path/to/documents.txt
    python ex16_gpu_nanogpt/pretrained.py --init-from ex16_gpu_nanogpt/out/best.pt --export path/to/folder

The first takes a local copy of huggingface.co/openai-community/gpt2 (or -medium, -large, -xl: config.json and
model.safetensors) and writes a checkpoint of step 0: these weights, and an optimizer that has seen nothing. train.py
goes on from it as from any other. The last writes a model that transformers' GPT2LMHeadModel.from_pretrained reads.
GPT-2 stores its matrices transposed; apart from that only the names differ.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common import UserError, checkpoint
from common.openwebtext import END_OF_TEXT
from common.program import clean_exit

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from train import Config as TrainConfig
from train import Transformer

NAMES = {  # of the modules: ours, theirs
    "embedding": "wte",
    "positions": "wpe",
    "blocks": "h",
    "norm1": "ln_1",
    "attention": "attn",
    "qkv": "c_attn",
    "out": "c_proj",
    "norm2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
    "norm": "ln_f",
}


@dataclass
class Config:
    init_from: Path = Path(__file__).parent / "out" / "best.pt"  # folder or safetensors file of a GPT-2, or checkpoint
    save: Path | None = None  # file to write a checkpoint of step 0 to; training goes on from FOLDER/checkpoint.pt
    export: Path | None = None  # folder to write the model to, for transformers


def their_name(name):
    """Return what Hugging Face calls one of our parameters."""
    *parts, kind = name.split(".")
    return ".".join([*(NAMES.get(part, part) for part in parts), kind])


def transposed(name):
    """Return whether Hugging Face stores this parameter of ours transposed."""
    return name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight"))


def from_hugging_face(path, heads=None):
    """Return the configuration and the model of GPT-2 weights in a folder or a safetensors file.

    The number of heads comes from the folder's config.json; without it a head has 64 channels, as in all of OpenAI's.
    Raises UserError if the file is missing, damaged, or not of a GPT-2.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
        vocab_size, channels = tensors["wte.weight"].shape
        layers = len({name.split(".")[1] for name in tensors if name.startswith("h.")})
        settings = json.loads((path / "config.json").read_text()) if path.is_dir() else {}
        heads = heads or settings.get("n_head", channels // 64)
        sizes = {"layers": layers, "heads": heads, "channels": channels, "block_size": len(tensors["wpe.weight"])}
        config = TrainConfig(**sizes, bias=True)
        model = Transformer(config, vocab_size)
        state = {name: tensors[their_name(name)] for name in model.state_dict() if name != "head.weight"}
        state = {name: tensor.T if transposed(name) else tensor for name, tensor in state.items()}
        model.load_state_dict(state | {"head.weight": state["embedding.weight"]})
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {error.filename or file}: give --init-from a folder with model.safetensors, as of "
            "huggingface.co/openai-community/gpt2"
        ) from None
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError):
        raise UserError(f"{file} does not hold all weights of a GPT-2: download it again") from None
    return config, model


def to_hugging_face(model, vocab, folder):
    """Write config.json and model.safetensors, which transformers reads as a GPT2LMHeadModel, into a folder.

    A model without biases gets biases of 0. Where `vocab` is None, for GPT-2's tokens, the tokens that pad exercise
    17's vocabulary are left out, since GPT-2's tokenizer cannot decode them. Raises UserError if the folder cannot be
    written to.
    """
    state = model.state_dict()
    if vocab is None:
        state["embedding.weight"] = state["embedding.weight"][: END_OF_TEXT + 1]
    positions, channels = state["positions.weight"].shape
    end = END_OF_TEXT if len(state["embedding.weight"]) > END_OF_TEXT else None
    for name in [name for name in state if name.endswith(".weight")]:
        if "norm" in name or transposed(name):
            state.setdefault(name.replace(".weight", ".bias"), torch.zeros(len(state[name])))
    state.pop("head.weight")  # the same as the embedding's
    tensors = {
        "transformer." + their_name(name): (tensor.T if transposed(name) else tensor).contiguous().cpu()
        for name, tensor in state.items()
    }
    settings = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": len(state["embedding.weight"]),
        "n_positions": positions,
        "n_embd": channels,
        "n_layer": len(model.blocks),
        "n_head": model.blocks[0].attention.heads,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write to the folder {folder} ({error}): choose another with --export") from None


def load_model(path):
    """Return a model, its vocabulary (None: GPT-2's tokens) and its flags, of GPT-2's weights or of a checkpoint.

    Raises UserError as `from_hugging_face` and `checkpoint.read_torch` do.
    """
    if path.is_dir() or path.suffix == ".safetensors":
        config, model = from_hugging_face(path)
        vocab, flags = None, {name: getattr(config, name) for name in (*checkpoint.SIZES, "bias")}
        return model, vocab, flags | {"vocab_size": len(model.embedding.weight)}
    saved = checkpoint.read_torch(TrainConfig, path)
    model = Transformer(saved["config"], len(saved["model"]["embedding.weight"]))
    model.load_state_dict(saved["model"])
    return model, saved["vocab"], saved["flags"]


def save_step_0(model, vocab, flags, path):
    """Write a checkpoint that train.py resumes at step 0; UserError where it would replace that of a run."""
    if path.exists() and checkpoint.read_torch(TrainConfig, path).get("step"):
        raise UserError(f"{path} is the checkpoint of a run: name another file with --save")
    state = {"config": flags, "vocab": vocab, "model": model.state_dict(), "step": 0, "rng": torch.get_rng_state()}
    state |= {"optimizers": [{}] * (2 if flags.get("muon") else 1), "cuda_rng": []}
    checkpoint.write_torch(state | {"run": {"sizes": {}, "latest": {}, "least": {}, "seconds": 0.0}}, path)


def main(config: Config) -> None:
    if not config.save and not config.export:
        raise UserError("nothing to do: give --save FILE, or --export FOLDER, or both")
    model, vocab, flags = load_model(config.init_from)
    print(f"{config.init_from}: {sum(param.numel() for param in model.parameters()):,} parameters")
    if config.save:
        save_step_0(model, vocab, flags, config.save)
        print(f"{config.save}: a checkpoint of step 0")
    if config.export:
        to_hugging_face(model, vocab, config.export)
        print(f"{config.export}: for transformers' GPT2LMHeadModel.from_pretrained")


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
