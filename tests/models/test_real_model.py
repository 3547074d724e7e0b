"""A real model, got by its package's name: what it writes, and transformers' own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import cli
from alignax.models import functional, hf
from alignax.pipeline import data, metrics
from alignax.train import folders
from tests.close import assert_close

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "If I have 3 apples and buy 14 more, then I have",
)


@pytest.mark.slow
def test_it_answers_and_is_measured(smollm2, tmp_path):
    out = tmp_path / "samples.jsonl"
    asked = ("What is the capital of France?", "What is 2 + 3?")
    args = ["sample", str(smollm2), "--prompt", *asked, "--greedy"]
    cli.main([*args, "--max-tokens", "24", "--out", str(out)])
    answers = [json.loads(line)["completion"] for line in out.read_text().splitlines()]
    assert "Paris" in answers[0]
    assert "5" in answers[1]
    table = tmp_path / "e.json"
    digits = "min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    cli.main(
        [
            *("evaluate", str(smollm2), "--reward", "numeric", "--out", str(table)),
            *("--data", f"reasoning_gym:basic_arithmetic,size=4,seed=0,{digits}"),
            *("--n", "4", "--max-tokens", "16", "--reference", str(smollm2)),
        ]
    )
    found = json.loads(table.read_text())["measured"]
    assert found["kl_vocabulary"]["mean"] == pytest.approx(0, abs=1e-3)
    assert 0.5 < found["entropy"]["mean"] < 5
    assert 0 <= found["accuracy"]["mean"] <= found["pass@4"]["mean"] <= 1


PAIRS = (
    ("What is 2 + 3?", "5", "7"),
    ("What is 4 + 4?", "8", "9"),
    ("What is 1 + 5?", "6", "3"),
    ("What is 7 - 2?", "5", "1"),
)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("rl", marks=pytest.mark.slow),
        pytest.param("preference", marks=pytest.mark.stress),
    ],
)
def test_it_is_trained_by_adapters(smollm2, tmp_path, kind):
    """Few steps of the commands on it: finite, moved, and the adapter opens."""
    pairs = tmp_path / "pairs.jsonl"
    fields = ("prompt", "chosen", "rejected")
    records = [dict(zip(fields, pair, strict=True)) for pair in PAIRS]
    pairs.write_text("".join(json.dumps(record) + "\n" for record in records))
    more = {
        "rl": (
            *("--data", "reasoning_gym:chain_sum,size=8,min_digits=1,max_digits=1"),
            *("--reward", "numeric", "--prompts", "2", "--completions", "4"),
            *("--max-tokens", "8", "--divergence", "jensen_shannon"),
        ),
        "preference": ("--data", str(pairs), "--batch-size", "4"),
    }[kind]
    out = tmp_path / kind
    cli.main(
        [
            *("train", kind, "--model", str(smollm2), "--out", str(out), *more),
            *("--steps", "2", "--microbatches", "1", "--held-out", "0"),
            *("--lora.rank", "2", "--learning-rate", "1e-3", "--warmup", "0"),
        ]
    )
    rows = metrics.read(out)
    norms = metrics.column(rows, f"{kind}/grad_norm")[1]
    assert len(norms) == 2
    assert np.isfinite(norms).all()
    if kind == "rl":
        np.testing.assert_allclose(metrics.column(rows, "rl/ratio")[1], 1, atol=1e-3)
    else:
        np.testing.assert_allclose(
            metrics.column(rows, "preference/loss")[1][0], np.log(2), rtol=1e-4
        )
    policy = folders.open_policy(out / "adapter")
    moved = [np.abs(x).max() for x in jax.tree.leaves(policy.params)]
    assert np.isfinite(moved).all()


@pytest.mark.slow
def test_its_texts_are_likely(smollm2):
    """Weights in the wrong rows give the likelihood of noise: ln 49152 is 10.8."""
    config, params = hf.load(smollm2)
    tokenizer = data.load_tokenizer(smollm2)
    apply_fn = jax.jit(functional.make_apply(config))
    ids = [tokenizer.encode(text)[:12] for text in TEXTS]
    tokens = jnp.array(ids)
    logp = jax.nn.log_softmax(apply_fn(params, tokens).logits[:, :-1])
    nats = -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1).mean()
    assert nats < 4


@pytest.fixture(scope="module")
def pair(smollm2):
    """transformers' model and ours, of one folder."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        smollm2, attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokens = np.array([tokenizer(text)["input_ids"][:12] for text in TEXTS], np.int32)
    return torch, model, tokenizer, tokens, *hf.load(smollm2)


# Relative to the norm: float32's rounding through thirty layers, with room.
CLOSE = 1e-4


@pytest.mark.parity
@pytest.mark.slow
def test_logits_are_transformers_own(pair):
    torch, model, _, tokens, config, params = pair
    with torch.no_grad():
        truth = model(torch.tensor(tokens).long()).logits.numpy()
    logits = jax.jit(functional.make_apply(config))(params, tokens).logits
    assert_close(logits, truth, rel=CLOSE)


@pytest.mark.parity
@pytest.mark.slow
def test_gradients_are_transformers_own(pair):
    torch, model, _, tokens, config, params = pair
    model.zero_grad()
    labels = torch.tensor(tokens).long()
    model(labels, labels=labels).loss.backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}

    @jax.jit
    @jax.grad
    def slopes(params):
        logits = functional.make_apply(config)(params, jnp.asarray(tokens)).logits
        logp = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1))

    flat = hf.by_path(slopes(params))
    for name, tensor in hf.tensors(config).items():
        [path] = tensor.paths
        ours, theirs = np.asarray(flat[path]), grads.pop(name)
        ours = ours.T if tensor.transposed else ours
        off = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert off < 10 * CLOSE, (name, off)
    assert not grads


@pytest.mark.parity
@pytest.mark.slow
def test_greedy_text_is_transformers_own(pair, smollm2, tmp_path):
    torch, model, tokenizer, *_ = pair
    out = tmp_path / "out.jsonl"
    args = ["sample", str(smollm2), "--greedy", "--max-tokens", "24", "--plain"]
    cli.main([*args, "--out", str(out), "--prompt", *TEXTS])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for text, row in zip(TEXTS, rows, strict=True):
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            whole = model.generate(**ids, max_new_tokens=24, do_sample=False)
        new = whole[0, ids["input_ids"].shape[1] :]
        assert row["completion"] == tokenizer.decode(new, skip_special_tokens=True)
