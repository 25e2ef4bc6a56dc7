"""What every method keeps to, as a class of tests that each method subclasses."""

import pickle
from collections import OrderedDict

import pytest
import torch

from pydvl_datainf.inverse.method import solve

SHAPES = {
    "wide": (5, 4, 9),
    "very wide": (5, 2, 60),
    "narrow": (9, 4, 3),
    "many vectors": (6, 20, 4),
    "one": (1, 3, 4),
}
"""n training rows, m vectors, d entries."""
DAMPINGS = [1e-3, 0.5]


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(actual, exact, bound=1e-9):
    """Entries, relative to each and to the largest."""
    largest = float(exact.abs().max())
    torch.testing.assert_close(actual.double(), exact, rtol=bound, atol=bound * largest)


def solved(make, G, V, λ, sizes=None):
    """A result, with rows in chunks of the given sizes, in as many passes as are wanted."""
    solver, passes = make(V, λ, len(G)), 0
    while solver.wants_rows:
        for chunk in G.split(sizes or len(G)):
            solver.add(chunk)
        solver.end_pass()
        passes += 1
    return solver.result(), passes


def held_bytes(solver):
    """What the tensors of a solver take, those in lists too."""
    found = {}
    for value in vars(solver).values():
        for tensor in value if isinstance(value, list) else [value]:
            found |= {id(tensor): tensor.nbytes} if isinstance(tensor, torch.Tensor) else {}
    return sum(found.values())


