"""The losses of pairs in TRL: one decision over all settings that change them, as a loss of smollit."""

from collections.abc import Callable
from typing import Any, NamedTuple

from smollit.commands.imports.mapping import Convert, Given, Settings, is_on, number, takes

# Each changes all losses of TRL. smollit has what `sigmoid` becomes, by one of them at a time.
CHANGES = {"ld_alpha": "LDDPO", "use_weighting": "WPO", "f_divergence_type": "FDPO"}
NEEDED = {"use_weighting": " or a likelihood term", "f_divergence_type": "; an alpha must be between 0 and 1"}
DIVERGENCES = {"js_divergence": "js", "forward_kl": "forward_kl", "alpha_divergence": "alpha"}
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")  # the losses that read `label_smoothing`
OF_CPO = ("cpo_alpha", "simpo_gamma")  # only CPOConfig has these
LOSSES_OF_CPO = {"sigmoid": "CPO", "simpo": "SimPO", "alphapo": "SimPO"}


class Objective(NamedTuple):
    """A weighted sum of losses, and of the negative log-likelihood of the chosen response.

    Args:
        losses: Names of the losses, as smollit has them or as TRL does.
        weights: The weight of each.
        nll_weight: The weight of the negative log-likelihood.
    """

    losses: list[str]
    weights: list[float]
    nll_weight: float


def objective(given: Given) -> Objective:
    """What all settings together ask for, in whatever order they stand.

    Raises:
        ValueError: If smollit has no such loss, so that another one would be trained.
    """
    names = loss_types(given)
    if is_cpo(given) and len(names) > 1:
        raise ValueError(f"CPO has one loss, got {', '.join(names)}")
    if is_cpo(given):
        return _objective_of_cpo(names[0], given)
    weights = given.get("loss_weights") or [1.0] * len(names)
    if len(weights) != len(names):
        raise ValueError(f"`loss_weights` must be one number for each of {', '.join(names)}, got {weights}")
    terms = [(name, number(weight)) for name, weight in zip(names, weights, strict=True)]
    of_pairs = [(name, weight) for name, weight in terms if name != "sft"]
    if not of_pairs:
        raise ValueError("`loss_type: sft` has no counterpart alone: smollit has it beside another loss, `nll_weight`")
    nll_weight = sum(weight for name, weight in terms if name == "sft") + number(given.get("rpo_alpha") or 0)
    found = Objective([name for name, _ in of_pairs], [weight for _, weight in of_pairs], nll_weight)
    change = _change(found, given)
    return found._replace(losses=[CHANGES[change]]) if change else found


def _objective_of_cpo(name: str, given: Given) -> Objective:
    if name not in LOSSES_OF_CPO:
        raise ValueError(f"`loss_type: {name}` of CPO has no counterpart: smollit has {', '.join(LOSSES_OF_CPO)}")
    if number(given.get("alpha") or 0):
        raise ValueError("`alpha` of CPO, which makes it AlphaPO, has no counterpart")
    return Objective([LOSSES_OF_CPO[name]], [1.0], 0.0 if name == "alphapo" else number(given.get("cpo_alpha", 1.0)))


def _change(found: Objective, given: Given) -> str | None:
    """The setting of `CHANGES` that makes `sigmoid` another loss of smollit."""
    asked = [name for name in CHANGES if _is_asked(given.get(name))]
    if found.losses != ["sigmoid"] or len(asked) != 1:
        return None
    alpha = number(given.get("f_alpha_divergence_coef", 0.5)) if _is_alpha(given) else 0.5
    is_possible = {
        "ld_alpha": True,
        "use_weighting": not found.nll_weight,  # TRL weights it too
        "f_divergence_type": given.get("f_divergence_type") in DIVERGENCES and 0 < alpha < 1,
    }
    return asked[0] if is_possible[asked[0]] else None


def _is_asked(value: Any) -> bool:
    return value is not None and value is not False and value != "reverse_kl"


def _is_alpha(given: Given) -> bool:
    return bool(given.get("f_divergence_type") == "alpha_divergence")


