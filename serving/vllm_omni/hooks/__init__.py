"""Hooks for models that do not say what LVSA needs: one file for each, loaded with its model.

vLLM-Omni's Wan tells its attention the grid and the step. For another model a hook reads both off
the arguments of its transformer. Other packages add hooks under the entry-point group
``lvsa.vllm_omni_hooks``, named after the pipeline class.
"""

from importlib import import_module
from importlib.metadata import entry_points

GROUP = "lvsa.vllm_omni_hooks"
HOOKS = {
    # vLLM-Omni's name of a model → module:function
    "HunyuanVideo15Pipeline": "lvsa.serving.vllm_omni.hooks.hunyuan15:install",
    "HunyuanVideo15ImageToVideoPipeline": "lvsa.serving.vllm_omni.hooks.hunyuan15:install",
}


def install_hook(pipeline_class: str | None) -> None:
    """Installs the hook of a model, if it has one. Called as the model is built, by every layer."""
    if pipeline_class in HOOKS:
        module, _, function = HOOKS[pipeline_class].partition(":")
        getattr(import_module(module), function)()
        return
    for entry in entry_points(group=GROUP):
        if entry.name == pipeline_class:
            entry.load()()
