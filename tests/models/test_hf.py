"""Hugging Face folders, made here: config.json and safetensors, nothing else."""

import json
import shutil
from unittest import mock

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alignax.models import functional, hf, shards
from alignax.pipeline import sharding
from alignax.types import InputError
from tests.close import assert_close, decoder_rel
from tests.models.cases import (
    CONFIGS,
    FAMILIES,
    jitted,
    random_params,
    random_tokens,
    reference,
)

# What the three families' folders on the hub say, made small.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-05,
    "rope_theta": 5000,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN3 = LLAMA | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 6,
    "tie_word_embeddings": True,
}


def tensors_of(config, dtype=np.float32):
    """Random tensors under the names that transformers gives them, written out."""
    rng = np.random.default_rng(0)
    d, f, head = config["hidden_size"], config["intermediate_size"], 2
    head = config.get("head_dim", d // config["num_attention_heads"])
    heads = head * config["num_attention_heads"]
    keys = head * config["num_key_value_heads"]
    sizes = {"model.embed_tokens": (13, d), "model.norm": (d,)}
    if not config["tie_word_embeddings"]:
        sizes["lm_head"] = (13, d)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        sizes |= {
            f"{at}.input_layernorm": (d,),
            f"{at}.post_attention_layernorm": (d,),
            f"{at}.self_attn.q_proj": (heads, d),
            f"{at}.self_attn.k_proj": (keys, d),
            f"{at}.self_attn.v_proj": (keys, d),
            f"{at}.self_attn.o_proj": (d, heads),
            f"{at}.mlp.gate_proj": (f, d),
            f"{at}.mlp.up_proj": (f, d),
            f"{at}.mlp.down_proj": (d, f),
        }
        if config["model_type"] == "qwen3":
            sizes |= {f"{at}.self_attn.{x}_norm": (head,) for x in "qk"}
    return {
        f"{name}.weight": rng.standard_normal(size).astype(dtype)
        for name, size in sizes.items()
    }


def write(folder, config, tensors=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "llama", LLAMA, tensors_of(LLAMA))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_load(folder):
    config, params = hf.load(folder)
    assert (config.rope_theta, config.norm_eps, config.head_dim) == (5000.0, 1e-5, 2)
    assert (config.num_kv_heads, config.max_length, config.mlp_size) == (2, 16, 12)
    assert not any((config.tie_embeddings, config.qk_norm, config.attention_bias))
    tensors = tensors_of(LLAMA)
    q = tensors["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(
        params["blocks"]["1"]["attention"]["query"]["kernel"], q.T
    )
    np.testing.assert_array_equal(params["head"], tensors["lm_head.weight"])
    functional.check_params(config, params)
    tokens = random_tokens(config, (1, 5))
    assert_close(
        jitted(config)(params, tokens).logits[0],
        reference(config, params, tokens[0]),
        rel=decoder_rel(config.num_layers),
    )


def test_head_dim_may_be_its_own(tmp_path):
    config, params = hf.load(write(tmp_path / "q", QWEN3, tensors_of(QWEN3)))
    assert config.head_dim == 6
    assert config.qk_norm
    assert "head" not in params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(tmp_path, dtype):
    """A bfloat16 folder, read exactly into either."""
    tensors = tensors_of(LLAMA, ml_dtypes.bfloat16)
    folder = write(tmp_path / "m", LLAMA, tensors)
    config, params = hf.load(folder, param_dtype=dtype, dtype="bfloat16")
    assert (config.param_dtype, config.dtype) == (dtype, "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(dtype)}
    np.testing.assert_array_equal(
        np.float32(params["embedding"]),
        np.float32(tensors["model.embed_tokens.weight"]),
    )


def test_sharded_equals_whole(tmp_path, folder):
    whole = hf.load(folder)
    tensors = list(tensors_of(LLAMA).items())
    parts = {
        "model-00001-of-00002.safetensors": dict(tensors[:7]),
        "model-00002-of-00002.safetensors": dict(tensors[7:]),
    }
    split = write(tmp_path / "split", LLAMA)
    for name, part in parts.items():
        save_file(part, split / name)
    weight_map = {key: name for name, part in parts.items() for key in part}
    index = split / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config, params = hf.load(split)
    assert config == whole[0]
    same(params, whole[1])

    (split / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"files beside it, got \['model-00002"):
        hf.load(split)
    weight_map["lm_head.weight"] = "../llama/model.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"files beside it, got \['\.\./llama"):
        hf.load(split)
    for text in ("{}", "[]", "no", '{"weight_map": []}'):
        index.write_text(text)
        with pytest.raises(InputError, match="must have a weight_map"):
            hf.load(split)


@pytest.mark.parametrize("fused", [False, True])
def test_straight_onto_devices(tmp_path, folder, fused):
    if fused:
        config, folder = FAMILIES["gpt2"], tmp_path / "gpt2"
        hf.save(folder, config, random_params(config))
        expected = random_params(config)
    else:
        expected = hf.load(folder)[1]
    config = hf.read_config(folder)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    places = sharding.param_shardings(
        functional.shapes(config), functional.logical_axes(config), mesh
    )
    _, params = hf.load(folder, shardings=places)
    same(params, expected)
    assert jax.tree.map(lambda x: x.sharding, params) == places


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "deep", *FAMILIES])
def test_round_trip(tmp_path, name):
    config = (CONFIGS | FAMILIES)[name]
    params = random_params(config)
    hf.save(tmp_path / "m", config, params)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded, again = hf.load(tmp_path / "m")
    assert loaded == config
    same(again, params)
    hf.save(tmp_path / "m", loaded, jax.tree.map(lambda x: x + 1, again))
    same(again, params)
    same(hf.load(tmp_path / "m")[1], jax.tree.map(lambda x: x + 1, params))


def test_names_without_their_prefix(tmp_path):
    """As the folder of the first GPT-2 has them, with the causal mask."""
    config = FAMILIES["gpt2"]
    params = random_params(config)
    hf.save(tmp_path, config, params)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    assert "h.0.attn.c_attn.weight" in bare
    bare["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
    save_file(bare, tmp_path / "model.safetensors")
    same(hf.load(tmp_path)[1], params)


def test_load_then_save_is_the_same_file(tmp_path, folder):
    hf.save(tmp_path / "again", *hf.load(folder))
    again = load_file(tmp_path / "again" / "model.safetensors")
    tensors = tensors_of(LLAMA)
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(again[name], value)


def test_save_keeps_what_belongs_to_the_tokenizer(tmp_path):
    ids = {"bos_token_id": 3, "eos_token_id": [1, 2], "pad_token_id": 0}
    source = write(tmp_path / "a", LLAMA | ids, tensors_of(LLAMA))
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("mine")
    (source / "modeling_llama.py").write_text("raise SystemExit")
    config, params = hf.load(source)
    hf.save(tmp_path / "b", config, params, source=source)
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "b" / "notes.txt").exists()
    assert not (tmp_path / "b" / "modeling_llama.py").exists()
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert {name: written[name] for name in ids} == ids
    hf.save(source, config, params, source=source)
    hf.save(tmp_path / "c", config, params)
    written = json.loads((tmp_path / "c" / "config.json").read_text())
    assert written.get("eos_token_id") is None


def test_a_save_that_breaks_off_leaves_the_old_model(tmp_path):
    config = CONFIGS["llama"]
    params = random_params(config)
    hf.save(tmp_path / "m", config, params)

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left")

    with (
        mock.patch.object(shards, "save_file", full_disk),
        pytest.raises(OSError, match="no space"),
    ):
        hf.save(tmp_path / "m", CONFIGS["deep"], random_params(CONFIGS["deep"]))
    loaded, again = hf.load(tmp_path / "m")
    assert loaded == config
    same(again, params)


def test_save_refuses(tmp_path):
    config = CONFIGS["one key"]
    with pytest.raises(
        InputError,
        match=r"architectures \[.*got \{'attention_bias': True, 'qk_norm': True\}",
    ):
        hf.save(tmp_path / "m", config, random_params(config))
    llama, deep = CONFIGS["llama"], CONFIGS["deep"]
    with pytest.raises(InputError, match=r"blocks\.10\.attention\.\w+\.kernel must be"):
        hf.save(tmp_path / "m", llama, random_params(deep))
    odd = hf.DecoderConfig(**(llama.to_dict() | {"hidden_size": 10}))
    with pytest.raises(InputError, match="one that LlamaForCausalLM can have"):
        hf.save(tmp_path / "m", odd, random_params(odd))
    assert not (tmp_path / "m").exists()


REFUSED = {
    "rope_type .*default, linear or llama3.* got 'yarn'": {
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0}
    },
    "transformers must be able to read .*llama3": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0}
    },
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "hidden_act": {"hidden_act": "gelu"},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "quantization_config": {"quantization_config": {"quant_method": "fp8"}},
    "architectures in .* one of .*'Qwen3ForCausalLM'.* got Gemma": {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
    },
    "architectures in .* got None": {"architectures": None},
    "model_type": {"model_type": "qwen2"},
    "transformers must be able to read": {"hidden_size": "wide"},
    "transformers must be able to read .*multiple": {"hidden_size": 9},
    "head_dim must be even": {"head_dim": 3},
}


