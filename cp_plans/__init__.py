"""Context-parallel plans, one per model family."""

from lvsa.cp_plans.base import ModelPlan
from lvsa.cp_plans.cogvideox import COGVIDEOX
from lvsa.cp_plans.hunyuan15 import HUNYUAN15
from lvsa.cp_plans.vace import VACE
from lvsa.cp_plans.wan import WAN, WAN_PER_TOKEN
from lvsa.errors import PlanError

PLANS: dict[str, ModelPlan] = {
    plan.name: plan for plan in (WAN, WAN_PER_TOKEN, VACE, HUNYUAN15, COGVIDEOX)
}
# Which plan a transformer takes when nothing else is said about its pipeline.
BY_CLASS: dict[str, str] = {
    "WanTransformer3DModel": "wan",
    "CogVideoXTransformer3DModel": "cogvideox",
    "HunyuanVideo15Transformer3DModel": "hunyuan15",
    "WanVACETransformer3DModel": "vace",
    "SkyReelsV2Transformer3DModel": "wan",
}


def get_plan(name: str) -> ModelPlan:
    """A plan by name; an unknown name lists the known ones."""
    if name not in PLANS:
        raise PlanError(f"no context-parallel plan named {name!r}; known: {', '.join(PLANS)}")
    return PLANS[name]


def plan_for(transformer: object) -> ModelPlan:
    """The plan of a transformer, by its class."""
    for cls in type(transformer).__mro__:
        if cls.__name__ in BY_CLASS:
            return PLANS[BY_CLASS[cls.__name__]]
    raise PlanError(
        f"no context-parallel plan for {type(transformer).__name__}; known: "
        f"{', '.join(BY_CLASS)}. Add one to cp_plans/ as docs/add-a-model.md shows"
    )


__all__ = ["BY_CLASS", "PLANS", "ModelPlan", "get_plan", "plan_for"]
