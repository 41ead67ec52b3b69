"""Parts of a batch: rows of similar length, within the memory, and freed when they are not needed any more."""

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from conftest import make_gpt2, make_llama, make_tokenizer

from astra_trl import ASTSampler, HFASTSystem, HFBackend, InputError, JudgeScorer, KeywordScorer, SamplingParams
from astra_trl.backends.base import Sizes
from astra_trl.backends.hf import cache, memory
from astra_trl.backends.static import ScriptedBackend, ScriptedSession
from astra_trl.conversation import Exchange
from astra_trl.rollout.parts import CALL_BYTES, Parts, parts_of_similar_size

RAGGED = ["soup", "a pot of soup " * 30, "Good morning", "the train was late " * 4, "bread", "all day long " * 5]


@dataclass
class Sized(ScriptedSession):
    """A session whose rows have these sizes."""

    known: Sizes | None = None

    def sizes(self):
        return self.known

    def release(self):
        pass


def sized(row_bytes, pass_bytes=0, free_bytes=None, max_rows=None):
    backend = ScriptedBackend(lambda texts, sibling: "hi", max_rows=max_rows)
    return Sized(backend, [], False, Sizes(row_bytes, pass_bytes, free_bytes))


def sets(parts):
    return {tuple(sorted(part)) for part in parts}


def test_a_part_is_split_as_soon_as_its_padding_costs_more_than_one_more_pass():
    # Together the six rows take 6 * 100 bytes, in two parts 4 * 12 + 2 * 100: 352 less, each of them read twice.
    lengths = [10, 100, 12, 99, 11, 10]
    assert sets(parts_of_similar_size([sized(lengths, pass_bytes=705)], range(6))) == {(0, 1, 2, 3, 4, 5)}
    assert sets(parts_of_similar_size([sized(lengths, pass_bytes=703)], range(6))) == {(0, 2, 4, 5), (1, 3)}
    # Each session has its own longest row, and all sessions run for every part.
    both = [sized(lengths, pass_bytes=703), sized([5] * 6, pass_bytes=2)]
    assert len(parts_of_similar_size(both, range(6))) == 1
    assert len(parts_of_similar_size([both[0], sized([5] * 6)], range(6))) == 2
    # A part with an endpoint waits for it.
    endpoint = ScriptedBackend(lambda texts, sibling: "hi").open(["a"] * 6, seeds=range(6))
    assert len(parts_of_similar_size([sized(lengths, pass_bytes=1), endpoint], range(6))) == 1
    large = [length * CALL_BYTES for length in lengths]
    assert len(parts_of_similar_size([sized(large), endpoint], range(6))) > 1


@pytest.mark.parametrize("lengths", [[10, 100, 12, 99, 11, 10], [50] * 6])
def test_parts_keep_to_the_memory_and_to_the_rows_of_every_session(lengths):
    for free, max_rows in [(120, None), (99, None), (10**6, 4), (300, 2)]:
        parts = parts_of_similar_size([sized(lengths, 10**9, free), sized([1] * 6, 0, None, max_rows)], range(6))
        assert sorted(index for part in parts for index in part) == list(range(6))
        for part in parts:
            assert len(part) <= (max_rows or 6)
            assert len(part) == 1 or len(part) * max(lengths[index] for index in part) <= free
    # Items that branch from the same row are as large as that row.
    assert sets(parts_of_similar_size([sized([1, 100], 1)], [0, 1, 0, 1])) == {(0, 2), (1, 3)}


def test_results_keep_the_order_of_the_items():
    def work(items, sessions):
        done.append(items)
        return [item.upper() for item in items]

    done = []
    items = ["a" * 100, "b", "c" * 90, "d", "e"]
    results = Parts().work(items, lambda some: [sized([len(item) for item in some], 1)], work)
    assert results == [item.upper() for item in items] and len(done) > 1
    assert Parts().work([], lambda some: [], work) == []


@pytest.fixture(autouse=True)
def tiny_models_split_their_rows_too(monkeypatch):
    monkeypatch.setattr(HFBackend, "pass_bytes", 2**13)