class MethodContract:
    """Subclasses tell the method, its dense oracle, and whether rows may be computed again."""

    method = None
    takes_recomputed_rows = True

    def matrix(self, G, λ):
        """The inverse as a matrix (d, d), by dense algebra that shares no code with the method."""
        raise NotImplementedError

    @pytest.fixture(params=SHAPES)
    def problem(self, request):
        n, m, d = SHAPES[request.param]
        return random(1, n, d), random(2, m, d)

    @pytest.mark.parametrize("λ", DAMPINGS)
    def test_times_is_the_dense_product(self, problem, λ):
        G, V = problem
        found, _ = solved(self.method.times, G, V, λ)
        assert found.dtype == torch.float64
        assert_close(found, V @ self.matrix(G, λ))

    @pytest.mark.parametrize("λ", DAMPINGS)
    def test_forms_are_the_diagonal_of_v_times_the_product(self, problem, λ):
        G, V = problem
        times, _ = solved(self.method.times, G, V, λ)
        forms, _ = solved(self.method.forms, G, V, λ)
        assert forms.dtype == torch.float64
        assert_close(forms, (V @ times.T).diag())
        assert_close(forms, (V @ self.matrix(G, λ) @ V.T).diag())

    @pytest.mark.parametrize("kind", ["times", "forms"])
    def test_chunks_may_be_cut_in_any_way(self, problem, kind):
        G, V = problem
        make = getattr(self.method, kind)
        whole, _ = solved(make, G, V, 0.1)
        uneven = [len(G) // 3, 0, len(G) - len(G) // 3]
        for sizes in (1, 2, 4, uneven):
            assert_close(solved(make, G, V, 0.1, sizes)[0], whole)

    def test_copies_of_the_rows_change_nothing(self, problem):
        G, V = problem
        for make in (self.method.times, self.method.forms):
            once, _ = solved(make, G, V, 0.1)
            assert_close(solved(make, torch.cat([G, G, G]), V, 0.1)[0], once)

    def test_of_equal_rows_digits_are_left(self):
        """λ is 1e-6 of ‖g‖²: in the direction of the rows v is divided by 1e6 λ."""
        G, V = random(1, 1, 40).expand(4, 40), random(2, 3, 40)
        λ = 1e-6 * float(G[0].square().sum())
        found, _ = solved(self.method.times, G.float(), V.float(), λ)
        G32, V32 = G.float().double(), V.float().double()
        exact = V32 @ self.matrix(G32, λ) @ G32.T
        torch.testing.assert_close(found.double() @ G32.T, exact, rtol=1e-6, atol=0)

    def test_zero_gradients_leave_the_damping(self, problem):
        G, V = problem
        for λ in DAMPINGS:
            assert_close(solved(self.method.times, 0 * G, V, λ)[0], V @ self.matrix(0 * G, λ))
            exact = (V @ self.matrix(0 * G, λ) @ V.T).diag()
            assert_close(solved(self.method.forms, 0 * G, V, λ)[0], exact)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_rows_of_other_dtypes_are_taken_as_they_are(self, problem, dtype):
        """The rows' own rounding is in the oracle too, so that the bound is that of float64."""
        G, V = problem[0].to(dtype), problem[1].float()
        before = G.clone(), V.clone()
        exact = V.double() @ self.matrix(G.double(), 0.1)
        found, _ = solved(self.method.times, G, V, 0.1, 2)
        wide = getattr(torch, self.method.precision("float32"))
        bound = 1e-9 if wide == torch.float64 else 1e-6
        assert found.dtype == wide
        assert_close(found, exact, bound)
        forms, _ = solved(self.method.forms, G, V, 0.1, 2)
        assert_close(forms, (exact @ V.double().T).diag(), bound)
        assert torch.equal(G, before[0])
        assert torch.equal(V, before[1])

    def test_wants_as_many_passes_as_it_says(self, problem):
        for make in (self.method.times, self.method.forms):
            assert solved(make, *problem, 0.1)[1] == self.method.passes

    def test_a_result_may_be_asked_for_again(self, problem):
        G, V = problem
        for make in (self.method.times, self.method.forms):
            solver = make(V, 0.1, len(G))
            solver.add(G)
            solver.end_pass()
            first = solver.result().clone()
            assert torch.equal(solver.result(), first)

    def test_takes_no_more_memory_than_it_says(self, problem):
        G, V = problem[0], problem[1].float()  # the float64 copy counts
        (n, d), m = G.shape, len(V)
        for make in (self.method.times, self.method.forms):
            solver = make(V, 0.1, n)
            for chunk in G.split(2):
                solver.add(chunk)
            result = V.nbytes if self.method.passes == 0 else 0  # is there from the start
            assert held_bytes(solver) - result <= self.method.bytes(n, m, d)

    def test_rows_that_cannot_serve_are_refused(self):
        for kept in ("memory", "zarr", "auto"):
            self.method.check_rows(kept)
        expected = None if self.takes_recomputed_rows else "SourceError"
        assert refusal(self.method, "recompute") == expected

    def test_is_equal_by_kind_and_travels(self):
        copy = pickle.loads(pickle.dumps(self.method))
        assert copy == self.method
        assert hash(copy) == hash(self.method)
        assert copy.name == self.method.name

    def test_solves_block_by_block(self):
        n, (m, widths) = 6, (4, {"a": 3, "b": 8})
        G = OrderedDict((b, random(3, n, d)) for b, d in {**widths, "further": 2}.items())
        V = OrderedDict((b, random(4, m, d)) for b, d in widths.items())
        damping, read = {"a": 0.1, "b": 2.0}, []

        def one_pass():
            read.append(len(read))
            return [OrderedDict((b, g[s]) for b, g in G.items()) for s in (slice(4), slice(4, 6))]

        found = solve(self.method.times, V, one_pass, n, damping)
        assert list(found) == ["a", "b"]
        assert len(read) == self.method.passes
        for block, v in V.items():
            assert_close(found[block], v @ self.matrix(G[block], damping[block]))


class JoinedContract(MethodContract):
    """Of methods whose solvers can be fed parts of the rows, and joined by adding their sums."""

    @pytest.mark.parametrize("kind", ["times", "forms"])
    def test_solvers_join_by_adding_their_sums(self, problem, kind):
        G, V = problem
        make, parts = getattr(self.method, kind), []
        for part in (G[: len(G) // 2], G[len(G) // 2 :]):
            parts.append(make(V, 0.1, len(G)))
            parts[-1].add(part)
        joined = make(V, 0.1, len(G))
        joined.sums = parts[0].sums + parts[1].sums
        assert self.method.joins
        assert_close(joined.result(), solved(make, G, V, 0.1)[0])

    def test_sums_for_times_have_the_shape_of_the_vectors(self, problem):
        G, V = problem
        assert self.method.times(V, 0.1, len(G)).sums.shape == V.shape


def refusal(method, kept):
    """The name of the error that rows kept so raise, or None."""
    try:
        method.check_rows(kept)
    except Exception as error:
        return type(error).__name__
    return None