@pytest.mark.parametrize("message", REFUSED)
def test_keys_that_stop_it(tmp_path, message):
    with pytest.raises(InputError, match=message) as caught:
        hf.load(write(tmp_path / "m", LLAMA | REFUSED[message], tensors_of(LLAMA)))
    assert "\n" not in str(caught.value)


def test_sliding_windows(tmp_path):
    """Of Qwen's layers behind the first few, where the folder turns them on."""
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    config, params = hf.load(write(tmp_path / "m", QWEN3 | window, tensors_of(QWEN3)))
    assert (config.window, config.local_layers) == (4, (1,))
    hf.save(tmp_path / "again", config, params)
    assert hf.load(tmp_path / "again")[0] == config
    window["use_sliding_window"] = False
    config = hf.read_config(write(tmp_path / "n", QWEN3 | window, tensors_of(QWEN3)))
    assert (config.window, config.local_layers) == (None, ())
    layers = {"layer_types": ["full_attention", "sliding_attention"]}
    with pytest.raises(InputError, match="window must be a number"):
        hf.load(write(tmp_path / "o", QWEN3 | layers, tensors_of(QWEN3)))
    layers = {"layer_types": ["full_attention", "chunked_attention"]}
    with pytest.raises(InputError, match="layer_types"):
        hf.load(write(tmp_path / "p", QWEN3 | layers, tensors_of(QWEN3)))


