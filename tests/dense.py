"""The oracles: the formulas of the inverses in float64, written down plainly.

Nothing here is imported from the package, and nothing is clever: one backward pass for each sample,
dense matrices, `torch.linalg.solve`.
"""

import copy

import numpy as np
import torch


def sample_losses(model, loss, batch):
    """One loss for each sample, each from a forward pass of its own, as a list with graphs."""
    if isinstance(batch, dict):
        length = len(next(iter(batch.values())))
        return [loss(model, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(length)]
    x, y = batch
    return [loss(model(x[i : i + 1].clone()), y[i : i + 1]) for i in range(len(x))]


def gradients(model, loss, batch, names):
    """Per-sample gradients (B, d) of the named parameters, concatenated in the order of `names`."""
    parameters = dict(model.named_parameters())
    rows = []
    for value in sample_losses(model, loss, batch):
        grads = torch.autograd.grad(value.sum(), [parameters[n] for n in names], allow_unused=True)
        flat = [
            torch.zeros_like(parameters[n]).flatten() if g is None else g.to_dense().flatten()
            for n, g in zip(names, grads, strict=True)
        ]
        rows.append(torch.cat(flat))
    return torch.stack(rows)


def gradients_by_block(model, loss, batch, blocks):
    """The same for each block by its names, from one backward pass a sample for all blocks."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    rows = gradients(model, loss, batch, [name for names in blocks.values() for name in names])
    widths = [sum(sizes[name] for name in names) for names in blocks.values()]
    return dict(zip(blocks, rows.split(widths, 1), strict=True))


def datainf_matrix(rows, damping):
    """(1/n) Σ_i (g_i g_iᵀ + λ I)⁻¹ as a dense matrix, each term by a solver."""
    n, d = rows.shape
    eye = torch.eye(d, dtype=rows.dtype)
    total = torch.zeros(d, d, dtype=rows.dtype)
    for g in rows:
        total += torch.linalg.solve(torch.outer(g, g) + damping * eye, eye)
    return total / n


def datainf_products(test_rows, fit_rows, train_rows, damping):
    """v_tᵀ (1/n) Σ_i (g_i g_iᵀ + λ I)⁻¹ g_k from scalar products, for blocks too wide for a matrix.

    In extended precision, since the difference cancels where the g_i are nearly parallel.
    """
    v, g, k = (
        rows.double().numpy().astype(np.longdouble) for rows in (test_rows, fit_rows, train_rows)
    )
    weights = 1 / (damping + (g * g).sum(1))
    products = (v @ k.T - ((v @ g.T) * weights) @ (g @ k.T) / len(g)) / damping
    return torch.from_numpy(products.astype(np.float64))


def exact_matrix(rows, damping):
    """((1/n) Σ_i g_i g_iᵀ + λ I)⁻¹ as a dense matrix."""
    n, d = rows.shape
    eye = torch.eye(d, dtype=rows.dtype)
    total = torch.zeros(d, d, dtype=rows.dtype)
    for g in rows:
        total += torch.outer(g, g)
    return torch.linalg.solve(total / n + damping * eye, eye)


def gauss_newton(rows):
    """(1/n) Σ_i g_i g_iᵀ as a dense matrix."""
    return sum(torch.outer(g, g) for g in rows) / len(rows)


def lissa_scale(rows, damping):
    """λ and the smaller of the trace and 1.1 times what 20 power iterations find."""
    H, seeded = gauss_newton(rows), torch.Generator().manual_seed(0)
    p = torch.randn(1, len(H), generator=seeded, dtype=torch.float64).flatten()
    p = p / p.norm()
    for _ in range(20):
        found = (H @ p).norm()
        p = H @ p / found if found > 0 else p
    return damping + min(float(H.trace()), 1.1 * float(found))


def lissa(rows, vectors, damping, steps):
    """x = r/s for each vector, after so many steps from r = 0, and ‖(H + λ I) x − v‖/‖v‖."""
    A = gauss_newton(rows) + damping * torch.eye(rows.shape[1], dtype=rows.dtype)
    s, answers, residuals = lissa_scale(rows, damping), [], []
    for v in vectors:
        r = torch.zeros_like(v)
        for _ in range(steps):
            r = v + r - A @ r / s
        answers.append(r / s)
        residuals.append((A @ r / s - v).norm() / v.norm())
    return torch.stack(answers), torch.stack(residuals)


def lissa_matrix(rows, damping, steps):
    """The matrix by which that many steps multiply vectors."""
    return lissa(rows, torch.eye(rows.shape[1], dtype=rows.dtype), damping, steps)[0]


def scaled_identity(rows, damping):
    """I/λ as a dense matrix."""
    return torch.eye(rows.shape[1], dtype=rows.dtype) / damping


def automatic_damping(rows):
    """0.1 times the mean over samples and parameters of the squared gradient entries."""
    return 0.1 * float((rows**2).mean())


def influences(test_rows, fit_rows, train_rows, damping, inverse=datainf_matrix):
    """Σ_l v_tᵀ (inverse_l) g_k, from dictionaries of block name to rows and of block name to λ."""
    total = 0
    for block, v in test_rows.items():
        total = total + v @ inverse(fit_rows[block], damping[block]) @ train_rows[block].T
    return total


def mixed_derivative(model, loss, batch, names):
    """∇_x ∇_θ of each sample's loss, shape (B, *x.shape[1:], d)."""
    x, y = batch
    parameters = dict(model.named_parameters())
    rows = []
    for i in range(len(x)):
        xi = x[i : i + 1].clone().requires_grad_()
        grads = torch.autograd.grad(
            loss(model(xi), y[i : i + 1]).sum(), [parameters[n] for n in names], create_graph=True
        )
        flat = torch.cat([g.flatten() for g in grads])
        entries = [torch.autograd.grad(e, xi, retain_graph=True)[0][0] for e in flat]
        rows.append(torch.stack(entries, dim=-1))
    return torch.stack(rows)


def in_float64(model):
    """A copy of the model in float64."""
    return copy.deepcopy(model).double()
