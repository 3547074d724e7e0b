"""TRL's own DPO and KTO code on the same token log-probabilities."""

import types
from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import divergences as dv
from alignax import preference as pf

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

RNG = np.random.default_rng(11)
BETA, B, T = 0.3, 5, 7
MASK = np.arange(T)[None] < RNG.integers(2, T + 1, (2 * B, 1))
LOGP, REF, COLLISION = (
    -RNG.exponential(size=(2 * B, T)).astype(np.float32) * MASK for _ in range(3)
)


@pytest.fixture(scope="module")
def torch():
    for name in ("torch", "trl"):
        pytest.importorskip(name, reason=f"extra parity: {name} is not installed")
    return pytest.importorskip("torch")


class Accelerator:
    """One process: what is gathered is what is there."""

    device = "cpu"

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def unwrap_model(self, model):
        return model


def outputs_of(torch, logp):
    """A model's outputs, with no more than the trainers read of them."""
    zeros = torch.zeros(logp.shape)
    return types.SimpleNamespace(
        log_probs=logp,
        log_sum_sq_probs=torch.tensor(COLLISION),
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
    )


def model_of(torch, logp):
    def model(**_):
        return outputs_of(torch, logp)

    model.training = True
    return model


def trl_dpo(torch, **settings):
    """TRL's loss, and its gradient by the token log-probabilities."""
    from trl.trainer.dpo_trainer import DPOTrainer

    logp = torch.tensor(LOGP, requires_grad=True)
    model = model_of(torch, logp)
    trainer = types.SimpleNamespace(
        model=model,
        accelerator=Accelerator(),
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
        precompute_ref_logps=True,
        beta=BETA,
        aux_loss_enabled=False,
        label_smoothing=0.0,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **{
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "loss_types": ["sigmoid"],
            "loss_weights": [1.0],
            "use_weighting": False,
        }
        | settings,
    )
    ref = torch.tensor(REF)
    if settings.get("ld_alpha") is not None:
        # Precomputed sums have no tail to discount.
        ref = discounted(torch, ref, settings["ld_alpha"])
    chosen, rejected = ref.sum(1).chunk(2)
    completion = torch.tensor(np.concatenate([np.zeros((2 * B, 1)), MASK], 1)).long()
    loss = DPOTrainer._compute_loss(
        trainer,
        model,
        {
            "completion_mask": completion,
            "input_ids": torch.zeros(completion.shape, dtype=torch.long),
            "attention_mask": torch.ones(completion.shape),
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        },
        False,
    )
    loss.backward()
    return loss.item(), logp.grad.numpy()


def discounted(torch, values, alpha):
    lengths = MASK.sum(1)
    shared = np.tile(np.minimum(lengths[:B], lengths[B:]), 2)
    tail = np.arange(T)[None] >= shared[:, None]
    return values * torch.tensor(np.where(tail, alpha, 1.0).astype(np.float32))


def ours(loss):
    """The batch's mean and its gradient by the token log-probabilities."""

    def mean(logp):
        sides = [jnp.split(jnp.asarray(x), 2) for x in (logp, REF, MASK, COLLISION)]
        (w, l), (ref_w, ref_l), (mask_w, mask_l), (alike_w, alike_l) = sides
        tokens = pf.PairTokens(
            w, l, ref_w, ref_l, mask_w, mask_l, None, None, alike_w, alike_l
        )
        return jnp.mean(loss(tokens, beta=BETA))

    return jax.value_and_grad(mean)(jnp.asarray(LOGP))


def compare(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    error = np.linalg.norm(found[1] * MASK - expected[1] * MASK)
    assert error < 1e-5 * np.linalg.norm(expected[1])


@pytest.mark.parametrize(
    ("name", "coefficient"),
    [
        ("reverse_kl", 1.0),
        ("forward_kl", 1.0),
        ("js_divergence", 1.0),
        ("alpha_divergence", 0.5),
        ("alpha_divergence", -0.5),
        ("alpha_divergence", 1.0),
    ],
)
def test_divergences_by_trls_names(torch, name, coefficient):
    div = dv.from_trl(name, coefficient=coefficient)
    expected = trl_dpo(
        torch, f_divergence_type=name, f_alpha_divergence_coef=coefficient
    )
    compare(ours(pf.PairLoss(partial(pf.f_dpo, div))), expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpo", {}),
        ("ld_dpo", {"ld_alpha": 0.5}),
        ("wpo", {"use_weighting": True}),
        ("ipo_averaged", {"loss_types": ["ipo"]}),
        ("nca", {"loss_types": ["nca_pair"]}),
        ("apo_zero", {"loss_types": ["apo_zero"]}),
        ("aot", {"loss_types": ["aot"]}),
    ],
)
def test_losses_of_the_table(torch, name, settings):
    compare(ours(pf.LOSSES[name]), trl_dpo(torch, **settings))


def test_bco_pair_of_the_dpo_trainer_leaves_the_shift_out(torch):
    """That is ``TRL["dpo/bco_pair"]``; ``LOSSES["bco"]`` has the batch's."""
    loss = pf.PairLoss(pf.TRL["dpo/bco_pair"])
    compare(ours(loss), trl_dpo(torch, loss_types=["bco_pair"]))


def test_kto_with_its_anchor(torch):
    """The KTO trainer's anchor of mismatched completions, and its loss at it."""
    from trl.trainer.kto_trainer import KTOTrainer

    logp = torch.tensor(LOGP, requires_grad=True)
    other, other_ref = (
        -RNG.exponential(scale, (2 * B, T)).astype(np.float32) for scale in (0.8, 1.0)
    )

    def model(*, input_ids, **_):
        mismatched = bool(input_ids[0, 0])
        return outputs_of(torch, torch.tensor(other) if mismatched else logp)

    model.training = True
    trainer = types.SimpleNamespace(
        model=model,
        accelerator=Accelerator(),
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=BETA,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer._compute_kl_logps = partial(KTOTrainer._compute_kl_logps, trainer)
    desirable = np.arange(2 * B) % 3 > 0
    completion = torch.tensor(np.concatenate([np.zeros((2 * B, 1)), MASK], 1)).long()
    ids = torch.zeros_like(completion)
    batch = {
        "label": torch.tensor(desirable),
        "input_ids": ids,
        "attention_mask": ids + 1,
        "completion_mask": completion,
        "KL_input_ids": ids + 1,
        "KL_attention_mask": ids + 1,
        "KL_completion_mask": completion,
        "ref_logps": torch.tensor(REF.sum(1)),
        "ref_KL_logps": torch.tensor(other_ref.sum(1)),
    }
    loss = KTOTrainer._compute_loss(trainer, model, batch, False)
    loss.backward()
    anchor = pf.kto_anchor(jnp.asarray((other - other_ref).sum(1)))
    assert anchor > 0.1

    def mean(logp):
        ratio = jnp.sum(logp - REF, axis=1)
        kto = pf.LABEL_LOSSES["kto"].function
        return jnp.mean(kto(ratio, jnp.asarray(desirable), anchor[None], beta=BETA))

    found = jax.value_and_grad(mean)(jnp.asarray(LOGP))
    compare(found, (loss.item(), logp.grad.numpy()))