def loss_types(given: Given) -> list[str]:
    """The names of the losses, as TRL has them."""
    found = given.get("loss_type") or "sigmoid"
    return [found] if isinstance(found, str) else list(found)


def is_cpo(given: Given) -> bool:
    """Whether the settings are those of CPOTrainer, which has no reference."""
    return any(given.get(name) is not None for name in OF_CPO) or loss_types(given)[0] in ("simpo", "alphapo")


def losses(given: Given) -> list[str]:
    """The names of the losses, as smollit has them or as TRL does."""
    return objective(given).losses


def reads(loss_type: str, argument: str) -> bool:
    """Whether a loss of a sum reads an argument: TRL's `sigmoid` has no label smoothing, as DPO has."""
    return takes(loss_type, argument) and (argument != "label_smoothing" or loss_type in SMOOTHED)


# ---- settings


def loss(given: Given) -> Settings:
    """The loss, or the sum of several."""
    found = objective(given)
    settings: Settings = {"model.loss": found.losses[0]}
    if found.weights != [1.0]:
        settings = {"model.loss": "Sum", "model.loss.losses": found.losses, "model.loss.weights": found.weights}
    return settings | ({"model.loss.nll_weight": found.nll_weight} if found.nll_weight else {})


def loss_weights(value: Any, given: Given) -> Settings:
    """The weight of each loss; that of `sft` is of the negative log-likelihood."""
    weights = ("model.loss.weights", "model.loss.nll_weight")
    return {name: each for name, each in loss(given).items() if name in weights}


def cpo_alpha(value: Any, given: Given) -> Settings:
    """The weight of the negative log-likelihood in CPO."""
    return {"model.loss.nll_weight": objective(given).nll_weight}


def rpo_alpha(value: Any, given: Given) -> Settings:
    """The weight of the negative log-likelihood in DPO, in older versions of TRL."""
    if is_cpo(given):
        raise ValueError("it has no effect there: CPO has `cpo_alpha`")
    return {"model.loss.nll_weight": objective(given).nll_weight}


def change(name: str, argument: str = "", convert: Callable[[Any], Any] = number) -> Convert:
    """A setting of `CHANGES`, and the argument of the loss that its value becomes."""

    def converted(value: Any, given: Given) -> Settings:
        if not _is_asked(value):
            return {}
        if CHANGES[name] not in losses(given):
            others = ", ".join(each for each in CHANGES if each != name)
            also = NEEDED.get(name, "")
            raise ValueError(f"`model.loss: {CHANGES[name]}` has it for `sigmoid` alone, and not beside {others}{also}")
        return loss(given) | ({f"model.loss.{argument}": convert(value)} if argument else {})

    return converted


def divergence_alpha(value: Any, given: Given) -> Settings:
    """The coefficient of the alpha-divergence."""
    if "FDPO" not in losses(given) or not _is_alpha(given):
        raise ValueError("it has no effect there: `f_divergence_type` is another, or has no counterpart")
    return {"model.loss.alpha": number(value)}


def label_smoothing(value: Any, given: Given) -> Settings:
    """The label smoothing of those losses that have one in TRL."""
    smoothed = [name for name in losses(given) if name in SMOOTHED]
    if "exo_pair" in smoothed and not number(value):
        raise ValueError("`exo_pair` needs one above 0, and takes 0.001 without it")
    if smoothed:
        return {"model.loss.label_smoothing": number(value)}
    if number(value) and is_cpo(given):
        raise ValueError(f"`model.loss: {losses(given)[0]}` has no label smoothing")
    if number(value):
        raise ValueError("TRL 1.16 has it for other losses: for conservative DPO, set `model.loss.label_smoothing`")
    return {}


def precomputed(value: Any, given: Given) -> Settings:
    """Scores of the reference before training; `ld_alpha` reads those of single tokens."""
    if is_on(value) and "LDDPO" in losses(given):
        raise ValueError("`model.loss: LDDPO` scores the reference in each step, as `model.reference: frozen` does")
    return {"model.reference": "precomputed"} if is_on(value) else {}
