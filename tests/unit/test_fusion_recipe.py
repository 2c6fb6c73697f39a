"""Presets as published, settings, shares of a batch, and configs that shard."""

import json

import pytest
from transformers import TrainingArguments

from tokensieve.errors import ConfigError, MissingPackageError, UnknownNameError
from tokensieve.train.fusion.recipe import SECTIONS, TrainConfig, make_recipe, preset_names
from tokensieve.train.fusion.sharding import processes, read_parallel, shipped
from tokensieve.train.fusion.trainer import arguments_of
from tokensieve.train.selector.recipe import read_settings
from tokensieve.train.settings import describe


def test_presets_are_the_published_recipe():
    assert preset_names() == ["stage1", "stage2", "stage2-lora"]
    one, two, lora = (make_recipe(name) for name in ("stage1", "stage2", "stage2-lora"))
    assert (one.train.parts, one.train.lr, one.train.batch) == ("projector", 1e-3, 256)
    assert (two.train.parts, two.train.lr, two.train.batch) == ("llm", 2e-5, 128)
    assert two.train.llm_lr is None  # the same
    assert (lora.train.parts, lora.train.lr, lora.train.llm_lr) == ("lora", 2e-5, 2e-4)
    assert (lora.lora.rank, lora.lora.alpha, lora.train.batch) == (128, 256, 128)
    for recipe in (one, two, lora):
        assert (recipe.train.epochs, recipe.train.warmup) == (1, 0.03)
        assert recipe.train.checkpointing
        assert recipe.data.max_length == 2048
    assert [r.data.form for r in (one, two, lora)] == ["plain", "chat", "chat"]
    assert [r.data.order for r in (one, two, lora)] == ["random", "length", "length"]
    assert "lora" not in two.to_dict()
    assert "run" not in lora.to_dict()


def test_arguments_say_the_same_to_transformers(tmp_path):
    made = arguments_of(make_recipe("stage1"), tmp_path, 2325, 7, 8, {})
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps * 8 == 256
    assert (made.max_steps, made.seed, made.weight_decay) == (2325, 7, 0.0)
    assert made.get_warmup_steps(2325) == 70
    assert made.lr_scheduler_type == "cosine"
    assert made.average_tokens_across_devices
    assert not made.bf16  # no GPU here
    assert make_recipe("stage1").steps(595_375) == 2326


def test_a_process_without_a_launcher_takes_one_gpu(tmp_path, monkeypatch):
    """Transformers would multiply the batch by the GPUs it sees."""
    known = TrainingArguments.__post_init__

    def with_four(self):
        known(self)
        self._n_gpu = 4

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_four)
    made = arguments_of(make_recipe("stage1"), tmp_path, 5, 0, 1, {})
    assert made.train_batch_size == made.per_device_train_batch_size == 16


@pytest.mark.parametrize(
    ("batch", "per_device", "count", "shares"),
    [(256, 16, 8, (16, 2)), (256, 32, 1, (32, 8)), (8, 16, 2, (4, 1)), (6, 3, 1, (3, 2))],
)
def test_shares_of_a_batch(batch, per_device, count, shares):
    assert TrainConfig(batch=batch, per_device=per_device).shares(count) == shares


def test_what_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="Set it to a multiple of 3"):
        TrainConfig(batch=128).shares(3)
    with pytest.raises(ConfigError, match=r"Got 5. Largest that does: 4"):
        TrainConfig(batch=16, per_device=5).shares(2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.parts=encoder", "Unknown train.parts 'encoder'"),
        ("train.batch=0", "Expected `train.batch` of at least 1"),
        ("train.lr=0", "Expected `train.lr` above 0"),
        ("train.llm_lr=nan", "Expected `train.llm_lr` above 0"),
        ("train.warmup=1", "Expected `train.warmup` in"),
        ("train.clip=-1", "Expected `train.clip` of 0 or more"),
        ("train.checkpointing=yes", "Expected `train.checkpointing` as True or False"),
        ("train.precision=fp8", "Unknown train.precision 'fp8'"),
        ("data.form=plan", "Did you mean 'plain'"),
        ("data.max_length=0", "Expected `data.max_length`"),
        ("lora.rank=0", "Expected `lora.rank`"),
        ("lora.alpha=0", "Expected `lora.alpha` above 0"),
        ("lora.dropout=1", "Expected `lora.dropout`"),
        ("run.workers=-1", "Expected `run.workers`"),
        ("run.dtype=int8", "Unknown run.dtype"),
        ("train.stepz=3", "Did you mean 'train.steps'"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ConfigError, match=message):
        make_recipe("stage2", [setting])


def test_text_from_a_file_is_what_its_json_says(tmp_path):
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"data.end": '\n\u3002"', "run.dtype": "float16"}))
    recipe = make_recipe("stage2", read_settings(file))
    assert (recipe.data.end, recipe.run.dtype) == ('\n\u3002"', "float16")
    for text in ("\n", "</s>", '"'):
        assert make_recipe("stage2", [f"data.end={text}"]).data.end == text


def test_an_unknown_preset_is_helped():
    with pytest.raises(UnknownNameError, match="Did you mean 'stage2'"):
        make_recipe("stage3")


def test_every_setting_says_what_it_does():
    lines = describe(SECTIONS).splitlines()
    assert (
        "  train.checkpointing=true  Compute the LLM's activations again to save memory." in lines
    )
    assert all(line.rstrip().endswith(".") for line in lines)


def test_fsdp_is_what_accelerate_takes(tmp_path):
    """The plugin is built; FSDP itself wants GPUs and has not run here."""
    from accelerate import FullyShardedDataParallelPlugin

    assert shipped() == ["fsdp", "zero2", "zero3"]
    made = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **read_parallel("fsdp"))
    plugin = FullyShardedDataParallelPlugin(**made.fsdp_plugin_args)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)  # what is loaded without pickle


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_zero_is_what_accelerate_takes(name, stage, monkeypatch):
    """Parsed without DeepSpeed, which is not among the test packages."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    monkeypatch.setattr("tokensieve.train.fusion.sharding.need", lambda *_: None)
    values = read_parallel(name)["deepspeed"]
    made = HfDeepSpeedConfig(values)
    assert made.is_zero3() is (stage == 3)
    assert made.get_value("zero_optimization.stage") == stage
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"):
        assert values[key] == "auto"  # Transformers fills in what the recipe says
    if stage == 3:  # or no process could write the model
        assert made.is_true("zero_optimization.stage3_gather_16bit_weights_on_model_save")


def test_zero_without_deepspeed_names_the_extra():
    pytest.importorskip("accelerate")
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        with pytest.raises(MissingPackageError, match=r"tokensieve\[deepspeed\]"):
            read_parallel("zero2")


def test_a_file_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tokensieve.train.fusion.sharding.need", lambda *_: None)
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    assert read_parallel(str(file)) == {"deepspeed": {"zero_optimization": {"stage": 1}}}
    file.write_text(json.dumps({"fsdp": True}))
    assert read_parallel(str(file)) == {"fsdp": True}
    assert read_parallel(None) == {}
    for content, message in (
        ("{", "Expected JSON"),
        ("{}", "Got other"),
        ('{"a": 1}', "Got other"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_parallel(str(file))
    with pytest.raises(UnknownNameError, match="Did you mean 'zero3'"):
        read_parallel("zero4")


def test_processes_come_from_the_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes() == 4
    monkeypatch.setenv("WORLD_SIZE", "x")
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        processes()
