"""A vision-language model whose projector fuses tokens, for Transformers' whole tool-chain."""

from tokensieve.hf.fused.build import deepen as deepen
from tokensieve.hf.fused.build import fuse as fuse
from tokensieve.hf.fused.config import FusedLlavaConfig as FusedLlavaConfig
from tokensieve.hf.fused.model import (
    FusedLlavaForConditionalGeneration as FusedLlavaForConditionalGeneration,
)
from tokensieve.hf.fused.model import FusedLlavaModel as FusedLlavaModel
from tokensieve.hf.fused.processor import FusedLlavaProcessor as FusedLlavaProcessor
from tokensieve.hf.fused.registration import register as register
