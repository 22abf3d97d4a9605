from __future__ import annotations

from megatron_gopd.config.schema import Model, Student
from megatron_gopd.mcore.levers import settle


def test_a_model_alone_stays_where_it_is():
    settled = settle(Student(model="m"))
    assert (settled.offload, settled.recompute, settled.overlap_communication) == (False, "none", False)


def test_what_is_set_stays():
    student = Student(model="m", offload=True, recompute="selective", overlap_communication=True)
    assert settle(student) == student


def test_a_frozen_model_has_the_offload_lever_only():
    assert settle(Model(model="m")) == Model(model="m", offload=False)