SAMPLING = SamplingParams(max_new_tokens=6, temperature=0.0)


def make_system(**fields):
    backends = []
    for seed, make in enumerate((make_gpt2, make_llama)):
        tokenizer = make_tokenizer(300, bos=seed == 1)
        model = make(tokenizer, seed=seed, positions=512)
        model.generation_config.eos_token_id = list(range(3, 300, 9))
        backends.append(HFBackend(model, tokenizer, SAMPLING, **fields))
    return HFASTSystem(*backends, None, KeywordScorer(["soup"]))


def as_plain(trees):
    return [[(node.prompt_ids, node.probe_ids, node.exchange) for node in tree.nodes()] for tree in trees]


@pytest.mark.parametrize(("width", "depth"), [(1, 3), (3, 2)])
def test_no_row_is_padded_to_a_much_longer_one_and_trees_are_those_grown_one_by_one(width, depth, monkeypatch):
    shapes = []
    create = cache.KeyValues.__init__

    def created(self, spec, slots, columns):
        shapes.append((slots, columns))
        create(self, spec, slots, columns)

    monkeypatch.setattr(cache.KeyValues, "__init__", created)
    sampler = ASTSampler(make_system(), RAGGED, width, depth)
    together = sampler.grow(RAGGED, range(6))
    longest = max(columns for _, columns in shapes)
    assert all(slots <= width**depth for slots, columns in shapes if columns > longest / 2)
    assert max(slots for slots, _ in shapes) >= 3 * width  # short rows grow together
    alone = [sampler.grow([opening], [seed])[0] for seed, opening in enumerate(RAGGED)]
    assert as_plain(together) == as_plain(alone)


def test_branches_of_short_rows_leave_the_columns_of_long_ones_behind():
    system = make_system()
    session = system.tester.open(RAGGED, seeds=range(6))
    session.branch([(row, 0) for row in range(6)]).sample()
    short = session.branch([(0, 0), (0, 1), (2, 0)])
    before = session.sizes().row_bytes
    assert before[0] < before[1] / 4
    samples = short.sample()
    assert short.past.window.columns * 4 < session.past.window.columns
    alone = system.tester.open(RAGGED[2:3], seeds=[2]).branch([(0, 0)])
    assert alone.sample()[0].ids == samples[2].ids


def test_the_budget_counts_the_bytes_of_all_buffers_and_copies(monkeypatch):
    alive = weakref.WeakSet()
    create = cache.KeyValues.__init__
    monkeypatch.setattr(
        cache.KeyValues, "__init__", lambda self, spec, *args: (create(self, spec, *args), alive.add(self))[0]
    )
    system = make_system()
    most = {}
    select = cache._select

    def measure(backend):
        held = sum(kv.nbytes for kv in alive if kv.spec.budget is backend.budget)
        most[id(backend)] = max(most.get(id(backend), 0), held)
        assert held <= backend.budget.in_use
        return held

    for backend in (system.tester, system.target):

        def forward(backend=backend, original=backend.forward, **inputs):
            output = original(**inputs)
            if backend.budget.in_use:  # not the pass that finds out the bytes per token
                assert measure(backend) == backend.budget.in_use
            return output

        backend.forward = forward

    def selected(window, old, *args):
        new = select(window, old, *args)
        for backend in (system.tester, system.target):
            measure(backend)
        return new

    monkeypatch.setattr(cache, "_select", selected)
    ASTSampler(system, RAGGED, 2, 3).grow(RAGGED, range(6))
    for backend in (system.tester, system.target):
        assert 0 < most[id(backend)] <= backend.budget.peak
        assert backend.budget.in_use == 0


def test_a_released_session_is_freed_when_its_branches_have_what_they_need():
    backend = make_system().tester
    session = backend.open(RAGGED[:3], seeds=range(3))
    first, second = session.branch([(0, 0), (1, 0)]), session.branch([(1, 1), (2, 0)])
    first.sample()
    held = session.past.nbytes
    session.release()
    assert session.past is not None  # the second has not been fed yet
    whole = backend.budget.in_use
    samples = second.sample()
    assert session.past is None and session.logits is None
    assert backend.budget.in_use == whole - held + second.past.nbytes
    # Branches that are made later still get what the others got.
    late = session.branch([(1, 1), (2, 0)])
    assert [sample.ids for sample in late.sample()] == [sample.ids for sample in samples]
    assert session.past is None
    del first, second, late
    gc.collect()
    assert backend.budget.in_use == 0


