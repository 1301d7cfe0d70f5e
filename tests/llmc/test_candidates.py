"""What a budget chooses from, from headers alone: groups, what each can become, budgets that nothing keeps, rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmc.budget import BudgetProblem
from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError
from llmc.explicit_rules import explicit_rules
from llmc.job import plan
from llmc.planning import cache_bytes_per_token
from llmc.quant.assign import assign
from llmc.recipe import load_recipe
from llmc.scheme_options import Group

ENGINE = [{"tensorrt-rtx": {"sm": [120]}}]


def problem(model: Path | Checkpoint, **changes: Any) -> BudgetProblem:
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.open(model, headers_only=True)
    recipe, _ = load_recipe({"model": "x", "targets": [], "bits": 5.0, **changes})
    return BudgetProblem.of(checkpoint, recipe)


def groups(model: Path | Checkpoint, **changes: Any) -> dict[str, Group]:
    return {group.name: group for group in problem(model, **changes).groups}


def names(group: Group) -> list[str | None]:
    return [option.scheme for option in group.options]


@pytest.fixture(scope="module")
def checkpoint(small_model: Path) -> Checkpoint:
    return Checkpoint.open(small_model, headers_only=True)


def test_experts_of_a_layer_are_one_group(checkpoint: Checkpoint) -> None:
    found = groups(checkpoint)
    experts = [group for name, group in found.items() if name.endswith(".mlp.experts")]
    assert experts and all(len(group.modules) % 3 == 0 and len(group.modules) > 3 for group in experts)
    assert all(len(group.modules) == 1 for group in found.values() if group not in experts)
    assert {"model.embed_tokens", "lm_head"} <= found.keys()


def test_what_does_not_fit_is_no_choice(checkpoint: Checkpoint) -> None:
    for group in groups(checkpoint).values():
        for name in names(group):
            if name is not None and "-g" in name:
                width = int(name.rpartition("-g")[2])
                assert all(checkpoint.shape(f"{module}.weight")[1] % width == 0 for module in group.modules)
    eights = [
        [name for name in names(group) if name and name.startswith("int8-g")] for group in groups(checkpoint).values()
    ]
    assert max(map(len, eights)) == 1, "of 8 bits the widest groups only"
    assert all(
        not str(name).startswith("fp8") for group in groups(checkpoint, layout="gptq").values() for name in names(group)
    )


def test_what_an_engine_decodes_is_no_choice(checkpoint: Checkpoint) -> None:
    found = groups(checkpoint, targets=ENGINE)
    assert not [group for group in found.values() if group.role == "kv_b_proj"]
    assert {"int4-g32", "int8-g64"} & {*names(found["model.embed_tokens"])}  # rows are gathered of their codes
    pinned = groups(checkpoint, targets=ENGINE, quantize=[{"match": "kv_b_proj", "scheme": "fp8-channel"}])
    assert next(names(group) for group in pinned.values() if group.role == "kv_b_proj") == ["fp8-channel"]


@pytest.mark.parametrize(("name", "role", "more"), [("int3-g32", "experts", 1), ("int6-g64", "embedding", 2)])
def test_few_bits_take_four_or_eight_in_an_engine(checkpoint: Checkpoint, name: str, role: str, more: int) -> None:
    group = next(group for group in groups(checkpoint, targets=ENGINE).values() if group.role == role)
    option = next(option for option in group.options if option.scheme == name)
    assert option.device_bytes == option.bytes + more * group.parameters // 8


def test_pruned_experts_take_nothing(checkpoint: Checkpoint) -> None:
    whole, half = problem(checkpoint), problem(checkpoint, prune={"keep": 0.5})
    for before, after in zip(whole.groups, half.groups, strict=True):
        experts = before.name.endswith(".mlp.experts")
        assert after.parameters == before.parameters // (2 if experts else 1)
        assert after.modules == before.modules
    assert half.fixed < whole.fixed


def test_budgets_that_nothing_keeps(checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"^bits: 1\.0: the least that these candidates reach is 2\.\d+ bits$"):
        problem(checkpoint, bits=1.0)
    with pytest.raises(InputError, match=r"^size: 10\.0 kB: the least that these candidates reach is \d+\.\d kB$"):
        problem(checkpoint, bits=None, size=10_000)
    with pytest.raises(
        InputError, match=r"^fit: 400MB@1K: the least .* is 5\d\d\.\d MB \(\d+\.\d kB of weights, 5\d\d"
    ):
        problem(checkpoint, bits=None, fit="400MB@1K")
    with pytest.raises(InputError, match=r"^size: 1\.0 GB: the model as it is takes .*; nothing would be quantized$"):
        problem(checkpoint, bits=None, size="1GB")


def test_the_least_that_an_error_names_is_enough(checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError) as error:
        problem(checkpoint, bits=1.0)
    least = float(str(error.value).split()[-2])
    found = problem(checkpoint, bits=least)
    assert found.solve(found.guess).point.bits <= least


def test_rules_that_leave_no_choice(checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="match: dense_mlp` matches nothing that an earlier rule left; this model has"):
        problem(checkpoint, quantize=[{"match": "dense_mlp"}, {"match": "dense_mlp"}])
    with pytest.raises(InputError, match=r"the rule `match: attention` leaves no choice: .*no multiple of 256"):
        problem(checkpoint, quantize=[{"match": "attention", "scheme": ["int4-g256"]}])
    with pytest.raises(InputError, match=r"mlp\.experts has one scheme for all of .*let one rule match all of them"):
        rules = [
            {"match": r"re:.*\.experts\.0\.up_proj", "scheme": "int4-g32"},
            {"match": "experts", "scheme": "int2-g32"},
        ]
        problem(checkpoint, quantize=rules)


def test_a_longer_context_leaves_less_for_weights(checkpoint: Checkpoint) -> None:
    short, long = (problem(checkpoint, bits=None, fit=f"538.4MB@{tokens}") for tokens in (1000, 1200))
    cache, _ = cache_bytes_per_token(checkpoint.spec, fp8=False)
    assert short.budget - long.budget == 200 * cache
    halved = problem(checkpoint, bits=None, fit="538.4MB@1200", kv_cache="fp8")
    assert halved.budget - long.budget == 1200 * cache // 2


@pytest.mark.parametrize("bits", [2.9, 3.3, 6.0])
def test_rules_say_what_was_solved(checkpoint: Checkpoint, bits: float) -> None:
    found = problem(checkpoint, bits=bits)
    solved = found.solve(found.guess)
    rules = [(rule.match, rule.only_scheme) for rule in solved.recipe.quantize]
    assert solved.recipe.budget is None and rules
    said = {group.name: solved.allocation.chosen[group.name].scheme for group in found.groups}
    chosen = {
        module: (name, "gptaq") for group in found.groups if (name := said[group.name]) for module in group.modules
    }
    assigned = assign(checkpoint, explicit_rules(checkpoint, chosen))
    for group in found.groups:
        for module in group.modules:
            assert (assigned[module].scheme.name if module in assigned else None) == said[group.name]
    assert len(rules) < len(found.groups) / 2


def test_a_role_of_one_scheme_is_named(checkpoint: Checkpoint) -> None:
    roles = {
        module: checkpoint.role(f"{module}.weight") for group in problem(checkpoint).groups for module in group.modules
    }
    chosen = {module: ("int4-g32", "rtn") for module, role in roles.items() if role in ("experts", "lm_head")}
    assert [rule.match for rule in explicit_rules(checkpoint, chosen)] == ["experts", "lm_head"]


def test_what_a_measurement_takes_is_planned_for(tmp_path: Path, small_model: Path, text_file: Path) -> None:
    texts = {"calibration": {"text": str(text_file), "samples": 8, "length": 64}, "check": {"text": str(text_file)}}
    given = {"model": str(small_model), "targets": [], **texts}
    measured, plain = (plan({**given, **more}, tmp_path / "x") for more in ({"bits": 5.0}, {}))
    hidden, layers = 64, 3
    assert measured.work_disk > 4 * 8 * 64 * hidden * (layers + 1)
    assert measured.budget is not None and measured.budget.measured is None and plain.budget is None
