"""The list of tests that take long: it names tests that there are, and follows from a run's times."""

from __future__ import annotations

from pathlib import Path

from long_tests import KEPT, found_in, long_tests

ROOT = Path(__file__).parent.parent


def test_each_listed_test_is_there() -> None:
    assert long_tests()
    for listed in long_tests():
        path, name = listed.split("[")[0].split("::")
        assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{listed}: make the list anew (tests/long_tests.py)"


def test_a_run_tells_which_take_long_but_for_the_pipeline(tmp_path: Path) -> None:
    cases = (
        ("tests.core.test_a", "test_one[x]", 2.6),
        ("tests.core.test_a", "test_two", 2.4),
        (KEPT.removesuffix(".py").replace("/", "."), "test_all", 60),
    )
    text = "".join(f'<testcase classname="{where}" name="{name}" time="{s}"/>' for where, name, s in cases)
    (tmp_path / "x.xml").write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    assert found_in(tmp_path / "x.xml") == ["tests/core/test_a.py::test_one[x]"]
