"""A run as it is asked for: model, data and options, and the plan and the record that follow."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.metadata import columns_of, digest, group_codes, json_of
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.record import NORMALIZE, TEST_OBJECTIVE
from pydvl_datainf.results.row_sets import rows_each
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner.batched_data import BatchIndex
from pydvl_datainf.runner.choices import exact_sample_of, planned, row_widths
from pydvl_datainf.runner.executors import Executor
from pydvl_datainf.runner.options import RunOptions
from pydvl_datainf.runner.tasks import RunSpec
from pydvl_datainf.runner.train_side import NewRows, StoredRows
from pydvl_datainf.runner.worker_inputs import Description


@dataclass(frozen=True, slots=True)
class Request:
    """What is known of a run before it is cut and laid out.

    Args:
        model: what is known of it.
        options: of the caller.
        tests: what a first look at the test data found.
        training: the training data.
        store: where to.
        executor: does the work.
        codes: for each test sample its group, where there are groups.
        m: queries.
        columns: ids and metadata.
        asked: what the test data and the options add to the fingerprint.
    """

    model: Description
    options: RunOptions
    tests: BatchIndex
    training: NewRows | StoredRows
    store: Store
    executor: Executor
    codes: tuple[int, ...] | None
    m: int
    columns: Mapping[str, Array]
    asked: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: Description,
        options: RunOptions,
        tests: BatchIndex,
        training: NewRows | StoredRows,
        store: Store,
        executor: Executor,
    ) -> "Request":
        """Checks ids, metadata and groups.

        Args:
            model: what is known of it.
            options: of the caller.
            tests: what a first look at the test data found.
            training: the training data.
            store: where to.
            executor: does the work.

        Returns:
            The request.
        """
        groups = options.query_groups
        codes, labels = (None, None) if groups is None else group_codes(groups, tests.n)
        m = tests.n if labels is None else len(labels)
        lengths = {"test": m, "train": training.n}
        columns = columns_of(options.ids, options.metadata, lengths, labels) | training.columns()
        asked = _asked_of(options, tests, codes, columns, model.test_objective)
        return cls(model, options, tests, training, store, executor, codes, m, columns, asked)

    @property
    def exact_sample(self) -> int:
        """Over how many training samples the inverse is compared with the exact one."""
        rows = replace(self.model, widths=row_widths(self.model, self.training.opened()))
        return exact_sample_of(self.options, rows, self.training.n, self.tests.n)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What makes two runs the same, as JSON holds it."""
        return {**self.training.fingerprint(self.model), **self.asked}

    def opened(self) -> "Request":
        """As it was before ranks of compressed rows were chosen."""
        return replace(self, training=self.training.opened())

    def with_ranks(self, ranks: Sequence[int]) -> "Request":
        """With the ranks of compressed rows that were chosen."""
        assert isinstance(self.training, NewRows)  # those of a run are chosen
        return replace(self, training=self.training.with_ranks(ranks))

    def plan(self, stored: Mapping[str, Any] | None) -> Plan:
        """Cuts the run.

        Args:
            stored: the attributes of the run that is to go on.

        Returns:
            The plan.
        """
        given = (self.model, self.options, self.m, self.tests, self.training)
        return planned(*given, self.executor, self.store, stored)

    def spec(self, stored: Mapping[str, Any] | None) -> RunSpec:
        """What tasks have to know of the run.

        Args:
            stored: the attributes of the run that is to go on.

        Returns:
            The specification, with a writer of its own.
        """
        plan, model, training, options = self.plan(stored), self.model, self.training, self.options
        return RunSpec(
            plan=plan,
            location=self.store.location,
            rows_location=training.rows_in or self.store.location,
            widths=row_widths(model, training),
            dtype=model.dtype,
            method=model.method,
            test=self.tests,
            train=None if isinstance(training, StoredRows) else training.survey,
            model=model.model,
            codes=self.codes,
            by_block=options.by_block,
            top_k=None if options.top_k is None else min(options.top_k, plan.n),
            writer=uuid.uuid4().hex,
            rows_of=training.rows_of,
            layers=model.layers,
            compression=training.compression,
            whole=model.widths,
            curvature=rows_each(self.fingerprint),
            normalizes=options.normalize is not None,
        )


def _asked_of(
    options: RunOptions,
    tests: BatchIndex,
    codes: tuple[int, ...] | None,
    columns: Mapping[str, Array],
    test_objective: str | None,
) -> dict[str, Any]:
    """What the test data and the options add to the fingerprint of a run."""
    own = {} if test_objective is None else {TEST_OBJECTIVE: test_objective}
    if options.normalize is not None:
        own[NORMALIZE] = options.normalize
    return {
        **own,
        "test samples": tests.n,
        "test data": tests.fingerprint,
        "query groups": None if codes is None else digest({"codes": np.array(codes)}),
        "by_block": options.by_block,
        "top_k": options.top_k,
        "ids and metadata": digest(columns),
        "run metadata": json_of((options.metadata or {}).get("run", {})),
    }
