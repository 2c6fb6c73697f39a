"""The plugin of vLLM: `vllm serve MODEL --hf-overrides '{"tokensieve": {...}}'`.

vLLM calls `register` in every process. It names classes to vLLM's registry and imports none. A
server without "tokensieve" in its config gets vLLM's own classes.
"""

from __future__ import annotations

# vLLM's module and class by architecture: those whose answers tests have shown to be the same
FAMILIES = {
    "LlavaForConditionalGeneration": "llava",
}


def register() -> None:
    """Put the sieved classes in the place of vLLM's own; again changes nothing."""
    from vllm import ModelRegistry

    for architecture in FAMILIES:
        ModelRegistry.register_model(architecture, f"{__name__}.models:{architecture}")
