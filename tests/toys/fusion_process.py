"""Trains the toy; run by torchrun: fusion_process.py ROWS IMAGES OUT MODE."""

import sys

import tokensieve.train.fusion.trainer as trainer
from tokensieve.train.fusion.run import Data, train_fusion
from tokensieve.train.fusion.sharding import read_parallel
from toys.fusion_toys import toy, toy_recipe


def average_by_process():
    """The mistake: a mean of the processes' means."""
    known = trainer.arguments_of

    def arguments_of(*given):
        made = known(*given)
        made.average_tokens_across_devices = False
        return made

    trainer.arguments_of = arguments_of


def let_fsdp_run_on_cpus():
    """Accelerate offers FSDP to groups of GPUs alone; PyTorch runs it on a CPU group, too."""
    from accelerate import state

    known = state.PartialState.__init__

    def init(self, *given, **named):
        known(self, *given, **named)
        if self.__dict__.get("distributed_type") == state.DistributedType.MULTI_CPU:
            self.distributed_type = state.DistributedType.MULTI_GPU

    state.PartialState.__init__ = init


if __name__ == "__main__":
    file, images, out, mode = sys.argv[1:]
    if mode == "averaged-by-process":
        average_by_process()
    if mode == "fsdp":
        let_fsdp_run_on_cpus()
    shared = read_parallel(mode if mode in ("fsdp", "zero2", "zero3") else None)
    recipe = toy_recipe("stage2", "train.steps=4")
    train_fusion(toy(), Data(file, images), recipe, out, parallel=shared)
