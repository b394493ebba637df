import pytest

from models.facts import RunFacts, TeacherFacts, read_facts

TEACHER = TeacherFacts(path="runs/dense", weights_hash="0a", cost={"steps": 3})


def test_facts_read_back_are_those_that_were_stored():
    facts = RunFacts(model="w2v2", sparsity=0.5, biases=False, new_head=("head.bias",))
    assert read_facts(facts.stored()) == facts


def test_teacher_read_back_is_the_one_that_was_stored():
    facts = RunFacts(teacher=TEACHER)
    assert read_facts(facts.stored()) == facts


def test_what_is_not_known_is_not_stored():
    assert RunFacts(seed=3).stored() == {"seed": 3, "new_head": [], "drawn": []}


def test_fact_of_a_later_version_is_left_out():
    assert read_facts({"seed": 1, "colour": "blue"}) == RunFacts(seed=1)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"seed": "1"}, "run: seed is '1', expected int or null"),
        ({"sparsity": [0.5]}, "run: sparsity is .0.5., expected number or null"),
        ({"new_head": [1]}, "run: new_head is .1., expected list of str"),
        ({"teacher": {"path": 3}}, "run: teacher's path is 3, expected str"),
        ({"teacher": {"path": "a", "weights_hash": "b", "cost": {"steps": "3"}}}, "teacher's cost"),
    ],
)
def test_fact_of_another_type_is_refused_by_name(stored, message):
    with pytest.raises(ValueError, match=message):
        read_facts(stored)
