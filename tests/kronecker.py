"""Oracles of EK-FAC in float64, by explicit loops; nothing here is imported from the package."""

import numpy as np
import torch

import dense


def calls_of(model, loss, sample, layer):
    """For each call of a layer in one sample's loss its input and the gradient at its output."""
    seen = []

    def see(module, args, output):
        output.retain_grad()
        seen.append((args[0].detach(), output))
        return output.clone()  # which may be changed in place

    handle = layer.register_forward_hook(see)
    try:
        value = (
            loss(model, sample) if isinstance(sample, dict) else loss(model(sample[0]), sample[1])
        )
        value.sum().backward()
    finally:
        handle.remove()
        model.zero_grad()
    return [(x.double().numpy(), y.grad.double().numpy()) for x, y in seen if y.grad is not None]


def patches(layer, x, g):
    """Of one image (1, c, h, w) the patch and the output gradient at each place of the output."""
    (top, left), (height, width) = layer.padding, layer.kernel_size
    x = np.pad(x[0], ((0, 0), (top, top), (left, left)))
    for a in range(g.shape[2]):
        for b in range(g.shape[3]):
            rows = [a * layer.stride[0] + k * layer.dilation[0] for k in range(height)]
            columns = [b * layer.stride[1] + k * layer.dilation[1] for k in range(width)]
            yield x[:, rows][:, :, columns].reshape(-1), g[0, :, a, b]


def tokens(layer, x, g):
    """Of one sample the input and the output gradient at each position."""
    yield from zip(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]), strict=True)


def samples_of(batch):
    """Each sample as a batch of one."""
    if isinstance(batch, dict):
        length = len(next(iter(batch.values())))
        return [{k: v[i : i + 1] for k, v in batch.items()} for i in range(length)]
    return [tuple(t[i : i + 1] for t in batch) for i in range(len(batch[0]))]


def moments(model, loss, batch, layer, inputs=lambda layer, x: x, places=tokens):
    """Σ x xᵀ and Σ g gᵀ over all samples, calls and places with an output gradient.

    What is 1e-10 of the largest in the call is none: it is the rounding of a zero.
    """
    A = S = 0
    for sample in samples_of(batch):
        for x_call, g_call in calls_of(model, loss, sample, layer):
            found = list(places(layer, x_call, g_call))
            largest = max(np.linalg.norm(g) for _, g in found)
            for x, g in found:
                if np.linalg.norm(g) > 1e-10 * largest:
                    x = inputs(layer, x)
                    A, S = A + np.outer(x, x), S + np.outer(g, g)
    return A, S


def with_one(layer, x):
    """The input with the constant of the bias behind it."""
    return np.append(x, 1.0)


def ekfac_matrix(rows, λ, A, S, has_bias=False):
    """The inverse as a dense matrix, with Q_S ⊗ Q_A written out, in the order of the flat rows."""
    Q = np.kron(np.linalg.eigh(S)[1], np.linalg.eigh(A)[1])
    if has_bias:
        o, i = len(S), len(A)
        order = np.arange(o * i).reshape(o, i)  # output by input, the bias's one last
        Q = Q[np.concatenate([order[:, :-1].ravel(), order[:, -1]])]
    eigenvalues = np.zeros(Q.shape[1])
    for g in rows.numpy():
        eigenvalues += (Q.T @ g) ** 2
    inverse = Q @ np.diag(1 / (eigenvalues / len(rows) + λ)) @ Q.T
    return torch.from_numpy(inverse)


def influences(inverses, test_rows, train_rows):
    """Σ_l v_tᵀ (inverse_l) g_k, with an inverse for each block."""
    return sum(v @ inverses[block] @ train_rows[block].T for block, v in test_rows.items())


def rows_of(model, loss, batch, members):
    """For each block its per-sample gradients."""
    return dense.gradients_by_block(model, loss, batch, members)
