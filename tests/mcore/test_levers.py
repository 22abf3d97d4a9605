from __future__ import annotations

import pytest

from megatron_gopd.config.schema import Model, Student
from megatron_gopd.mcore.levers import settle


@pytest.mark.parametrize(("gpu", "recompute"), [(True, "full"), (False, "none")])
def test_a_student_left_at_auto_saves_memory_on_a_gpu_only(gpu, recompute):
    settled = settle(Student(model="m"), gpu=gpu)
    assert (settled.offload, settled.recompute, settled.overlap_communication) == (gpu, recompute, gpu)


@pytest.mark.parametrize("gpu", [True, False])
def test_what_is_set_stays(gpu):
    student = Student(model="m", offload=not gpu, recompute="selective", overlap_communication=not gpu)
    assert settle(student, gpu=gpu) == student


def test_a_frozen_model_has_the_offload_lever_only():
    assert settle(Model(model="m"), gpu=True) == Model(model="m", offload=True)
