"""Two logs: what differs first, in which of its parts, and what explains it. The differences are planted."""

from __future__ import annotations

import json

import pytest

from purestate.report._compared import compare_logs
from purestate.report._diff import compare
from purestate.report._name import RunName
from purestate.report._opened import open_run
from tests.report.planted import asked

OTHER = "b3:" + "0" * 64


def compared(a: RunName, b: RunName):
    return compare_logs(open_run(a), open_run(b))


def other_result(bodies, seq=4):
    bodies[seq][1]["hash"] = OTHER


def other_threads(bodies):
    bodies[1][1]["environment"]["threads"] = 8


def test_a_log_is_equal_to_itself_and_to_its_copy(golden, planted):
    for other in (golden, planted()):
        found = compared(golden, other)
        assert (found.verdict, found.ok, found.first, found.envelope) == ("equal", True, None, ())
        assert found.compared == 10


def test_times_and_descriptions_do_not_count(golden, planted):
    def change(bodies):
        bodies[0][1]["description"] = "another"
        for _, body in bodies:
            if "seconds" in body:
                body["seconds"] += 1.5

    assert compared(golden, planted(change)).verdict == "equal"


def test_a_result_that_nothing_explains_is_a_finding(golden, planted):
    found = compared(golden, planted(other_result))
    assert (found.verdict, found.ok) == ("unexplained", False)
    assert found.first == found.result
    assert (found.first.place, found.first.a, found.first.b) == ("train 0, epoch 2", 4, 4)
    [difference] = found.first.differences
    assert (difference.part, difference.what, difference.b) == ("result", "state", "b3:00000000")
    assert "differs though nothing in the envelope does" in str(found)


def test_a_result_that_the_envelope_explains_is_expected(golden, planted):
    def change(bodies):
        other_result(bodies)
        other_threads(bodies)

    found = compared(golden, planted(change))
    assert (found.verdict, found.ok, found.because) == ("expected", False, ("the envelope in threads",))
    assert [(one.what, one.a, one.b) for one in found.envelope] == [("train 0: threads", 1, 8)]
    assert "differs, and so does the envelope in threads" in str(found)


def test_another_envelope_alone_makes_no_difference(golden, planted):
    found = compared(golden, planted(other_threads))
    assert (found.verdict, found.first) == ("equal", None)
    assert len(found.envelope) == 1


def test_without_an_environment_nobody_knows(golden, planted):
    def change(bodies):
        other_result(bodies)
        del bodies[1][1]["environment"]

    found = compared(golden, planted(change))
    assert (found.verdict, found.ok) == ("unknown", False)
    assert "does not say in what environment" in found.because[0]


def test_with_probed_data_nobody_knows(golden, planted):
    def probed(bodies):
        asked(bodies, 1, train_data__kind="probed")

    def change(bodies):
        probed(bodies)
        other_result(bodies)

    found = compared(planted(probed), planted(change))
    assert found.verdict == "unknown"
    assert "only probed" in found.because[0]


@pytest.mark.parametrize(
    ("part", "what", "change"),
    [
        ("arguments", "optimizer lr", {"recipe__optimizer__args__lr": 0.5}),
        ("data", "training data: dataset.tensors.0", {"train_data__dataset__tensors__0": "float32[12,1,4,4] b3:" + "1" * 32}),
        ("code", "code of Net.forward", {"code__Net__forward": "1" * 32}),
        ("environment", "package torch", {"package__torch": "2.14.0"}),
        ("input state", "input extra", {"input__extra": "1" * 64}),
    ],
)
def test_the_first_record_that_differs_says_in_which_part(golden, planted, part, what, change):
    def plant(bodies):
        asked(bodies, 1, **change)
        other_result(bodies)

    found = compared(golden, planted(plant))
    assert (found.first.place, found.first.a) == ("train 0", 1)
    assert [(one.part, one.what) for one in found.first.differences] == [(part, what)]
    assert found.result.place == "train 0, epoch 2"
    assert (found.verdict, found.because) == ("expected", (f"{what} ({part})",))


def test_another_question_with_the_same_results_is_equal_and_told(golden, planted):
    found = compared(golden, planted(lambda bodies: asked(bodies, 1, code__Net="1" * 32)))
    assert found.verdict == "equal"
    assert found.first.differences[0].what == "code of Net"
    assert found.result is None


def test_metrics_are_results(golden, planted):
    def change(bodies):
        bodies[3][1]["metrics"]["val_loss"] += 1e-16 + 2**-52

    found = compared(golden, planted(change))
    assert found.result.place == "train 0, epoch 1"
    assert [one.what for one in found.result.differences] == ["val_loss"]


def test_an_answer_of_a_reader_is_a_result(golden, planted):
    def change(bodies):
        bodies[10][1]["answer"]["loss"] = 2.0

    found = compared(golden, planted(change))
    assert (found.verdict, found.result.place, found.result.a) == ("unexplained", "evaluate", 10)


def test_where_one_ends_there_is_nothing_to_compare_with(golden, planted):
    shorter = planted(lambda bodies: bodies[:4])
    for pair, side in (((golden, shorter), "second"), ((shorter, golden), "first")):
        found = compared(*pair)
        assert (found.verdict, found.ok) == ("unknown", False)
        assert str(found.first.differences[0]) == f"extent: the {side} ends before epoch 2"
    one_train = planted(lambda bodies: bodies[:7])
    assert "the second has no such train" in str(compared(golden, one_train))


