"""What is checked on a card: each section yields rows of a table while it goes on."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from card_models import (
    Setting,
    convolutional,
    exact_rows,
    image_loss,
    largest_error,
    lora_llama,
    recurrent,
    small_llama,
    small_texts,
    text_loss,
    texts,
)
from distributed import Client, LocalCluster
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pydvl_datainf import CausalLM, DataInfInfluence, run_influences
from pydvl_datainf.inverse.method import solve
from pydvl_datainf.inverse.methods import EXACT as EXACT_INVERSE

Row = tuple[str, str, bool | None]
"""What, its value, and whether that is as it should be (None = there is no should)."""

EXACT, ROUNDED, HALF = 1e-4, 5e-2, 5e-2
"""Bounds of the error of a row: in float32, with factors of ten bits (TF32), in bfloat16."""


class SkippedError(Exception):
    """What cannot be checked here, and why."""


def about(setting: Setting) -> Iterator[Row]:
    for package in ("torch", "transformers", "peft", "numpy", "pydvl", "pydvl-datainf"):
        try:
            yield package, version(package), None
        except PackageNotFoundError:
            yield package, "not installed", None
    if setting.device.type != "cuda":
        yield "device", str(setting.device), None
        return
    found = torch.cuda.get_device_properties(setting.device)
    yield "device", f"{torch.cuda.device_count()} x {found.name}", None
    yield "memory", f"{found.total_memory / 2**30:.0f} GiB", None
    yield "capability", f"{found.major}.{found.minor}", None
    yield "CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}", None


# Rows beside the oracle


def _error(what: str, rows: Tensor, exact: Tensor, bound: float) -> Row:
    found = largest_error(rows, exact)
    return what, f"{found:.1e} (at most {bound:.0e})", found <= bound


def precision(setting: Setting) -> Iterator[Row]:
    """Rows in float32, without and with TF32, which must not be taken for a fault."""
    model, batch = convolutional(setting)
    llama, data = small_llama(setting, torch.float32), small_texts(setting)
    truth = exact_rows(model, batch, image_loss), exact_rows(llama, data, text_loss)
    on_card = setting.device.type == "cuda"
    for is_on in (False, True) if on_card else (False,):
        bound, name = (ROUNDED, "TF32 on") if is_on else (EXACT, "TF32 off")
        if on_card:
            set_tf32(is_on)
        try:
            rows = DataInfInfluence(model, F.cross_entropy).loss_gradients(*batch)
            yield _error(f"rows of a convolutional network, {name}", rows, truth[0], bound)
            rows = DataInfInfluence(llama, CausalLM()).loss_gradients(data)
            yield _error(f"rows of a Llama with LoRA, {name}", rows, truth[1], bound)
        finally:
            if on_card:
                set_tf32(False)


def set_tf32(is_on: bool) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if not hasattr(cudnn, "conv"):  # before torch 2.9
        matmul.allow_tf32 = cudnn.allow_tf32 = is_on
        return
    matmul.fp32_precision = cudnn.conv.fp32_precision = "tf32" if is_on else "ieee"


def attention(setting: Setting) -> Iterator[Row]:
    """Rows in bfloat16, by each kernel of attention."""
    model, data = small_llama(setting, torch.bfloat16), small_texts(setting)
    truth = exact_rows(model, data, text_loss)
    kernels: dict[str, Any] = {"the default": None, "math": SDPBackend.MATH}
    if setting.device.type == "cuda":
        kernels["flash"] = SDPBackend.FLASH_ATTENTION
        kernels["efficient"] = SDPBackend.EFFICIENT_ATTENTION
    for name, kernel in kernels.items():
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            rows = DataInfInfluence(model, CausalLM()).loss_gradients(data)
        yield _error(f"rows in bfloat16, attention: {name}", rows, truth, HALF)


def recurrence(setting: Setting) -> Iterator[Row]:
    model, batch = recurrent(setting)
    rows = DataInfInfluence(model, F.cross_entropy).loss_gradients(*batch)
    yield _error("rows of an LSTM", rows, exact_rows(model, batch, image_loss), EXACT)


# Memory, processes, bits


def out_of_memory(setting: Setting) -> Iterator[Row]:
    """Memory that runs out is told with advice, and afterwards all is as before."""
    if setting.device.type != "cuda":
        raise SkippedError("needs CUDA")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 1024))
    influence = DataInfInfluence(model.to(setting.device), F.mse_loss)
    x, y = torch.randn(2, 8192, 1024)
    before = influence.loss_gradients(x[:4], y[:4])
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(setting.device).total_memory
    limit = torch.cuda.memory_reserved(setting.device) + 2**29
    torch.cuda.set_per_process_memory_fraction(limit / total, setting.device)
    notes: list[str] = []
    try:
        influence.loss_gradients(x, y)  # rows of 64 GiB
    except torch.cuda.OutOfMemoryError as error:
        notes = getattr(error, "__notes__", [])
        yield "an error that it ran out", "yes", True
    else:
        yield "an error that it ran out", "no", False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device)
    yield "its advice", " ".join(notes) or "none", any("batch_size" in note for note in notes)
    is_same = torch.equal(influence.loss_gradients(x[:4], y[:4]), before)
    yield "afterwards the same rows", "yes" if is_same else "no", is_same


def scores(setting: Setting, **where: Any) -> np.ndarray:
    influence = DataInfInfluence(small_llama(setting, torch.float32), CausalLM())
    train = [small_texts(setting, 4, seed) for seed in range(setting.sized(8, 2))]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "run.zarr")
        test = [small_texts(setting, 3, 99)]
        # On disk, since processes of joblib cannot keep rows in memory.
        run = run_influences(influence, test, train, store, rows="zarr", progress=False, **where)
        return np.asarray(run.scores[...])


def _agreement(what: str, found: np.ndarray, first: np.ndarray) -> Row:
    if np.array_equal(found, first):
        return what, "the same bits", True
    far = float(np.abs(found - first).max() / np.sqrt(np.square(first).mean()))
    return what, f"differ by {far:.1e} of their root mean square", far <= EXACT


def twice(setting: Setting) -> Iterator[Row]:
    first = scores(setting)
    yield _agreement("the same run again", scores(setting), first)


def workers(setting: Setting) -> Iterator[Row]:
    first = scores(setting)
    count = max(2, torch.cuda.device_count())
    yield _agreement(f"n_jobs={count}", scores(setting, n_jobs=count), first)
    local = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**local) as cluster, Client(cluster) as client:
        yield _agreement("one Dask worker", scores(setting, client=client), first)


# Speed


def seconds(setting: Setting, work: Callable[[], object], repeats: int = 3) -> float:
    """The median, after one call that is not counted."""
    times = []
    for _ in range(repeats + 1):
        setting.synchronize()
        start = time.perf_counter()
        work()
        setting.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def cholesky(setting: Setting) -> Iterator[Row]:
    """The exact inverse in float64, which cards for games are slow at."""
    torch.manual_seed(0)
    d = setting.sized(2**14, 64)
    for n in (20, 40) if setting.tiny else (2000, 4000, 8000):
        G = torch.randn(n, d, device=setting.device)
        V = torch.randn(100, d, device=setting.device)
        K = G.double() @ G.double().mT + n * torch.eye(n, device=setting.device).double()
        alone = seconds(setting, lambda K=K: torch.linalg.cholesky_ex(K))
        whole = seconds(
            setting,
            lambda G=G, V=V: solve(
                EXACT_INVERSE.times, {"block": V}, lambda: [{"block": G}], len(G), {"block": 1.0}
            ),
        )
        value = f"{1e3 * alone:.0f} ms, with products and 100 queries {1e3 * whole:.0f} ms"
        yield f"Cholesky in float64, n = {n:,}, d = {d:,}", value, None


LLAMAS = {
    "1B": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "7B": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "tiny": {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}


def rate(size: str) -> Callable[[Setting], Iterator[Row]]:
    """Samples a second of a Llama with LoRA in bfloat16, beside bare steps."""

    def section(setting: Setting) -> Iterator[Row]:
        name, free = "tiny" if setting.tiny else size, None
        if setting.device.type == "cuda":
            free = torch.cuda.mem_get_info(setting.device)[0]
            if size == "7B" and free < 20 * 2**30:
                raise SkippedError(f"{free / 2**30:.0f} GiB are free, and it takes 20")
        elif not setting.tiny:
            raise SkippedError("takes too long without CUDA")
        model = lora_llama(setting.device, torch.bfloat16, **LLAMAS[name])
        count = 8 if free is None or free > 60 * 2**30 else 2
        batch = texts(count, setting.sized(512, 12), LLAMAS[name]["vocab_size"])
        batch = {key: values.to(setting.device) for key, values in batch.items()}
        objective, influence = CausalLM(), DataInfInfluence(model, CausalLM())

        def bare() -> None:
            objective.losses(model, batch).sum().backward()
            model.zero_grad(set_to_none=True)

        for _ in range(3):  # the first batch is checked against plain autograd
            influence.loss_gradients_by_block(batch)
        times = {}
        for what, work in (
            ("a bare step", bare),
            ("rows", lambda: influence.loss_gradients_by_block(batch)),
        ):
            if free is not None:
                torch.cuda.reset_peak_memory_stats(setting.device)
            times[what] = seconds(setting, work)
            taken = ""
            if free is not None:
                peak = torch.cuda.max_memory_allocated(setting.device) / 2**30
                taken = f", {peak:.1f} GiB at most"
            value = f"{count / times[what]:.2f} samples/s{taken}"
            tokens = batch["input_ids"].shape[1]
            yield f"Llama {name}, {count} x {tokens} tokens, {what}", value, None
        yield f"Llama {name}, rows / bare", f"{times['rows'] / times['a bare step']:.2f}", None

    return section
