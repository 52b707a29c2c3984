"""When a server that failed is asked again."""

from adapterhub.vllm.circuit import MAX_DELAY, Circuit


def failed(circuit: Circuit, times: int) -> list[float]:
    delays = []
    for _ in range(times):
        circuit.open("It is gone.")
        delays.append(circuit.delay)
    return delays


def test_it_is_open_until_the_first_probe():
    circuit = Circuit()
    assert (circuit.closed, circuit.failures) == (False, 0)
    circuit.half_open()
    assert circuit.closed


def test_the_first_probe_is_at_once_and_then_the_delay_doubles_up_to_a_maximum():
    delays = failed(Circuit(), 10)
    assert delays[:5] == [0, 0.5, 1, 2, 4]
    assert delays[-1] == MAX_DELAY


def test_a_probe_does_not_forget_the_delay_but_an_answer_does():
    circuit = Circuit()
    failed(circuit, 4)
    circuit.half_open()
    assert failed(circuit, 1) == [4]
    circuit.half_open()
    circuit.succeeded()
    assert failed(circuit, 1) == [0]
    assert (circuit.failures, circuit.reason) == (6, "It is gone.")
