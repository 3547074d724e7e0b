"""Options of a policy-gradient run, as a command line or a file gives them."""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import optax

from alignax import algorithms, controllers, divergences, references
from alignax.algorithms import Algorithm, Target, stages
from alignax.divergences import Divergence
from alignax.pipeline import update
from alignax.regularisers import Form, Level, Place, Regulariser
from alignax.types import InputError

DIVERGENCES: dict[str, Callable[..., Divergence]] = {
    maker.__name__: maker
    for maker in (
        divergences.reverse_kl,
        divergences.forward_kl,
        divergences.jensen_shannon,
        divergences.alpha,
        divergences.squared_hellinger,
        divergences.pearson,
        divergences.neyman,
        divergences.chi2_kl,
        divergences.jeffreys,
        divergences.total_variation,
        divergences.skewed_kl,
    )
}


def divergence_of(text: str) -> Divergence:
    """A divergence from its name, with a number behind a colon where it takes one.

    Args:
      text: such as ``reverse_kl``, ``alpha:0.5`` or ``jensen_shannon:0.1``.

    Returns:
      the divergence.

    Raises:
      InputError: there is none of that name, or it does not take the number.

    Example:
      >>> print(divergence_of("alpha:0.25").name)
      alpha(0.25)
    """
    name, _, number = text.partition(":")
    if name not in DIVERGENCES:
        raise InputError(
            f"divergence must be one of {', '.join(DIVERGENCES)}, with a number behind "
            f"a colon where it takes one (alpha:0.5), got {text!r}"
        )
    try:
        return DIVERGENCES[name](*([float(number)] if number else []))
    except InputError as error:
        raise InputError(f"divergence {text!r}: {error}") from None
    except (TypeError, ValueError):
        raise InputError(
            f"divergence {text!r}: {name} takes "
            f"{'a number, as in ' + name + ':0.5' if _numbered(name) else 'no number'}"
        ) from None


def _numbered(name: str) -> bool:
    return bool(inspect.signature(DIVERGENCES[name]).parameters)


def reads_beta(algorithm: Algorithm) -> bool:
    """Whether a method has something that ``beta`` is the strength of."""
    return algorithm.regulariser is not None or algorithm.beta > 0


