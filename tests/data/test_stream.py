"""Sample i of epoch e depends on (seed, e, i) alone; nothing held out is trained on; a restored stream goes on exactly."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from luthier.data.settings import Data, Source
from luthier.data.stream import Sample, Stream, _apportion, open_stream


@pytest.fixture
def files(tmp_path):
    """files(a=10, b=3) writes a.jsonl with texts a0 ... a9, and so on; gives the paths."""

    def write(**counts: int) -> list[str]:
        for name, count in counts.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name}{i}"}) + "\n" for i in range(count)))
        return [str(tmp_path / f"{name}.jsonl") for name in counts]

    return write


def texts(stream: Stream, count: int) -> list[str]:
    return [next(stream).row["text"] for _ in range(count)]


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(files):
    (path,) = files(a=50)
    stream = open_stream(Data(path, held_out=0), seed=1)
    epochs = [texts(stream, 50) for _ in range(4)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 50 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert stream.epoch == 4.0 and stream.epoch_size == 50


def test_the_same_seed_gives_the_same_samples_and_another_gives_others(files):
    (path,) = files(a=40)
    first, again, other = (open_stream(Data(path), seed) for seed in (1, 1, 2))
    a, b, c = ([next(stream) for _ in range(90)] for stream in (first, again, other))
    assert a == b and [s.row for s in a] != [s.row for s in c]
    assert [s.rng("mask").random() for s in a] == [s.rng("mask").random() for s in b]
    assert first.held_out == again.held_out != other.held_out


def test_the_orders_of_seeds_epochs_and_files_have_nothing_in_common(files):
    mixed = Data(tuple(files(a=200, b=200)), held_out=0)
    orders = []
    for seed in (0, 1):
        stream = open_stream(mixed, seed)
        for _ in range(2):
            epoch = texts(stream, 400)
            orders += [[int(text[1:]) for text in epoch if text[0] == name] for name in "ab"]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            same = sum(a == b for a, b in zip(one, other, strict=True))
            assert same < 12  # by chance about one


def test_without_shuffling_rows_come_as_they_stand(files):
    paths = files(a=3, b=2)
    stream = open_stream(Data(tuple(paths), held_out=0, shuffle=False), seed=0)
    assert texts(stream, 10) == ["a0", "a1", "a2", "b0", "b1"] * 2


def test_weights_are_shares_of_the_draws_and_rows_are_all_seen_before_any_returns(files):
    paths = files(a=30, b=70)
    mixed = Data((Source(paths[0], 3.0), Source(paths[1], 1.0)), held_out=0)
    stream = open_stream(mixed, seed=5)
    drawn = texts(stream, 400)
    counts = Counter(drawn)
    assert sum(count for text, count in counts.items() if text[0] == "a") == 300
    assert set(counts.values()) <= {10, 1, 2}
    assert {text for text in drawn[:100] if text[0] == "a"} == {f"a{i}" for i in range(30)}
    longest = max(len(run) for run in "".join(text[0] for text in drawn).split("b"))
    assert longest < 30, "the files are not mixed"


def test_weights_without_shuffling_interleave_evenly(files):
    paths = files(a=2, b=6)
    stream = open_stream(Data((Source(paths[0], 1.0), Source(paths[1], 1.0)), held_out=0, shuffle=False), seed=0)
    assert [text[0] for text in texts(stream, 8)] == ["a", "b"] * 4


def test_a_restored_stream_goes_on_exactly_wherever_it_stopped(files):
    paths = files(a=17, b=5)
    data = Data((Source(paths[0], 2.0), Source(paths[1], 1.0)), held_out=0.2)
    whole = open_stream(data, seed=3)
    expected = [next(whole) for _ in range(120)]
    chance = random.Random(0)
    for stop in [0, 1, 119, *(chance.randrange(120) for _ in range(10))]:
        first = open_stream(data, seed=3)
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.state()))
        second = open_stream(data, seed=3)
        second.restore(state)
        assert [next(second) for _ in range(120 - stop)] == expected[stop:]
    assert [whole.at(i) for i in (7, 100, 3)] == [expected[i] for i in (7, 100, 3)]


def test_a_checkpoint_of_other_data_is_refused(files):
    (path,) = files(a=10)
    state = open_stream(Data(path), seed=0).state()
    with pytest.raises(ValueError, match="the data changed since the checkpoint: seed 0 then, 1 now"):
        open_stream(Data(path), seed=1).restore(state)
    files(a=12)
    with pytest.raises(ValueError, match=r"rows per file \[9\] then, \[11\] now"):
        open_stream(Data(path), seed=0).restore(state)


@pytest.mark.parametrize(("held_out", "expected"), [(0, 0), (0.0, 0), (0.1, 13), (7, 7), (0.0001, 2), (120, 120)])
def test_held_out_rows_are_counted_and_never_trained_on(files, held_out, expected):
    paths = files(a=100, b=30)
    stream = open_stream(Data(tuple(paths), held_out=held_out), seed=0)
    kept = {row["text"] for row in stream.held_out}
    assert len(kept) == len(stream.held_out) == expected
    assert stream.epoch_size == 130 - expected
    assert kept.isdisjoint(texts(stream, 2 * stream.epoch_size))


def test_held_out_rows_may_be_a_file_but_not_one_trained_on(files):
    a, b = files(a=10, b=4)
    stream = open_stream(Data(a, held_out=b), seed=0)
    assert [row["text"] for row in stream.held_out] == ["b0", "b1", "b2", "b3"] and stream.epoch_size == 10
    with pytest.raises(ValueError, match="is also trained on"):
        open_stream(Data(a, held_out=str(Path(a).parent / "." / "a.jsonl")), seed=0)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda a, b: Data(a, held_out=10), "held_out takes 10 of 10 rows, which leaves none"),
        (lambda a, b: Data((Source(a, 1.0), Source(b, 1e-9)), held_out=0), "b.jsonl: its weight is too small"),
        (lambda a, b: Data(a, columns={"text": "revue"}), "a.jsonl:1: data.columns names revue"),
        (lambda a, b: Data(a, form="messages"), "a.jsonl:1: the row has none of the columns messages"),
        (lambda a, b: Data(a + "x"), "no such file"),
    ],
)
def test_what_cannot_be_opened_is_said_in_a_sentence(files, data, sentence):
    a, b = files(a=10, b=4)
    with pytest.raises((ValueError, OSError), match=sentence):
        open_stream(data(a, b), seed=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"held_out": 1.0}, "a share lies between 0 and 1"),
        ({"held_out": -1}, "held_out=-1"),
        ({"held_out": True}, "held_out=True"),
        ({"length": 1}, "at least 2 tokens"),
        ({"form": "chatml"}, "'chatml' is not known; choose auto or one of messages"),
        ({"path": ()}, "empty list"),
        ({"path": (Source("a", 1.0), Source("b"))}, "a weight to some files only"),
        ({"path": (Source("a", 0.0),)}, "must be above 0"),
        ({"path": [{"file": "a"}]}, "an entry has path and weight, this one has file"),
    ],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Data(**{"path": "a.jsonl", **settings})


def test_a_bad_row_is_found_before_the_run_with_its_line(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 5
    rows[3] = {"messages": rows[3]["messages"][:1]}
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ValueError, match=r"x.jsonl:4: no assistant turn \(roles: user\), so there is nothing to learn; add the answer or remove the row"
    ):
        open_stream(Data(str(path)), seed=0)


def test_files_of_different_tasks_are_not_mixed_and_of_one_task_are(tmp_path):
    talk, pairs, labelled = (tmp_path / f"{name}.jsonl" for name in ("talk", "pairs", "labelled"))
    talk.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}) + "\n")
    pairs.write_text(json.dumps({"instruction": "q", "output": "a"}) + "\n")
    labelled.write_text(json.dumps({"text": "t", "label": 1}) + "\n")
    stream = open_stream(Data((str(talk), str(pairs)), held_out=0, shuffle=False, system="s"), seed=0)
    one, two = next(stream), next(stream)
    assert one.row == two.row and one.row["messages"][0] == {"role": "system", "content": "s"}
    with pytest.raises(ValueError, match=r"hold different things.*talk.jsonl \(messages\).*labelled.jsonl \(labelled\)"):
        open_stream(Data((str(talk), str(labelled)), held_out=0), seed=0)


def test_a_table_without_a_header_is_read_by_column_numbers(tmp_path):
    (tmp_path / "x.csv").write_text("3,Title,Body\n1,Other,Text\n")
    stream = open_stream(Data(str(tmp_path / "x.csv"), columns={"label": 0, "text": 2}, held_out=0, shuffle=False), seed=0)
    assert stream.form == "labelled" and next(stream).row == {"text": "Body", "label": 3}


def test_a_samples_random_numbers_depend_on_its_place_alone():
    a, b, c = Sample({}, 0, 1, 7), Sample({"x": 1}, 0, 1, 7), Sample({}, 1, 1, 7)
    assert a.key() == b.key() != c.key() and a.key("mask") != a.key("drop") and 0 <= a.key() < 1 << 63


def test_whole_numbers_in_proportion_add_up():
    chance = random.Random(0)
    for _ in range(200):
        weights = [chance.random() + 0.01 for _ in range(chance.randrange(1, 6))]
        total = chance.randrange(1, 50)
        counts = _apportion(total, weights)
        assert sum(counts) == total and all(
            abs(count - total * weight / sum(weights)) < 1 for count, weight in zip(counts, weights, strict=True)
        )


def test_real_sets_are_recognised():
    from tiny import data_path

    cases = {
        "alpaca_gpt4_en/alpaca_en_demo.json": ("alpaca", 999), "belle_seed/zh_seed_tasks.json": ("alpaca", 175), "rte/dev.tsv": ("labelled", 277),
        "arc_easy/dev.jsonl": ("choices", 570), "fewclue_ocnli/dev_0.json": ("labelled", 32), "waimai_10k/waimai_10k.csv": ("labelled", 11987),
        "tang_poems/poet.tang.0.json": ("text", 1000), "fewclue_chid/dev_0.json": ("choices", 42),
    }  # fmt: skip
    for name, expected in cases.items():
        stream = open_stream(Data(str(data_path(name)), held_out=0), seed=0)
        assert (stream.form, stream.epoch_size) == expected, name