def test_up_to_an_op_that_is_named(golden, planted):
    other = planted(lambda bodies: other_result(bodies, 8))
    assert compared(golden, other).verdict == "unexplained"
    assert compared(RunName(golden.store, "adam", 0), RunName(other.store, "adam", 0)).verdict == "equal"


def test_voided_records_do_not_count(golden, planted):
    def change(bodies):
        voided = [(kind, {**body}) for kind, body in bodies[1:]]
        # what was asked first is void, and what follows is the same run again
        again = []
        for kind, body in voided:
            of = {"of": body["of"] + 11} if isinstance(body.get("of"), int) else {}
            again.append((kind, {**body, **of}))
        other_result(bodies, 3)
        return [*bodies, ("reset", {"of": [1, 7, 10]}), *again]

    found = compared(golden, planted(change))
    assert (found.verdict, found.compared) == ("equal", 10)


def test_a_report_is_text_json_and_html(golden, planted):
    found = compare(golden, planted(other_result))
    told = json.loads(found.to_json())
    assert told["ok"] is False
    assert told["log"]["verdict"] == "unexplained"
    assert told["log"]["first"]["differences"][0]["part"] == "result"
    assert "<table>" in found._repr_html_()
    assert "train 0, epoch 2" in str(found)


def test_two_ops_of_one_checkpoint_have_no_two_logs(golden):
    found = compare(RunName(golden.store, "adam", 0), RunName(golden.store, "adam", 1))
    assert found.log is None
    assert not found.ok


def computed_elsewhere(n, **environment):
    def change(bodies):
        seqs = [seq for seq, (kind, body) in enumerate(bodies) if kind == "epoch" and body["of"] == 1 and body["n"] == n]
        bodies[seqs[0]][1]["environment"] = environment

    return change


def test_an_epoch_that_was_computed_elsewhere_explains_what_comes_after_it(golden, planted):
    def change(bodies):
        computed_elsewhere(1, threads=8)(bodies)
        other_result(bodies)

    found = compared(golden, planted(change))
    assert (found.verdict, found.because) == ("expected", ("the envelope in threads",))
    assert [(one.what, one.a, one.b) for one in found.envelope] == [("train 0, epoch 1: threads", 1, 8)]
    assert found.first.place == "train 0, epoch 2"


def test_an_epoch_that_was_computed_elsewhere_explains_nothing_before_it(golden, planted):
    def change(bodies):
        computed_elsewhere(2, threads=8)(bodies)
        other_result(bodies, seq=3)

    found = compared(golden, planted(change))
    assert (found.verdict, found.envelope, found.first.place) == ("unexplained", (), "train 0, epoch 1")


def test_an_epoch_that_was_computed_elsewhere_and_came_out_the_same_is_equal(golden, planted):
    found = compared(golden, planted(computed_elsewhere(2, threads=8)))
    assert (found.verdict, found.compared) == ("equal", 10)
    assert [one.what for one in found.envelope] == ["train 0, epoch 2: threads"]


def test_what_only_one_of_them_says_of_its_envelope_may_explain_it(golden, planted):
    def change(bodies):
        bodies[1][1]["environment"] |= {"numpy": "2.4.6"}
        other_result(bodies)

    found = compared(golden, planted(change))
    assert (found.verdict, found.because) == ("unknown", ("only one of both says for train 0: numpy",))


def test_another_plan_explains_another_result(golden, planted):
    def plan(step, change=lambda bodies: None):
        def plant(bodies):
            change(bodies)
            done = next(body for kind, body in bodies if kind == "done")
            done["plan"] = {"step": step, "world_size": 1}

        return plant

    a = planted(plan("captured"))
    assert compared(a, planted(plan("inductor", other_result))).because == ("the envelope in plan step",)
    assert compared(a, planted(plan("captured", other_result))).verdict == "unexplained"
    assert compared(golden, planted(plan("captured", other_result))).verdict == "unexplained"


def test_data_that_was_only_probed_is_never_known_to_be_equal(golden, planted):
    def probed(bodies):
        asked(bodies, 1, train_data__kind="probed")

    def later(bodies):
        probed(bodies)
        bodies[0][1]["description"] = "another run"

    a = planted(probed)
    assert compared(a, a).verdict == "equal"  # they are the same records
    found = compared(a, planted(later))
    assert (found.verdict, found.result) == ("unknown", None)
    assert "only probed" in found.because[0]


@pytest.mark.parametrize("what", ["environment", "data", "result"])
def test_answers_of_readers_are_compared_likewise(golden, planted, what):
    def reader(result):
        def plant(bodies):
            body = next(body for kind, body in bodies if kind == "evaluate")
            if result:
                body["answer"] = {"loss": 0.25}
            if what == "environment" and result:
                body["environment"] |= {"threads": 8}
            if what == "data":
                body["question"]["parts"]["data.kind"] = "probed"

        return plant

    found = compared(planted(reader(False)), planted(reader(True)))
    assert found.first.place == "evaluate"
    assert found.verdict == {"environment": "expected", "data": "unknown", "result": "unexplained"}[what]
