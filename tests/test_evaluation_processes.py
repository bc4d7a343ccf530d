"""Work that several processes share comes out as if one had done it."""

import pytest
import torch
from process_group import in_processes
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.processes import Processes

N, CHUNK = 23, 5


def numbers(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(N, 3, 2, generator=torch.Generator().manual_seed(0)).mul(100).to(dtype)


def deal_and_gather(dtype: torch.dtype, n: int = N) -> tuple[list[int], Tensor]:
    processes = Processes()
    rows = numbers(dtype)[:n]
    chunks = processes.deal(n, CHUNK)
    gathered = processes.gather({chunk.start: rows[chunk.start : chunk.stop] for chunk in chunks}, n)
    return [chunk.start for chunk in chunks], gathered


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int64])
def test_what_is_dealt_is_gathered_bitwise(count: int, dtype: torch.dtype) -> None:
    results = in_processes(count, deal_and_gather, dtype)
    # Every chunk has one owner, and they take turns.
    assert [starts for starts, _ in results] == [list(range(0, N, CHUNK))[rank::count] for rank in range(count)]
    for _, gathered in results:
        assert gathered.dtype == dtype and torch.equal(gathered, numbers(dtype))


def test_a_process_may_have_nothing() -> None:
    results = in_processes(3, deal_and_gather, torch.float32, 7)  # two chunks for three processes
    assert [starts for starts, _ in results] == [[0], [5], []]
    assert all(torch.equal(gathered, numbers()[:7]) for _, gathered in results)


def gather_with_a_gap() -> str:
    processes = Processes()
    parts = {10 * processes.rank: torch.zeros(9)}  # row 9 is nobody's
    try:
        processes.gather(parts, 19)
    except RuntimeError as error:
        return str(error)
    return "gathered"


def test_rows_that_are_missing_are_missed_on_every_process() -> None:
    assert all("do not make 19 rows" in said for said in in_processes(2, gather_with_a_gap))


def overlap() -> Tensor:
    return Processes().gather({0: torch.zeros(3), 2: torch.zeros(2)}, 4)


def test_rows_that_are_there_twice_are_refused() -> None:
    with pytest.raises(RuntimeError, match="do not make 4 rows"):
        overlap()


def first_word() -> object:
    processes = Processes()
    return processes.tell({"rank": processes.rank, "first": processes.is_first})


def test_the_first_process_has_the_say() -> None:
    assert in_processes(3, first_word) == [{"rank": 0, "first": True}] * 3


def mistake_of(rank: int | None) -> str:
    processes = Processes()
    try:
        with processes.together():
            if processes.rank == rank:
                raise UserError(f"image {processes.rank} is damaged")
    except UserError as error:
        return str(error)
    return "went well"


def test_the_mistake_that_one_process_finds_is_told_by_all() -> None:
    assert in_processes(3, mistake_of, 2) == ["image 2 is damaged"] * 3
    assert in_processes(2, mistake_of, None) == ["went well"] * 2
    assert mistake_of(0) == "image 0 is damaged"  # without a group