def method_of(text: str) -> Algorithm:
    """A method of ``algorithms.METHODS`` from its key, a variant in brackets.

    Args:
      text: such as ``grpo`` or ``grpo (TRL default)``.

    Returns:
      the composition.

    Raises:
      InputError: there is none, or its step is of another kind.
    """
    key, _, variant = text.partition(" (")
    method = algorithms.METHODS.get(key)
    if method is None:
        near = difflib.get_close_matches(key.lower(), algorithms.METHODS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"method must be one of {', '.join(algorithms.METHODS)}, got {text!r}{hint}"
        )
    if variant:
        name = variant.removesuffix(")")
        if name not in method.variants:
            raise InputError(
                f"method {key} has the variants {', '.join(method.variants) or 'none'}"
                f", got {name!r}"
            )
        return method.variants[name]
    if method.algorithm is None:
        how = "there in pieces only"
        if method.step:
            how = f"trained by the step of alignax.train.{method.step}"
        raise InputError(
            f"method must be a policy gradient on groups of completions, got {text!r}, "
            f"which is {how}: {method.composition}"
        )
    return method.algorithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class RL:
    """A policy gradient under a divergence from the reference."""

    method: str = "unbiased"
    """The method's key in the table of algorithms, a variant of it in brackets, such as
    "grpo (TRL default)"."""
    beta: float | None = None
    """Strength of the divergence from the reference; by default the method's own, or
    0.1 where a divergence is given to a method without one."""
    divergence: str | None = None
    """The divergence from the reference, such as jensen_shannon or alpha:0.5; by
    default the method's own; of f_dpg that from its target."""
    level: Level | None = None
    """Whether the divergence is that of whole completions or myopic; by default the
    method's own."""
    form: Form | None = None
    """How the divergence is estimated: sampled, exact over the vocabulary, or top_k;
    by default the method's own."""
    place: Place | None = None
    """Whether the divergence stands in the reward or in the loss; by default the
    method's own."""
    divergence_top_k: int = 64
    """How many tokens the form top_k sums over."""
    divergence_weight_cap: float | None = None
    """Largest importance weight of a divergence in the loss from the second update on a
    rollout; inf for no bound, 0 for no weights; by default the method's own."""
    target_kl: float | None = None
    """The KL to hold by adapting beta, in nats a completion; None leaves beta to the
    method."""
    kl_controller: Literal["proportional", "pid", "dual_ascent"] = "proportional"
    """How beta is adapted to hold target_kl: in proportion to the error (Ziegler et
    al.), by its sum as well (PID), or as the constraint's Lagrange multiplier."""
    kl_horizon: float = 10_000.0
    """Completions over which a KL that is far from its target changes beta by 20 %,
    with the proportional controller."""
    reference: Literal["method", "fixed", "moving_average", "periodic_reset"] = "method"
    """Which policy the divergence is measured from: the method's choice, the first
    policy, its moving average, or the policy of every so many steps ago."""
    reference_every: int = 50
    """Steps between two resets of the reference."""
    reference_decay: float = 0.99
    """What the moving average keeps of itself at each step."""
    steps: int = 150
    """How many rollouts to train on."""
    prompts: int = 32
    """Prompts in each rollout."""
    completions: int = 8
    """Completions of each prompt, which make a group."""
    updates: int = 1
    """Optimiser steps on each rollout."""
    microbatches: int = 1
    """Parts that a batch is scanned in, to save memory; the gradient is the same."""
    temperature: float = 1.0
    """Temperature of the sampled distribution, under which the policy is trained."""
    top_k: int | None = None
    """Sample from this many likeliest tokens only."""
    top_p: float | None = None
    """Sample from the likeliest tokens of this mass only."""
    normaliser_decay: float | None = None
    """What the estimate of a prompt's normaliser keeps of earlier samples at each
    visit, of methods with a target; by default all, which counts every sample alike."""
    mask_truncated: bool = False
    """Do not train on completions that were cut before their end; their rewards still
    count in their group."""
    slots: int | None = None
    """Rows decoded at a time, where finished ones make room for the next; None decodes
    all."""
    learning_rate: float | None = 3e-4
    """Learning rate at the peak of its warm-up and cosine schedule."""
    warmup: int | None = 10
    """Optimiser steps over which the learning rate rises from zero; None takes a tenth
    of all, 100 at the most."""
    clip_norm: float = 1.0
    """Largest norm of a gradient; a larger one is scaled down to it."""

    def __post_init__(self):
        least = {"steps": 1, "prompts": 1, "updates": 1, "microbatches": 1}
        least |= {"completions": 1, "warmup": 0, "reference_every": 1}
        least |= {"divergence_top_k": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"{name} must be at least {bound}, got {value}")
        for name in ("top_k", "slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be positive and finite, got {value}")
        if not 0 < self.temperature < float("inf"):
            raise InputError(
                "temperature must be positive to sample a group of different "
                f"completions, got {self.temperature}"
            )
        if self.prompts % self.microbatches:
            raise InputError(
                f"microbatches must divide the {self.prompts} prompts, got "
                f"{self.microbatches}"
            )
        for name in ("top_p", "normaliser_decay"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} must be in (0, 1], got {value}")
        for name in ("beta", "target_kl", "kl_horizon"):
            value = getattr(self, name)
            low = -1e-30 if name == "beta" else 0
            if value is not None and not low < value < float("inf"):
                raise InputError(f"{name} must be positive and finite, got {value}")
        cap = self.divergence_weight_cap
        if cap is not None and not cap >= 0:
            raise InputError(f"divergence_weight_cap must not be negative, got {cap}")
        algorithm = algorithm_of(self)
        _check_updates(self, algorithm)
        _check_truncation(self, algorithm)


def _check_updates(config: RL, algorithm: Algorithm) -> None:
    if algorithm.on_policy and config.updates != 1:
        raise InputError(
            f"updates must be 1 with the method {config.method}, which holds its ratio "
            f"at 1, got {config.updates}"
        )
    if algorithm.replay is not None and config.microbatches > 1:
        raise InputError(
            f"microbatches must be 1 with the method {config.method}, which adds "
            f"earlier groups to each batch, got {config.microbatches}"
        )
    try:
        algorithms.needs(algorithm, completions=config.completions)
    except InputError as error:
        raise InputError(
            f"completions does not suit the method {config.method}, got "
            f"{config.completions}: {error}"
        ) from None


def _check_truncation(config: RL, algorithm: Algorithm) -> None:
    regulariser, cut = algorithm.regulariser, config.top_k or config.top_p
    if regulariser is None or not cut or not regulariser.over_vocabulary:
        return
    if not math.isfinite(regulariser.divergence.f_zero):
        raise InputError(
            f"form {regulariser.form} of {regulariser.divergence.name} is infinite "
            "where top_k or top_p leave the policy no mass that the reference has; "
            "sample from all tokens, or take form='sampled'"
        )


