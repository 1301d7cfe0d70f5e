"""What goes over its limits is ended; the next request is answered."""

import multiprocessing
import threading
from typing import Any

import pytest

from llmc.runtime.confined import Confined


def render(confined: Confined, source: str, **values: Any) -> dict[str, str]:
    return confined.ask("template", source=source, values=values)


@pytest.fixture
def confined() -> Confined:
    return Confined(seconds=1, memory=1 << 28)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{% set n = 10**10 %}{{ x * n }}",
        "{{ x | center(10**10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:>10000000000}'.format(x) }}",
        "{% set ns = namespace(x=x) %}{% for _ in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_too_much_memory_or_time(confined: Confined, source: str) -> None:
    assert "256 MiB would be needed" in render(confined, source, x="a")["error"]
    assert render(confined, "{{ x }}", x="b") == {"result": "b"}


def test_one_process_answers_everything(confined: Confined) -> None:
    assert render(confined, "{{ x }}", x="ä\ud800\n") == {"result": "ä\ud800\n"}
    first = confined._process.pid
    assert "maximum recursion" in render(confined, "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")["error"]
    assert (
        "more than 33,554,432 characters"
        in render(confined, "{% for i in range(99999) %}{{ x }}{% endfor %}", x="a" * 1000)["error"]
    )
    found: list[tuple[str, str]] = []

    def ask(number: int) -> None:
        found.extend((render(confined, "{{ x }}", x=number)["result"], str(number)) for _ in range(20))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(result == wanted for result, wanted in found)
    assert confined._process.pid == first


def test_what_cannot_be_handed_over_is_refused_before(confined: Confined) -> None:
    with pytest.raises(TypeError, match="set is neither text nor a number, list or mapping"):
        render(confined, "{{ x }}", x={1})
    assert render(confined, "{{ x[0] }}", x=(1, 2)) == {"result": "1"}


def test_a_forked_process_starts_its_own(confined: Confined) -> None:
    render(confined, "a")
    context, mine = multiprocessing.get_context("fork"), confined._process.pid
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put((render(confined, "b"), confined._process.pid)))
    child.start()
    reply, other = queue.get(timeout=60)
    child.join()
    assert reply == {"result": "b"} and other != mine
    assert render(confined, "c") == {"result": "c"} and confined._process.pid == mine
