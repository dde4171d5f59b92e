"""Recipes: refused values and their messages, defaults, overrides, and the published schema."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import exporter
from exporter.errors import RecipeError
from exporter.pipeline.scaffold import schema_text
from exporter.recipes import (
    DistillConfig,
    FineTuneConfig,
    PretrainConfig,
    PruneConfig,
    TeacherConfig,
    read_recipe,
    recipe_from,
    recipe_schema,
    trains,
)

ROOT = Path(exporter.__file__).parent.parent
TABLES = '[model]\nfactory = "net:Net"\n[data]\nfactory = "shapes:load"\n'
WITH_CHECKPOINT = TABLES.replace("[data]", 'checkpoint = "weights.pth"\n[data]')
FINETUNE = '[[stage]]\nkind = "finetune"\n'


@pytest.fixture
def write(tmp_path):
    """Write a recipe that consists of the required tables and `extra`; return its path."""

    def recipe(extra=FINETUNE, *, tables=TABLES, head='name = "tiny"\n'):
        path = tmp_path / "recipe.toml"
        path.write_text(head + tables + extra)
        return path

    return recipe


def refusal(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    return caught.value


def test_defaults_are_filled_in(write):
    recipe = read_recipe(write())
    assert (recipe.name, recipe.seed, recipe.model.args, recipe.model.checkpoint) == ("tiny", 0, {}, None)
    (stage,) = recipe.stage
    assert isinstance(stage, FineTuneConfig)
    assert (stage.epochs, stage.batch_size, stage.freeze, stage.head) == (2, 64, (), None)
    assert (recipe.export.opset, recipe.quantize.target, recipe.bench.threads) == (20, "auto", 1)
    assert recipe.gate.min_accuracy is None


def test_a_recipe_is_frozen(write):
    recipe = read_recipe(write())
    for table, key in ((recipe, "seed"), (recipe.export, "opset"), (recipe.stage[0], "epochs")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(table, key, 3)


def test_the_kind_decides_the_class_of_a_stage(write):
    recipe = read_recipe(
        write(
            FINETUNE
            + '[[stage]]\nkind = "pretrain"\ndata = { factory = "a:b" }\n'
            + '[[stage]]\nkind = "prune"\ntarget = { sparsity = 0.5 }\n'
            + '[[stage]]\nkind = "distill"\nteacher = "finetune"\n'
            + '[[stage]]\nkind = "distill"\nteacher = { factory = "a:b", checkpoint = "c" }\n'
        )
    )
    kinds = [FineTuneConfig, PretrainConfig, PruneConfig, DistillConfig, DistillConfig]
    assert [type(stage) for stage in recipe.stage] == kinds
    assert recipe.stage[4].teacher == TeacherConfig(factory="a:b", checkpoint="c")
    assert recipe.stage_names() == ["finetune", "pretrain", "prune", "distill", "distill-2"]


def test_stages_with_a_name_are_not_numbered(write):
    recipe = read_recipe(write(FINETUNE + FINETUNE + 'name = "second"\n' + FINETUNE))
    assert recipe.stage_names() == ["finetune", "second", "finetune-2"]


@pytest.mark.parametrize(
    ("extra", "key", "fix"),
    [
        ("[quantise]\n", "quantise", "use one of: bench, data, export, gate, model, name, quantize, seed"),
        (
            "[export]\nop = 3\n",
            "export.op",
            "use one of: dynamic, min_sqnr_db, opset, postprocess, preprocess",
        ),
        (
            "[gate.float_twin]\nspeed = 1.0\n",
            "gate.float_twin.speed",
            "use one of: accuracy, agreement, latency",
        ),
        (FINETUNE + "epoch = 3\n", "stage.0.finetune.epoch", "use one of: batch_size, class_weights, ema"),
        (
            '[[stage]]\nkind = "prune"\ntarget = { sparsity = 0.5, macs = 1 }\n',
            "stage.0.prune.target.macs",
            "use one of: pattern, sparsity, threshold",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_known_ones(write, extra, key, fix):
    path = write(extra)
    error = refusal(path)
    assert (error.place, error.cause) == (f"{path}: {key}", "unknown key")
    assert error.fix.startswith(fix)


@pytest.mark.parametrize(
    ("extra", "key", "given"),
    [
        ('[quantize]\nsamples = "many"\n', "quantize.samples", "'many' is refused"),
        ("[quantize]\nsamples = 0\n", "quantize.samples", "0 is refused"),
        ('[quantize]\ntarget = "riscv"\n', "quantize.target", "'riscv' is refused"),
        ('[quantize]\nexclude = "a"\n', "quantize.exclude", "'a' is refused"),
        ("[export]\nopset = 17\n", "export.opset", "17 is refused"),
        ("[export]\nopset = 20.0\n", "export.opset", "20.0 is refused"),
        ("[export]\nmin_sqnr_db = nan\n", "export.min_sqnr_db", "nan is refused"),
        ("[bench]\nthreads = 0\n", "bench.threads", "0 is refused"),
        ("[gate]\nmin_accuracy = 1.5\n", "gate.min_accuracy", "1.5 is refused"),
        (FINETUNE + "epochs = true\n", "stage.0.finetune.epochs", "True is refused"),
        (FINETUNE + "batch_size = 0\n", "stage.0.finetune.batch_size", "0 is refused"),
        (FINETUNE + "learning_rate = 0.0\n", "stage.0.finetune.learning_rate", "0.0 is refused"),
        (FINETUNE + "validation = 1.0\n", "stage.0.finetune.validation", "1.0 is refused"),
        (FINETUNE + 'name = "a b"\n', "stage.0.finetune.name", "'a b' is refused"),
        ('[[stage]]\nkind = "distil"\n', "stage.0.kind", "'distil' is refused"),
        ("[[stage]]\nepochs = 1\n", "stage.0.kind", "is missing"),
        ('[stage]\nkind = "finetune"\n', "stage", "a table is refused"),
        (
            '[[stage]]\nkind = "prune"\ntarget = { sparsity = 1.0 }\n',
            "stage.0.prune.target.sparsity",
            "1.0 is refused",
        ),
        ('[[stage]]\nkind = "prune"\n', "stage.0.prune.target", "is missing"),
        ('[[stage]]\nkind = "pretrain"\n', "stage.0.pretrain.data", "is missing"),
        (
            '[[stage]]\nkind = "distill"\nteacher = "pretrained"\ntemperature = 0.5\n',
            "stage.0.distill.temperature",
            "0.5 is refused",
        ),
    ],
)
def test_wrong_types_and_impossible_values(write, extra, key, given):
    path = write(extra)
    error = refusal(path)
    assert (error.place, error.cause) == (f"{path}: {key}", given)


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ('{ model = "t.onnx", foo = 1 }', "teacher.foo: unknown key; use one of: model"),
        ('["a", { model = "t.onnx", foo = 1 }]', "teacher.1.foo: unknown key; use one of: model"),
        ('{ factory = "a:b", args = {} }', "teacher.checkpoint: is missing; add it"),
        ('{ factory = "a b", checkpoint = "c" }', "teacher.factory: 'a b' is refused; string should match"),
        ("{}", "teacher.model: is missing; add it"),
        ('["a", 3]', "teacher.1: 3 is refused; input should be a valid string"),
        ("3", "teacher: 3 is refused; input should be a valid string"),
    ],
)
def test_errors_in_a_teacher_are_about_the_most_similar_form(write, teacher, told):
    path = write(f'[[stage]]\nkind = "distill"\nteacher = {teacher}\n')
    assert str(refusal(path)).startswith(f"{path}: stage.0.distill.{told}")


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("", "the network is never trained; set model.checkpoint or add a stage that trains"),
        (
            '[[stage]]\nkind = "prune"\ntarget = {}\n',
            "stage.0.prune.target: 0 of its keys are set; set exactly one of sparsity, threshold, pattern",
        ),
        (
            FINETUNE + "[quantize]\nbits = 4\nsamples = 3\n",
            "quantize: bits = 4 does not quantize activations; leave out samples",
        ),
        (
            FINETUNE + "[export.preprocess]\nstd = [0.0]\n",
            "export.preprocess.std: must be above 0; correct it",
        ),
        (
            FINETUNE + "name = ['a']\n",
            "stage.0.finetune.name: a list is refused; input should be a valid string",
        ),
    ],
)
def test_errors_do_not_print_whole_tables_and_lists(write, extra, told):
    path = write(extra)
    assert str(refusal(path)) == f"{path}: {told}"


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "../x", "é", "a\\n", "x" * 65])
def test_a_name_must_be_usable_as_a_file_name(write, name):
    assert refusal(write(head=f'name = "{name}"\n')).place.endswith(": name")


@pytest.mark.parametrize("reference", ["net", "net:", ":Net", "net:Net()", ".net:Net", "net Net:x"])
def test_a_factory_is_a_dotted_path(write, reference):
    error = refusal(write(tables=TABLES.replace("net:Net", reference)))
    assert error.place.endswith(": model.factory")


@pytest.mark.parametrize("value", ["nan", "inf", "[1, -inf]", "{ a = nan }"])
def test_arguments_must_be_representable_in_json(write, value):
    extra = FINETUNE + f"[data.args]\nx = {value}\n"
    assert refusal(write(extra)).place.endswith(": data.args")


def test_a_missing_table_is_named(write):
    error = refusal(write(tables='[model]\nfactory = "net:Net"\n'))
    assert (error.place.rpartition(": ")[2], error.cause, error.fix) == ("data", "is missing", "add it")


@pytest.mark.parametrize("name", ["finetune", "pretrained", "export", "quantize", "parity", "gate"])
def test_stage_names_are_unique_and_not_reserved(write, name):
    path = write(FINETUNE + FINETUNE + f'name = "{name}"\n')
    assert str(refusal(path)) == f"{path}: stage name {name!r} is taken; give the stage another name"


@pytest.mark.parametrize(
    ("stages", "teacher", "known"),
    [
        (FINETUNE, "prune", "pretrained, finetune"),
        ("", "distill", "pretrained"),
        ("", "finetune", "pretrained"),
    ],
)
def test_a_teacher_must_come_earlier(write, stages, teacher, known):
    distill = f'[[stage]]\nkind = "distill"\nteacher = "{teacher}"\n' + FINETUNE + 'name = "late"\n'
    error = refusal(write(stages + distill))
    assert error.cause == f"teacher {teacher!r} of stage 'distill' is not an earlier stage"
    assert error.fix == f"choose one of: {known}"


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (FINETUNE, "stage 'qat' is not the last stage; move it to the end"),
        ('[quantize]\nrepair = ["bias"]\n', "remove quantize.repair and quantize.fallback"),
        ("[quantize.fallback]\n", "remove quantize.repair and quantize.fallback"),
        (
            "[quantize]\nbits = 4\n",
            "stage 'qat' trains for 8 bits, but quantize.bits is 4; remove quantize.bits",
        ),
    ],
)
def test_settings_that_undo_qat_are_refused(write, after, problem):
    text = FINETUNE + '[[stage]]\nkind = "qat"\n'
    read_recipe(write(text))
    assert problem in str(refusal(write(text + after)))


@pytest.mark.parametrize("teacher", ["pretrained", "finetune"])
def test_an_earlier_stage_can_be_a_teacher(write, teacher):
    distill = f'[[stage]]\nkind = "distill"\nteacher = "{teacher}"\n'
    recipe = read_recipe(write(FINETUNE + distill, tables=WITH_CHECKPOINT))
    assert recipe.stage[1].teacher == teacher


def test_a_teacher_with_random_weights_is_refused(write):
    text = FINETUNE + '[[stage]]\nkind = "distill"\nteacher = "pretrained"\n'
    assert "teacher 'pretrained' of stage 'distill' has random weights" in str(refusal(write(text)))


@pytest.mark.parametrize("line", ["from_scratch = true", "few_shot = {}"])
def test_random_weights_are_not_compared_with_random_weights(write, line):
    text = f"{FINETUNE}{line}\n"
    assert "'finetune' would compare random weights with random weights" in str(refusal(write(text)))
    read_recipe(write(text, tables=WITH_CHECKPOINT))
    warm = '[[stage]]\nkind = "pretrain"\ndata = { factory = "a:b" }\n'
    read_recipe(write(warm + text))


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ('kind = "prune"\ntarget = { pattern = "2:4" }\nscope = "layer"', "scope"),
        ('kind = "distill"\nteacher = "finetune"\nother_weight = 2.0', "other_weight"),
        ('kind = "shrink"\nresolution = 32\ndepth = 2', "depth"),
        ('kind = "shrink"\nresolution = 32\nmultiple = 4', "multiple"),
        ('kind = "shrink"\ntarget = { macs_ratio = 0.5 }\nhard_weight = 0.2', "hard_weight"),
        ('kind = "shrink"\ntarget = { macs_ratio = 0.5 }\nallocation = "uniform"\ndepth = 2', "depth"),
    ],
)
def test_keys_without_effect_are_refused(write, lines, key):
    assert f"{key} has no effect" in str(refusal(write(f"{FINETUNE}[[stage]]\n{lines}\n")))


def test_k_is_refused_without_topk(write):
    text = FINETUNE + '[export.postprocess]\nkind = "softmax"\nk = 3\n'
    assert "k has no effect with softmax" in str(refusal(write(text)))


def test_something_must_be_trained(write):
    prune = '[[stage]]\nkind = "prune"\ntarget = { sparsity = 0.5 }\n'
    assert "the network is never trained; set model.checkpoint" in str(refusal(write(prune)))
    checkpoint = 'checkpoint = "weights.pth"\n'
    tables = TABLES.replace("[data]", checkpoint + "[data]")
    assert read_recipe(write(prune, tables=tables)).model.checkpoint == "weights.pth"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name = ", "is not valid TOML"),
        (b"name = 'a'\nname = 'b'", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"seed = " + b"9" * 5000, "is not valid TOML"),
        (b"seed = " + b"[" * 20_000, "is not valid TOML"),
        (b"#" * (2 << 20), "is larger than the limit of 1,048,576 bytes"),
    ],
)
def test_files_that_are_not_a_recipe(tmp_path, content, words):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    error = refusal(path)
    assert error.place == str(path)
    assert error.cause.startswith(words)


def test_files_that_cannot_be_read(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.toml").cause
    assert "directory" in refusal(tmp_path).cause


def test_too_deeply_nested_tables_are_refused():
    nested: dict[str, object] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    try:
        with pytest.raises(RecipeError, match="nested"):
            recipe_from({"name": nested}, "recipe")
    finally:
        while nested:  # freed level by level, because the interpreter would free it recursively
            nested = nested.popitem()[1]


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=7", lambda r: r.seed, 7),
        (" seed = 7 ", lambda r: r.seed, 7),
        ("name=other", lambda r: r.name, "other"),
        ('name="quoted"', lambda r: r.name, "quoted"),
        ("stage.0.epochs=5", lambda r: r.stage[0].epochs, 5),
        ("stage.finetune.epochs=5", lambda r: r.stage[0].epochs, 5),
        ("stage.finetune-2.epochs=5", lambda r: r.stage[1].epochs, 5),
        ("stage.last.epochs=5", lambda r: r.stage[2].epochs, 5),
        ('stage.last.freeze=["a", "b"]', lambda r: r.stage[2].freeze, ("a", "b")),
        ("quantize.target=arm64", lambda r: r.quantize.target, "arm64"),
        ("gate.float_twin.accuracy=0.5", lambda r: r.gate.float_twin.accuracy, 0.5),
        ("model.args.width=4", lambda r: r.model.args, {"width": 4}),
        ("model.checkpoint=a=b.pth", lambda r: r.model.checkpoint, "a=b.pth"),
    ],
)
def test_an_override_replaces_a_value(write, override, read, value):
    path = write(FINETUNE + FINETUNE + FINETUNE + 'name = "last"\n')
    assert read(read_recipe(path, [override])) == value
    assert read(read_recipe(path)) != value


def test_later_overrides_win(write):
    assert read_recipe(write(), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "does not have the form table.key=value"),
        ("=3", "does not have the form table.key=value"),
        ("a..b=3", "does not have the form table.key=value"),
        ("name.x=3", "'name' is not a table"),
        ("name.x.y=3", "'x' is not inside a table"),
        ("stage.epochs=3", "'stage' is not a table"),
        ("stage.prune.epochs=3", "there is no stage 'prune'; choose one of: finetune"),
        ("stage.1.epochs=3", "there is no stage '1'"),
        ("stage.².epochs=3", "there is no stage '²'"),
        ("stage.finetune.epoch=3", "unknown key; use one of: batch_size"),
        ("seed=many", "'many' is refused"),
        ("seed=" + "9" * 5000, "is refused"),
        ("seed=" + "[" * 20_000, "is refused"),
    ],
)
def test_invalid_overrides_are_refused(write, override, words):
    assert words in str(refusal(write(), override))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("target = {}", "0 of its keys are set; set exactly one of sparsity, threshold, pattern"),
        ("target = { sparsity = 0.5, threshold = 0.1 }", "2 of its keys are set"),
        ("target = { pattern = '4:4' }", "keeps 4 of 4 weights; write N:M with 0 < N < M, for example 2:4"),
        ("target = { pattern = '0:4' }", "keeps 0 of 4"),
        ("target = { sparsity = 0.5 }\nmethod = 'movement'", "add gradual = { epochs = 3 }"),
        ("target = { threshold = 0.5 }\ngradual = {}", "set target.sparsity"),
        ("target = { sparsity = 0.5 }\ngradual = { begin = 0.8, end = 0.5 }", "is not after begin"),
    ],
)
def test_invalid_prune_stages_are_refused(write, lines, words):
    error = refusal(write(f'[[stage]]\nkind = "prune"\n{lines}\n'))
    assert words in str(error)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "epochs = 2\nprobe_epochs = 2",
            "leaves no epoch to train the other layers, because epochs is 2; raise epochs",
        ),
        ("unfreeze_every = 2", "unfreeze_every needs unfreeze_epoch"),
        ("unfreeze_epoch = 1", "unfreeze_epoch has no effect without freeze; name modules in freeze"),
        ("freeze = ['a']\nunfreeze_epoch = 2", "unfreeze_epoch (2) is never reached in 2 epochs"),
        ("few_shot = { images = [5, 2] }", "the sizes are not in ascending order; write each once"),
        ("few_shot = { images = [2, 2] }", "the sizes are not in ascending order; write each once"),
        ("layer_decay = 0.0", "layer_decay"),
        ("norm_statistics = 'none'", "norm_statistics"),
    ],
)
def test_invalid_training_settings_are_refused(write, lines, words):
    assert words in str(refusal(write(f"{FINETUNE}{lines}\n")))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("teacher = []", "teacher is an empty list; name at least one teacher"),
        ("teacher = ['finetune', 'later']", "teacher 'later' of stage 'distill' is not an earlier stage"),
        ("teacher = 'pretrained'\nunlabelled = { factory = 'a:b' }\nmixup = 0.2", "set mixup = 0"),
        (
            "teacher = 'pretrained'\nunlabelled = { factory = 'a:b' }\nhard_weight = 1.0",
            "lower hard_weight",
        ),
        ("teacher = 'pretrained'\nfeatures = [{ student = 'a', kind = 'gram' }]", "kind"),
    ],
)
def test_invalid_distill_stages_are_refused(write, lines, words):
    assert words in str(refusal(write(f'{FINETUNE}[[stage]]\nkind = "distill"\n{lines}\n')))


def test_gradual_pruning_counts_as_training(write):
    recipe = read_recipe(write('[[stage]]\nkind = "prune"\ntarget = { sparsity = 0.5 }\ngradual = {}\n'))
    assert trains(recipe.stage[0])


def test_the_published_schema_is_current():
    assert (ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8") == schema_text()


def test_the_schema_describes_every_key():
    schema = recipe_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["additionalProperties"] is False
    for name, table in schema["$defs"].items():
        for key, value in table.get("properties", {}).items():
            described = value.keys() & {"description", "$ref", "const", "default"}
            assert described, f"{name}.{key} is not described"
    assert json.loads(schema_text()) == schema


def test_shipped_recipes_are_valid():
    found = [
        *ROOT.glob("models/**/*.toml"),
        ROOT / "exporter" / "pipeline" / "templates" / "new" / "recipe.toml",
    ]
    assert len(found) >= 11
    for path in found:
        assert read_recipe(path).stage


def test_the_recipes_that_the_techniques_name_are_shipped():
    named = set(re.findall(r"[\w/-]+\.toml", (ROOT / "docs" / "techniques.md").read_text(encoding="utf-8")))
    assert len(named) >= 8
    shipped = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("models/simplenet/**/*.toml")]
    assert [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in shipped)] == []