def test_parents_are_freed_while_their_last_branches_grow():
    system = make_system()
    depth = 5
    sampler = ASTSampler(system, ["soup"], 1, depth)
    held = []

    def count(rows, sessions):
        held.append(sum(session.past is not None for session in kept[:-2]))
        kept.extend(sessions)

    kept = []
    sampler.grow_unmeasured(["soup"], [0], depth, on_rows=count)
    assert len(held) == depth + 1 and not any(held)


def test_what_memory_runs_out_for_is_grown_again_from_released_parents():
    wanted = as_plain(ASTSampler(make_system(), RAGGED, 2, 2).grow(RAGGED, range(6)))
    system = make_system()
    original, passes = system.target.forward, []

    def forward(**inputs):
        passes.append(len(inputs["input_ids"]))
        if passes[-1] > 2 and inputs["input_ids"].shape[1] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(**inputs)

    system.target.forward = forward
    assert as_plain(ASTSampler(system, RAGGED, 2, 2).grow(RAGGED, range(6))) == wanted


def write_group(folder, version, limit, usage, cached):
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file"),
        2: ("memory.max", "memory.current", "active_file"),
    }
    for name, value in zip(names[version], (limit, usage, None), strict=True):
        if value is not None:
            (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[version][2]} {cached}\n")


def test_limits_of_control_groups_count_with_those_above_them(tmp_path):
    proc = tmp_path / "cgroup"
    new = tmp_path / "v2"
    write_group(new / "pod", 2, 8000, 3000, 1000)
    write_group(new / "pod" / "box", 2, "max", 100, 0)
    proc.write_text("0::/pod/box\n")
    assert list(memory._cgroup_bytes(proc, new)) == [6000]
    old = tmp_path / "v1"
    write_group(old / "memory", 1, 9223372036854771712, 100, 0)
    write_group(old / "memory" / "docker" / "a", 1, 5000, 7000, 500)
    proc.write_text("5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n0::/\n")
    assert min(memory._cgroup_bytes(proc, old)) == 0
    # In a container the group is mounted at the root, and the path is the host's.
    inside = tmp_path / "inside"
    write_group(inside, 2, 4000, 1500, 500)
    proc.write_text("0::/kubepods/x/y\n")
    assert list(memory._cgroup_bytes(proc, inside)) == [3000]
    assert list(memory._cgroup_bytes(tmp_path / "absent", new)) == []


def test_a_cpu_has_a_budget_by_default(monkeypatch):
    monkeypatch.setattr(memory, "_cgroup_bytes", lambda: [10**8])
    backend = make_system().tester
    backend.open(["soup"], seeds=[0])
    assert backend.budget.limit == 30 * 10**6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    backend.open(["soup"], seeds=[0])
    assert backend.budget.limit == 30 * 10**6 // 4
    backend.cache_bytes = 777
    backend.open(["soup"], seeds=[0])
    assert backend.budget.limit == 777


def test_a_judge_splits_a_batch_that_does_not_fit():
    tokenizer = make_tokenizer(300)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"

    def judge(**fields):
        model = make_gpt2(tokenizer, positions=1024)
        return JudgeScorer(HFBackend(model, tokenizer, SAMPLING, chat=True, **fields), answer="score")

    exchanges = [Exchange((), text, "fine") for text in RAGGED]
    wanted = judge()
    whole = wanted(exchanges)
    peak = wanted.backend.budget.peak
    small = judge(cache_bytes=peak // 2)
    assert str(small(exchanges)) == str(whole)
    assert small.backend.budget.peak <= peak // 2
    with pytest.raises(InputError, match="not even one conversation fits in the judge's memory"):
        judge(cache_bytes=1000)(exchanges)