def algorithm_of(config: RL) -> Algorithm:
    """The method with what the options change of it.

    Args:
      config: the options.

    Returns:
      the composition.

    Raises:
      InputError: a name is unknown, or the regulariser's choices do not fit together.
    """
    algorithm = method_of(config.method)
    chosen = {
        name: getattr(config, name)
        for name in ("level", "form", "place")
        if getattr(config, name) is not None
    }
    if config.divergence is not None:
        chosen["divergence"] = divergence_of(config.divergence)
    if chosen and algorithm.target is not None:
        target = _towards(algorithm.target, chosen, config)
        algorithm = dataclasses.replace(algorithm, target=target)
    elif chosen:
        chosen["k"] = config.divergence_top_k
        base = algorithm.regulariser or Regulariser()
        algorithm = dataclasses.replace(
            algorithm,
            regulariser=dataclasses.replace(base, **chosen),
            beta=algorithm.beta or 0.1,
        )
    if config.normaliser_decay is not None:
        algorithm = _with_decay(algorithm, config, config.normaliser_decay)
    if config.divergence_weight_cap is not None:
        algorithm = _with_weight_cap(algorithm, config)
    for name in ("beta", "target_kl"):
        if getattr(config, name) is not None and not reads_beta(algorithm):
            raise InputError(
                f"{name} has nothing to act on, got {getattr(config, name)}: the "
                f"method {config.method} has no divergence from a reference; give it "
                "one by divergence, such as reverse_kl"
            )
    if config.beta is not None:
        algorithm = dataclasses.replace(algorithm, beta=config.beta)
    rules = {
        "fixed": references.fixed,
        "moving_average": lambda: references.moving_average(
            decay=config.reference_decay
        ),
        "periodic_reset": lambda: references.periodic_reset(
            every=config.reference_every
        ),
    }
    if config.reference != "method":
        algorithm = dataclasses.replace(algorithm, reference=rules[config.reference]())
    if config.mask_truncated:
        keep = algorithms.partial(stages.whole, keep=algorithm.keep)
        algorithm = dataclasses.replace(algorithm, keep=keep)
    if config.target_kl is not None:
        maker, settings = {
            "proportional": (controllers.adaptive_kl, {"horizon": config.kl_horizon}),
            "pid": (controllers.pid_kl, {}),
            "dual_ascent": (controllers.dual_ascent_kl, {}),
        }[config.kl_controller]
        controller = algorithms.partial(maker, target=config.target_kl, **settings)
        algorithm = dataclasses.replace(algorithm, controller=controller)
    return algorithm


def _towards(target: Target, chosen: dict[str, Any], config: RL) -> Target:
    """A divergence from a target is that of whole completions, and all the loss."""
    for name in set(chosen) - {"divergence"}:
        raise InputError(
            f"{name} has nothing to act on, got {chosen[name]}: the method "
            f"{config.method} descends a divergence of whole completions from a target"
        )
    return dataclasses.replace(target, divergence=chosen["divergence"])


def _with_decay(algorithm: Algorithm, config: RL, decay: float) -> Algorithm:
    target = algorithm.target
    if target is None:
        raise InputError(
            f"normaliser_decay has nothing to act on, got {decay}: the method "
            f"{config.method} has no target; f_dpg has"
        )
    target = dataclasses.replace(target, decay=decay)
    return dataclasses.replace(algorithm, target=target)


def _with_weight_cap(algorithm: Algorithm, config: RL) -> Algorithm:
    cap, regulariser = config.divergence_weight_cap, algorithm.regulariser
    where = regulariser and (regulariser.place, regulariser.samples)
    if regulariser is None or where != ("loss", "policy"):
        raise InputError(
            f"divergence_weight_cap has nothing to act on, got {cap}: the method "
            f"{config.method} has no divergence in the loss on the policy's samples; "
            "give it one by divergence, such as reverse_kl, and place, loss"
        )
    regulariser = dataclasses.replace(regulariser, weight_cap=cap or None)
    return dataclasses.replace(algorithm, regulariser=regulariser)


def optimiser(config: RL) -> optax.GradientTransformation:
    """AdamW as the options say, over all updates of the run."""
    steps = config.steps * config.updates
    return update.optimiser(
        learning_rate=update.given_rate(config.learning_rate),
        steps=steps,
        warmup=update.warmup_of(steps) if config.warmup is None else config.warmup,
        clip_norm=config.clip_norm,
        final_fraction=0.1,
    )