def test_the_folders_code_never_runs(tmp_path):
    auto = {"auto_map": {"AutoConfig": "trap.Trap", "AutoModel": "trap.Trap"}}
    folder = write(tmp_path / "m", LLAMA | auto, tensors_of(LLAMA))
    (folder / "trap.py").write_text("raise SystemExit('ran')")
    hf.load(folder)


def test_no_model_folder(tmp_path, folder):
    with pytest.raises(InputError, match="nowhere, which is no folder"):
        hf.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty, which has none"):
        hf.load(tmp_path / "empty")
    for text in ("{", "[]", '"llama"'):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match="must be a JSON object"):
            hf.load(folder)


def test_only_safetensors(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="got neither"):
        hf.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with (
        mock.patch("pickle.load", side_effect=AssertionError),
        pytest.raises(InputError, match=r"pytorch_model\.bin.*convert"),
    ):
        hf.load(folder)


def test_a_file_cut_short(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for cut in (whole[:-1], whole[:100], b"version https://git-lfs.github.com", b""):
        file.write_bytes(cut)
        with pytest.raises(InputError, match="whole safetensors file"):
            hf.load(folder)


def test_tensors_that_do_not_fit(folder):
    tensors = tensors_of(LLAMA)

    def broken(**changes):
        kept = {k: v for k, v in (tensors | changes).items() if v is not None}
        write(folder, LLAMA, kept)
        return folder

    name = "model.layers.0.self_attn.k_proj.weight"
    with pytest.raises(InputError, match=rf"missing: \['{name}'\]"):
        hf.load(broken(**{name: None}))
    with pytest.raises(InputError, match=rf"{name} in .* \(8, 4\) .* got \(8, 8\)"):
        hf.load(broken(**{name: tensors["model.layers.0.self_attn.q_proj.weight"]}))
    bias = "model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(InputError, match=rf"unknown: \['{bias}'\]"):
        hf.load(broken(**{bias: np.ones(8, np.float32)}))
    # Old files hold buffers that config.json determines.
    hf.load(broken(**{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(1)}))


def test_a_tied_head_written_twice(tmp_path):
    tensors = tensors_of(QWEN3)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    _, params = hf.load(write(tmp_path / "m", QWEN3, tensors))
    assert "head" not in params


def test_one_file_goes_before_an_index(folder):
    shutil.copy(folder / "config.json", folder / "model.safetensors.index.json")
    hf.load(folder)
