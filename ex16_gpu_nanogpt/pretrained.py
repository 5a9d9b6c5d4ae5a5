"""Import GPT-2's weights into exercise 16, and export its models, as files of Hugging Face's transformers.

    python ex16_gpu_nanogpt/pretrained.py --init-from gpt2 --weights path/to/gpt2
    python ex16_gpu_nanogpt/sample.py --checkpoint ex16_gpu_nanogpt/out/gpt2.pt --prompt "The meaning of life is"
    python ex16_gpu_nanogpt/pretrained.py --export path/to/folder

The first takes a local copy of huggingface.co/openai-community/gpt2 (its model.safetensors, 548 MB) and writes a
checkpoint that sample.py reads. The last writes a trained model as transformers' GPT2LMHeadModel.from_pretrained reads
it. GPT-2 stores its matrices transposed; apart from that only the names differ.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common import UserError, checkpoint
from common.program import clean_exit

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from train import Config as TrainConfig
from train import Transformer

SHAPES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}
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
    init_from: Literal["none", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = "none"  # OpenAI's model to import
    weights: Path | None = None  # folder of that model from Hugging Face, or its safetensors file
    checkpoint: Path = Path(__file__).parent / "out" / "best.pt"  # model to export if --init-from is none
    save: Path = Path(__file__).parent / "out" / "gpt2.pt"  # file to write the imported model to
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
            f"there is no {error.filename or file}: give --weights a folder with model.safetensors, for example from "
            "huggingface.co/openai-community/gpt2"
        ) from None
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError):
        raise UserError(f"{file} does not hold all weights of a GPT-2: download it again") from None
    return config, model


def to_hugging_face(config, model, folder):
    """Write config.json and model.safetensors, which transformers reads as a GPT2LMHeadModel, into a folder.

    A model without biases gets biases of 0. Raises UserError if the folder cannot be written to.
    """
    state = model.state_dict()
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
        "vocab_size": len(model.embedding.weight),
        "n_positions": config.block_size,
        "n_embd": config.channels,
        "n_layer": config.layers,
        "n_head": config.heads,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write to the folder {folder} ({error}): choose another with --export") from None


def main(config: Config) -> None:
    if config.init_from == "none" and not config.export:
        raise UserError("nothing to do: give --init-from and --weights, or --export, or all of them")
    if config.init_from == "none":
        saved = checkpoint.read_torch(TrainConfig, config.checkpoint)
        shape = saved["config"]
        model = Transformer(shape, len(saved["model"]["embedding.weight"]))
        model.load_state_dict(saved["model"])
    else:
        if config.weights is None:
            raise UserError(f"--weights must name a local copy of huggingface.co/openai-community/{config.init_from}")
        shape, model = from_hugging_face(config.weights)
        found = (shape.layers, shape.heads, shape.channels)
        if found != SHAPES[config.init_from]:
            raise UserError(f"{config.weights} has layers, heads and channels {found}, not {SHAPES[config.init_from]}")
        flags = {name: value for name, value in asdict(shape).items() if name != "out"}
        checkpoint.write_torch({"config": flags, "vocab": None, "model": model.state_dict()}, config.save)
        print(f"{config.save}: {sum(param.numel() for param in model.parameters()):,} parameters")
    if config.export:
        to_hugging_face(shape, model, config.export)
        print(f"{config.export}: for transformers' GPT2LMHeadModel.from_pretrained")


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
