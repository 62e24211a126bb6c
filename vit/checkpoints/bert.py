"""transformers' BERT and RoBERTa: recognised by their keys, renamed by one table, with their three projections fused.

model, left_out = load_text_encoder("folder")      # with config.json and weights, as transformers writes them
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vit.checkpoints.content import read_json
from vit.checkpoints.read import read_tensors, refuse_link
from vit.checkpoints.strict import match, refuse_nonfinite
from vit.checkpoints.transformers_config import ACTIVATIONS
from vit.foundation import UserError
from vit.models.text import TextEncoder, text_encoder

POSITIONS = "embeddings.position_embeddings.weight"

# (ours, theirs): the whole of a key, or of the part of it behind `encoder.blocks.N.` and `encoder.layer.N.`
EMBED_TABLE = (
    ("encoder.embed.token_embed.weight", "embeddings.word_embeddings.weight"),
    ("encoder.embed.pos_embed", POSITIONS),
    ("encoder.embed.type_embed.weight", "embeddings.token_type_embeddings.weight"),
    ("encoder.embed.norm.weight", "embeddings.LayerNorm.weight"),
    ("encoder.embed.norm.bias", "embeddings.LayerNorm.bias"),
    ("pooler.weight", "pooler.dense.weight"),
    ("pooler.bias", "pooler.dense.bias"),
)
BLOCK_TABLE = (
    ("attn.proj.weight", "attention.output.dense.weight"),
    ("attn.proj.bias", "attention.output.dense.bias"),
    ("norm1.weight", "attention.output.LayerNorm.weight"),
    ("norm1.bias", "attention.output.LayerNorm.bias"),
    ("mlp.fc1.weight", "intermediate.dense.weight"),
    ("mlp.fc1.bias", "intermediate.dense.bias"),
    ("mlp.fc2.weight", "output.dense.weight"),
    ("mlp.fc2.bias", "output.dense.bias"),
    ("norm2.weight", "output.LayerNorm.weight"),
    ("norm2.bias", "output.LayerNorm.bias"),
)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as transformers writes them now, and wrote them before
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
PROJECTIONS = ("query", "key", "value")

# Model types whose code computes what ours does. Others have the same keys, too: Megatron's norms stand elsewhere.
PLAIN = ("bert", "bert-generation", "electra", "ernie", "splinter")
BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert")  # the first word has the place behind that of padding


def recognises(tensors: dict[str, Tensor]) -> bool:
    """Whether these are the keys of transformers' BERT."""
    required = {"embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"}
    return required <= _plain(tensors).keys()


