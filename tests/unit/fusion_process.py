"""Trains the toy; run by torchrun: fusion_process.py ROWS IMAGES OUT [averaged-by-process]."""

import sys

import tokensieve.train.fusion.trainer as trainer
from tokensieve.train.fusion.run import train_fusion
from unit.fusion_toys import toy, toy_recipe

if __name__ == "__main__":
    file, images, out, *broken = sys.argv[1:]
    if broken:
        known = trainer.arguments_of

        def arguments_of(*given):
            made = known(*given)
            made.average_tokens_across_devices = False
            return made

        trainer.arguments_of = arguments_of
    train_fusion(toy(), file, images, toy_recipe("stage2", "train.steps=4"), out)
