"""Every arm on every task does what it did: the same rows and texts at each step, the same FLOPs, on every machine."""

import json

import pytest

import golden

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def calls():
    return {f"{case} / {arm}": call for (case, arm), call in golden.cases().items()}


@pytest.mark.parametrize("name", json.loads(golden.PINNED.read_text()))
def test_an_arm_is_shown_the_same_and_costs_the_same(name, calls):
    assert golden.exact(name, golden.observe(calls[name])) == json.loads(golden.PINNED.read_text())[name]


def test_every_arm_on_every_task_is_pinned(calls):
    assert set(json.loads(golden.PINNED.read_text())) == set(calls), "python tests/golden.py pin"