def to_ours(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """transformers' state dict under our names, and the keys that were left out: heads of training tasks.

    A key that nobody knows keeps its name.
    """
    rest = _plain(tensors)
    rest.pop("embeddings.position_ids", None)  # 0, 1, 2 ..., which older releases stored
    left_out = [name for name in rest if name.startswith(("cls.", "lm_head."))]
    rest = {name: value for name, value in rest.items() if name not in left_out}
    state = {ours: rest.pop(theirs) for ours, theirs in EMBED_TABLE if theirs in rest}
    if "encoder.embed.pos_embed" in state:
        state["encoder.embed.pos_embed"] = state["encoder.embed.pos_embed"][None]
    for number in range(_depth(rest)):
        ours_prefix, theirs_prefix = f"encoder.blocks.{number}.", f"encoder.layer.{number}."
        for ours, theirs in BLOCK_TABLE:
            if theirs_prefix + theirs in rest:
                state[ours_prefix + ours] = rest.pop(theirs_prefix + theirs)
        for kind in ("weight", "bias"):
            names = [f"{theirs_prefix}attention.self.{projection}.{kind}" for projection in PROJECTIONS]
            if all(name in rest for name in names):
                state[f"{ours_prefix}attn.qkv.{kind}"] = torch.cat([rest.pop(name) for name in names])
    return {**state, **rest}, left_out


def architecture(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """The keywords of `text_encoder` for tensors and the config.json beside them.

    Raises:
        UserError: when the config is of another kind of model, or does not say how many heads there are.
    """
    tensors = _plain(tensors)
    kind, decodes = config.get("model_type", "bert"), config.get("is_decoder", False)
    if kind not in PLAIN + BEHIND_PADDING or decodes:
        raise UserError(
            f"The config has model_type {kind!r:.60} and is_decoder {decodes!r:.60}.\n"
            f"Allowed are {', '.join(PLAIN + BEHIND_PADDING)}, and no decoder, whose words see those before them alone."
        )
    act, positions = config.get("hidden_act", "gelu"), config.get("position_embedding_type", "absolute")
    if act not in ACTIVATIONS or positions != "absolute":
        raise UserError(
            f"The config has hidden_act {act!r} and position_embedding_type {positions!r}.\n"
            f"Allowed are {', '.join(ACTIVATIONS)}, and 'absolute'."
        )
    if "num_attention_heads" not in config:
        raise UserError("The config does not say how many heads the model has: num_attention_heads is missing.")
    words, hidden = tensors["embeddings.word_embeddings.weight"], tensors["encoder.layer.0.intermediate.dense.bias"]
    types = tensors.get("embeddings.token_type_embeddings.weight")
    return {
        "vocab_size": words.shape[0],
        "max_tokens": tensors[POSITIONS].shape[0],
        "embed_dim": words.shape[1],
        "depth": _depth(tensors),
        "num_heads": int(config["num_attention_heads"]),
        "token_types": 0 if types is None else types.shape[0],
        "mlp_ratio": hidden.shape[0] / words.shape[1],
        "act": ACTIVATIONS[act],
        "norm_eps": float(config.get("layer_norm_eps", 1e-12)),
        "pooler": "pooler.dense.weight" in tensors,
    }


def load_text_encoder(place: str | Path) -> tuple[TextEncoder, list[str]]:
    """The text encoder of a folder with config.json and weights, and the keys that were left out.

    Args:
        place: the folder, or the file of weights in it.

    Raises:
        UserError: when the folder can't be read, or holds no BERT, or one whose tensors do not fit.
    """
    folder = _folder(place)
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()] or [folder / WEIGHTS[0]]
    if folder == Path(place):
        refuse_link(weights[0])
    tensors = read_tensors(weights[0] if folder == Path(place) else Path(place))
    if not recognises(tensors):
        raise UserError(
            f"{folder} holds no BERT: its first tensors are {', '.join(list(tensors)[:3])}.\n"
            "Allowed are text encoders as transformers' BertModel writes them."
        )
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} has no {CONFIG}, which says how many heads it has.\nPut it beside the weights.")
    config = read_json(folder / CONFIG)
    try:
        tensors = _from_first_word(tensors, config)
        keywords = architecture(tensors, config)
        model = text_encoder(**keywords)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{folder} can't be read as a BERT: {type(error).__name__}: {error}") from None
    state, left_out = to_ours(tensors)
    match(model, state).require(folder)
    refuse_nonfinite(state, folder)
    model.load_state_dict(state)
    return model.eval(), left_out


def _from_first_word(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors with positions that start at the first word; RoBERTa has rows before it."""
    if config.get("model_type") not in BEHIND_PADDING:
        return tensors
    tensors = _plain(tensors)
    pad, rows = config.get("pad_token_id", 1), tensors[POSITIONS].shape[0]
    if type(pad) is not int or not 0 <= pad <= rows - 2:
        raise UserError(f"The config has pad_token_id {pad!r:.60}; allowed are 0 to {rows - 2}.")
    return {**tensors, POSITIONS: tensors[POSITIONS][pad + 1 :]}


def _folder(place: str | Path) -> Path:
    """The folder, or that of a file in it."""
    return Path(place).parent if Path(place).is_file() else Path(place)


def load_tokenizer(place: str | Path, model: TextEncoder) -> Tokenizer:
    """The tokenizer beside the weights, tokenizer.json, as the tokenizers library writes it; texts are not cut short.

    Args:
        place: as `load_text_encoder` takes it.

    Raises:
        UserError: when there is none, it can't be read, or it has more ids than the model knows.
    """
    folder = _folder(place)
    path = folder / TOKENIZER
    if not path.is_file():
        raise UserError(
            f"{folder} has no {TOKENIZER}, so nobody knows which word is which number.\n"
            "Put it beside the weights; transformers writes it with AutoTokenizer.save_pretrained."
        )
    refuse_link(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no error of its own
        raise UserError(f"{path} can't be read as a tokenizer: {error}") from None
    known = model.encoder.architecture["vocab_size"]
    if tokenizer.get_vocab_size() > known:
        raise UserError(f"{path} has {tokenizer.get_vocab_size()} ids, but the model knows {known}: another model's.")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys without the `bert.` or `roberta.` of models with a head, and with today's names of the norms."""
    return {
        name.removeprefix("bert.")
        .removeprefix("roberta.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in tensors.items()
    }


def _depth(tensors: dict[str, Tensor]) -> int:
    """The number of blocks, counted, so that a stray key can't make it huge."""
    return len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")})
