"""Either many prepare, or one runs alone."""

import threading

from tests.servers import wait_until
from worker.quiet import Quiet


def test_many_prepare_at_once_and_one_alone() -> None:
    quiet, order = Quiet(), []
    let_go = threading.Event()

    def prepare() -> None:
        with quiet.preparing():
            let_go.wait(20)
            order.append("prepared")

    def alone() -> None:
        quiet.acquire()
        order.append("alone")

    threads = [threading.Thread(target=prepare) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: quiet.num_preparing == 3)
    engine = threading.Thread(target=alone)
    engine.start()
    wait_until(lambda: quiet._is_wanted)
    assert not quiet.locked()
    late = threading.Thread(target=prepare)
    late.start()
    let_go.set()
    engine.join(20)
    assert order == ["prepared"] * 3 + ["alone"], "who comes late does not keep it waiting"
    assert quiet.locked() and late.is_alive()
    quiet.release()
    late.join(20)
    assert order[-1] == "prepared" and quiet.num_preparing == 0 and not quiet.locked()
