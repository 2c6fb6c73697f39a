"""The plugin of vLLM: `vllm serve MODEL --hf-overrides '{"tokensieve": {...}}'`.

vLLM calls `register` in every process. It names classes to vLLM's registry and imports none. A
server without "tokensieve" in its config gets vLLM's own classes.
"""

from __future__ import annotations

# Architectures whose answers tests have shown to be those of Transformers under a sieve. All others
# refuse a setting, those without pictures too: a server that drops nothing must not look as if.
FAMILIES = (
    "LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration", "InternVLForConditionalGeneration",
    "Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration",
)  # fmt: skip
OWN: dict[str, str] = {}  # vLLM's "module:class" of each architecture that is guarded


def register() -> None:
    """Put our classes in front of vLLM's own; again changes nothing."""
    from vllm import ModelRegistry, __version__

    for architecture, known in list(ModelRegistry.models.items()):
        module, name = getattr(known, "module_name", __name__), getattr(known, "class_name", "")
        if name and not module.startswith(__name__):
            OWN[architecture] = f"{module}:{name}"
            # vLLM keeps what it read of a class under its name: that of another vLLM is another's
            ours = f"{__name__}.models:{architecture}@{__version__}"
            ModelRegistry.register_model(architecture, ours)
