"""transformers' torch models at random weights: logits, gradients, continuations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional, hf
from alignax.pipeline import rollout
from alignax.types import Prompts
from tests.close import assert_close, decoder_rel
from tests.models.cases import jitted

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 29,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {
    "head_dim": 8,
    "query_pre_attn_scalar": 12,
    "sliding_window": 4,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}
FAMILIES = {
    "llama": ("Llama", {"rope_theta": 500.0}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 head_dim": ("Qwen2", {"head_dim": 8}),
    "qwen3": ("Qwen3", {"head_dim": 8, "num_key_value_heads": 1}),
    "qwen2 windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama linear": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 500.0,
                "factor": 4.0,
            }
        },
    ),
    # Windows of 4 tokens, far shorter than the rows; scores beyond the caps.
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0}),
    "gemma2 no caps": (
        "Gemma2",
        GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": (
        "Gemma3",
        GEMMA
        | {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "final_logit_softcapping": None,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {
                    "rope_type": "linear",
                    "rope_theta": 500.0,
                    "factor": 2.0,
                },
            },
        },
    ),
    "gpt2": (
        "GPT2",
        {
            "n_embd": 24,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
            "n_inner": 40,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
}
TOKENS = np.random.default_rng(0).integers(0, 29, (3, 8))
MASK = np.array([[1] * 8, [0] * 3 + [1] * 5, [0] * 1 + [1] * 7])
# Three layers of width 24: sums of three times the terms.
CLOSE = 3 * decoder_rel(layers=3)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A torch model and the same one loaded from the folder it saved."""
    torch = pytest.importorskip("torch")
    import transformers

    family, extra = FAMILIES[request.param]
    sizes = SIZES
    if family == "GPT2":
        ours = ("hidden_size", "intermediate_size", "max_position_embeddings")
        sizes = {k: v for k, v in SIZES.items() if k not in ours and "num_" not in k}
    kind = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{kind}Config")(
        **(sizes | extra), attn_implementation="eager"
    )
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("norm", "bias", "ln_")):
                weight.add_(0.3 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    return torch, model, *hf.load(folder)


def test_logits(pair):
    torch, model, config, params = pair
    tokens, mask = torch.tensor(TOKENS), torch.tensor(MASK)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        truth = model(tokens, attention_mask=mask, position_ids=positions).logits
    logits = jitted(config)(params, np.int32(TOKENS), mask=MASK == 1).logits
    real = MASK == 1
    assert_close(logits[real], truth.numpy()[real], rel=CLOSE)


def test_gradients(pair):
    """Of one loss in every parameter, torch's under the table of names."""
    torch, model, config, params = pair
    tokens = torch.tensor(TOKENS)
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    grads = {n: p.grad.numpy() for n, p in model.named_parameters()}

    @jax.jit
    @jax.grad
    def slopes(params):
        tokens = jnp.asarray(TOKENS, jnp.int32)
        logits = functional.make_apply(config)(params, tokens).logits[:, :-1]
        logp = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)
        return -jnp.mean(picked)

    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(slopes(params))
    }
    table = hf.tensors(config)
    got = {}
    for name, tensor in table.items():
        one = np.concatenate([flat[path] for path in tensor.paths], axis=-1)
        got[name] = one.T if tensor.transposed else one
    assert_close(got, grads, rel=3 * CLOSE)
    assert sum(len(tensor.paths) for tensor in table.values()) == len(flat)


def test_greedy_continuation(pair):
    torch, model, config, params = pair
    with torch.no_grad():
        truth = model.generate(
            torch.tensor(TOKENS),
            attention_mask=torch.tensor(MASK),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
    prompts = Prompts(
        tokens=jnp.asarray(TOKENS, jnp.int32), mask=MASK == 1, index=jnp.arange(3)
    )
    got = rollout.generate(
        functional.make_apply(config),
        params,
        jax.random.key(0),
        prompts,
        completions=1,
        max_tokens=12,
        eos_id=None,
        temperature=0.0,
    )
    np.testing.assert_array_equal(got.tokens, truth.numpy()[:, TOKENS.shape[1] :])


def test_what_is_saved_transformers_loads(pair, tmp_path):
    torch, model, config, params = pair
    from transformers import AutoModelForCausalLM

    hf.save(tmp_path, config, jax.tree.map(lambda x: 1.5 * x, params))
    again, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert type(again) is type(model)
    assert not any(report.values()), report
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
        tokens = torch.tensor(TOKENS)
        truth, got = model(tokens).logits, again.eval()(tokens).logits
        for weight in model.parameters():
            weight.div_(1.5)
    assert_close(got.numpy(), truth.numpy(), rel=CLOSE)
