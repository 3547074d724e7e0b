"""Adapters against the merged matrices, a GRPO step with them, PEFT's folders."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alignax.models import functional, hf, lora
from alignax.train import assembly
from alignax.train.options import RL
from alignax.types import InputError, Prompts
from tests.close import EPS, assert_close, decoder_rel
from tests.models.cases import (
    CONFIGS,
    FAMILIES,
    jitted,
    random_params,
    random_tokens,
)

CONFIG = CONFIGS["qwen2"]
BASE = random_params(CONFIG)
TOKENS = random_tokens(CONFIG, (2, 6))
RANK2 = lora.LoRA(rank=2, alpha=6.0)
QUERY = ("blocks", "1", "attention", "query", "kernel")


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def trained(settings=RANK2, config=CONFIG):
    fresh = lora.init(functional.shapes(config), jax.random.key(0), lora=settings)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), fresh
    )


def test_fresh_adapters_are_the_base_exactly():
    adapters = lora.init(BASE, jax.random.key(0), lora=RANK2)
    assert at(adapters, QUERY)["a"].shape == (8, 2)
    assert at(adapters, QUERY)["b"].shape == (2, 16)
    assert np.abs(at(adapters, QUERY)["a"]).max() > 0.2
    assert len(jax.tree.leaves(adapters)) == 2 * 7 * CONFIG.num_layers
    apply_fn = lora.adapt(functional.make_apply(CONFIG), BASE, lora=RANK2)
    np.testing.assert_array_equal(
        jax.jit(apply_fn)(adapters, TOKENS).logits, jitted(CONFIG)(BASE, TOKENS).logits
    )


def test_an_adapter_does_not_depend_on_the_others():
    few = lora.LoRA(rank=2, alpha=6.0, targets=("query",))
    alone, all_of_them = (
        lora.init(BASE, jax.random.key(0), lora=x) for x in (few, RANK2)
    )
    assert set(alone["blocks"]["1"]["attention"]) == {"query"}
    np.testing.assert_array_equal(at(alone, QUERY)["a"], at(all_of_them, QUERY)["a"])
    a = [alone["blocks"][i]["attention"]["query"]["kernel"]["a"] for i in "01"]
    assert (a[0] != a[1]).any()


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.slow
def test_gradients_are_the_chain_rule_through_the_sum(stabilised):
    settings = lora.LoRA(rank=2, alpha=6.0, stabilised=stabilised)
    scale = 6 / 2**0.5 if stabilised else 3
    adapters, plain = trained(settings), functional.make_apply(CONFIG)
    weights = jnp.sin(jnp.arange(2 * 6 * CONFIG.vocab_size)).reshape(2, 6, -1)

    def loss_of(apply_fn):
        return jax.jit(
            jax.value_and_grad(
                lambda params: jnp.sum(apply_fn(params, TOKENS).logits * weights)
            )
        )

    value, got = loss_of(lora.adapt(plain, BASE, lora=settings))(adapters)
    pair = jax.tree.map(np.float64, at(adapters, QUERY))
    merged = lora.merge(BASE, adapters, lora=settings)
    summed = np.float64(at(BASE, QUERY)) + scale * pair["a"] @ pair["b"]
    assert_close(at(merged, QUERY), summed, rel=4 * EPS)
    truth, full = loss_of(plain)(merged)
    # 156 logits of either sign are added.
    largest = float(jnp.abs(plain(merged, TOKENS).logits).max())
    assert abs(value - truth) < decoder_rel(CONFIG.num_layers) * 156 * largest
    slope = np.float64(at(full, QUERY))
    expected = {"a": scale * slope @ pair["b"].T, "b": scale * pair["a"].T @ slope}
    # The adapter's own gradient passes another product than the matrix's.
    close = 2 * decoder_rel(CONFIG.num_layers, gradient=True)
    assert_close(at(got, QUERY), expected, rel=close)
    assert jax.tree.structure(got) == jax.tree.structure(adapters)


def test_grpo_trains_the_adapters_and_leaves_the_base():
    before = jax.tree.map(np.array, BASE)
    config = RL(steps=4, prompts=2, completions=4, learning_rate=0.05, warmup=0)
    models = (functional.make_apply(CONFIG), functional.make_hidden(CONFIG))
    apply_fn, hidden_fn = (lora.adapt(fn, BASE, lora=RANK2) for fn in models)
    parts = assembly.make(
        config, apply_fn, hidden_fn=hidden_fn, max_tokens=4, eos_id=None
    )
    reference = lora.init(BASE, jax.random.key(0), lora=RANK2)
    state = parts.init(reference, jax.random.key(1), beta=0.01)
    sizes = [x.size for x in jax.tree.leaves(state.opt_state)]
    assert sum(sizes) < 3 * sum(x.size for x in jax.tree.leaves(reference))
    prompts = Prompts(
        tokens=jnp.asarray(TOKENS[:, :3]),
        mask=jnp.ones((2, 3), bool),
        index=jnp.arange(2),
    )
    kls = []
    for _ in range(4):
        samples = parts.sample(state, prompts)
        twos = (samples.rollout.tokens == 2).astype(jnp.float32)
        state, metrics = parts.step(state, samples.rewarded(jnp.mean(twos, axis=1)))
        kls.append(float(metrics["kl"]))
    assert abs(kls[0]) < 1e-5
    assert kls[-1] > 1e-3
    jax.tree.map(np.testing.assert_array_equal, BASE, before)


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_folders_have_pefts_names_and_shapes(tmp_path, name):
    config = (CONFIGS | FAMILIES)[name]
    adapters = trained(config=config)
    lora.save(tmp_path, config, adapters, RANK2)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert len(held) == 2 * 7 * config.num_layers
    name = "base_model.model.model.layers.1.self_attn.q_proj"
    query = at(adapters, QUERY)
    a, b = held[f"{name}.lora_A.weight"], held[f"{name}.lora_B.weight"]
    np.testing.assert_array_equal(a, query["a"].T)
    np.testing.assert_array_equal(b, query["b"].T)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (2, 6.0)
    assert {"q_proj", "o_proj", "down_proj"} < set(settings["target_modules"])
    again, loaded = lora.load(tmp_path, config)
    assert again == RANK2
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)


def test_fused_maps_are_refused(tmp_path):
    config = FAMILIES["gpt2"]
    with pytest.raises(InputError, match=r"c_attn is one matrix for"):
        lora.save(tmp_path, config, trained(config=config), RANK2)
    some = lora.LoRA(rank=2, targets=("up", "down"))
    adapters = trained(some, config)
    lora.save(tmp_path, config, adapters, some)
    jax.tree.map(
        np.testing.assert_array_equal, lora.load(tmp_path, config)[1], adapters
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora in .* must be False"),
        ({"bias": "all"}, "bias in .* must be 'none'"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern in"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save in"),
        ({"peft_type": "LOHA"}, "peft_type in .* got 'LOHA'"),
        ({"r": 8}, r"r in .* must be the rank .* got 8 and \S+ of shape \(2, "),
        ({"r": "2"}, "r in .* must be the rank .* got '2'"),
        ({"r": None}, "r in .* must be the rank .* got None"),
        ({"lora_alpha": None}, "lora_alpha in .* must be a positive number, got None"),
    ],
)
def test_keys_that_stop_it(tmp_path, changes, message):
    lora.save(tmp_path, CONFIG, trained(), RANK2)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        lora.load(tmp_path, CONFIG)


def test_tensors_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="must hold adapter_config"):
        lora.load(tmp_path, CONFIG)
    lora.save(tmp_path, CONFIG, trained(), RANK2)
    file = tmp_path / "adapter_model.safetensors"
    held = load_file(file)
    save_file(held | {"extra": np.zeros(1, np.float32)}, file)
    with pytest.raises(InputError, match=r"unknown: \['extra'\]"):
        lora.load(tmp_path, CONFIG)
    wide = next(name for name in held if "lora_B" in name)
    save_file(held | {wide: np.zeros((8, 3), np.float32)}, file)
    with pytest.raises(InputError, match=r"got 2 and \S+lora_B\S+ of shape \(8, 3\)"):
        lora.load(tmp_path, CONFIG)
    held.pop(next(name for name in held if "lora_B" in name))
    save_file(held, file)
    with pytest.raises(InputError, match="must have its pair"):
        lora.load(tmp_path, CONFIG)
    other = trained(config=CONFIGS["deep"])
    with pytest.raises(InputError, match="the base, which has no"):
        lora.merge(BASE, other, lora=RANK2)
    wide = jax.tree.map(lambda x: jnp.concatenate([x, x]), trained())
    with pytest.raises(InputError, match=r"is for a matrix \(16, 8\), the base has"):
        lora.merge(BASE, wide, lora=RANK2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"targets": ("head",)}, "targets must be some of"),
        ({"targets": ()}, "targets must be some of"),
    ],
)
def test_settings(fields, message):
    with pytest.raises(InputError, match=message):
        lora.LoRA(**fields)


def test_a_base_without_the_targets():
    settings = lora.LoRA(targets=("gate",))
    with pytest.raises(InputError, match="targets must be maps of the base"):
        lora.init(functional.shapes(FAMILIES["gpt2"]), jax.random.key(0), lora=settings)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("stabilised", [False, True])
def test_peft_reads_and_writes_the_same(tmp_path, stabilised):
    """The base in transformers with our adapters under PEFT, and back."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    settings = lora.LoRA(rank=2, alpha=6.0, stabilised=stabilised)
    adapters = trained(settings)
    hf.save(tmp_path / "base", CONFIG, BASE)
    lora.save(tmp_path / "lora", CONFIG, adapters, settings)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    with torch.no_grad():
        truth = model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    apply_fn = lora.adapt(functional.make_apply(CONFIG), BASE, lora=settings)
    got = jax.jit(apply_fn)(adapters, TOKENS).logits
    assert_close(got, truth, rel=decoder_rel(CONFIG.num_layers))
    model.save_pretrained(tmp_path / "again")
    again, loaded = lora.load(tmp_path / "again", CONFIG)
    assert again == settings
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)
